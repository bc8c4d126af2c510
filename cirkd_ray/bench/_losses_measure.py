"""The tables of `cirkd bench losses`: inputs, time, peak memory and bytes between ranks."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from cirkd_ray.bench import _losses_naive as naive
from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs, build_loss
from cirkd_ray.losses.maps import MapPair
from cirkd_ray.losses.symmetric import relational_kl_symmetric
from cirkd_ray.losses.whole import resize_labels
from cirkd_ray.report.tables import TextTable
from cirkd_ray.train.memory import peak_bytes
from cirkd_ray.types import SegmentationOutput

Call = Callable[[], object]
CPU = torch.device("cpu")
MIB = 2**20


class Shape(NamedTuple):
    """One setting of the published recipes, as one worker sees it.

    Attributes:
        images, height, width: of the maps.
        student, teacher: channels of the features.
        classes: of the data set.
        scale: label pixels a map pixel, in each direction.
        slots: slots a class of the pixel queue.
        ignored: share of ignored labels; none, where naive code would save their work by selecting pixels.
    """

    images: int
    height: int
    width: int
    student: int
    teacher: int
    classes: int
    scale: int = 8
    slots: int = 20_000
    ignored: float = 0.0


SHAPES = {
    "cityscapes": Shape(2, 64, 128, 128, 256, 19),
    "ade20k": Shape(2, 64, 64, 128, 256, 150, slots=2_000),
    "segformer": Shape(1, 128, 128, 256, 768, 19, slots=2_000),
    "tiny": Shape(2, 16, 16, 16, 32, 5, slots=2_000, ignored=0.2),
}
"""`ade20k` keeps 2000 slots a class here: the full queue takes 3 GB and costs a step no more."""


def make_inputs(shape: Shape, device: torch.device, step: int = 0) -> LossInputs:
    """Random maps, and labels in blocks of 4 x 4 map pixels."""
    generator = torch.Generator().manual_seed(step)
    size = (shape.height, shape.width)

    def output(channels: int) -> SegmentationOutput:
        widths = (shape.classes, shape.classes, channels)
        maps = [torch.randn(shape.images, c, *size, generator=generator).to(device) for c in widths]
        return SegmentationOutput(maps[0], maps[1], maps[2])

    coarse = torch.randint(0, shape.classes, (shape.images, size[0] // 4, size[1] // 4), generator=generator)
    coarse[torch.rand(coarse.shape, generator=generator) < shape.ignored] = -1
    block = 4 * shape.scale
    labels = coarse.repeat_interleave(block, 1).repeat_interleave(block, 2).to(device)
    return LossInputs(output(shape.student), output(shape.teacher), labels, step=step)


def make_loss(kind: str, shape: Shape, device: torch.device, **settings: Any) -> DistillationLoss:
    """The loss at its defaults, with queues that fit the shape."""
    fitting = {
        "pixel_memory": shape.slots,
        "region_memory": min(2_000, shape.slots),
        "length": -(-shape.height // 4) * -(-shape.width // 4),
    }
    fields = LOSSES.settings(kind).model_fields
    torch.manual_seed(0)
    loss = build_loss(
        kind,
        student_channels=shape.student,
        teacher_channels=shape.teacher,
        num_classes=shape.classes,
        **{**{k: v for k, v in fitting.items() if k in fields}, **settings},
    )
    return loss.to(device)


def forward_backward(
    function: Callable[[LossInputs], dict[str, Tensor]], inputs: LossInputs
) -> dict[str, Tensor]:
    """The terms of one call, and the gradients of their sum to fresh leaves in the student's place."""
    logits, aux, feature = (t.detach().requires_grad_() for t in inputs.student[:3] if t is not None)
    terms = function(replace(inputs, student=SegmentationOutput(logits, aux, feature)))
    torch.autograd.backward(torch.stack([*terms.values()]).sum())
    return {name: value.detach() for name, value in terms.items()}


class Clock(NamedTuple):
    """How to time: on which device, how often, and whether by the processor's time instead of the wall's."""

    device: torch.device
    repeat: int = 3
    cpu: bool = False

    def now(self) -> float:
        """Seconds, once the device is done with its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.cpu else time.perf_counter()


def best_seconds(functions: list[Call], clock: Clock) -> list[float]:
    """The shortest time of each, taken in turns so that a busy moment of the machine hits all alike."""
    best = [float("inf")] * len(functions)
    for _ in range(clock.repeat):
        for i, function in enumerate(functions):
            start = clock.now()
            function()
            best[i] = min(best[i], clock.now() - start)
    return best


def measure(functions: list[Call], clock: Clock) -> tuple[list[float], list[int]]:
    """Best seconds and peak bytes of each."""
    peaks = [peak_bytes(function, clock.device) for function in functions]
    return best_seconds(functions, clock), peaks


def loss_table(shape_name: str, kinds: list[str], clock: Clock) -> TextTable:
    """One row a loss."""
    shape = SHAPES[shape_name]
    columns = ("loss", "ms", "naive ms", "x faster", "peak MiB", "naive MiB", "x smaller", "difference")
    rows = tuple(loss_row(kind, shape, clock) for kind in kinds)
    size = f"{shape.images} x {shape.height} x {shape.width}, channels {shape.student}/{shape.teacher}"
    return TextTable(columns, rows, f"{shape_name}: {size}, {shape.classes} classes")


def loss_row(kind: str, shape: Shape, clock: Clock) -> tuple[str, ...]:
    """The cells of one loss; `difference` is the largest relative one of a term from the naive value."""
    loss, inputs = make_loss(kind, shape, clock.device), make_inputs(shape, clock.device)
    if loss.discriminator is not None:
        loss.discriminator.requires_grad_(False)  # as in training, outside its own step
    first: dict[str, dict[str, Tensor]] = {}
    functions: list[Call] = [lambda: first.setdefault("ours", forward_backward(loss, inputs))]
    if kind in naive.NAIVE:
        plain = partial(naive.NAIVE[kind], copy.deepcopy(loss))
        functions.append(lambda: first.setdefault("naive", forward_backward(plain, inputs)))
    (seconds, *slow), (peak, *much) = measure(functions, clock)
    time_, size = f"{seconds * 1e3:.1f}", f"{peak / MIB:.1f}"
    if not slow:
        return (kind, time_, "-", "-", size, "-", "-", "-")
    errors = [abs(first["ours"][k] - v).item() / max(abs(v).item(), 1e-12) for k, v in first["naive"].items()]
    times = (time_, f"{slow[0] * 1e3:.1f}", f"{slow[0] / seconds:.2f}")
    sizes = (size, f"{much[0] / MIB:.1f}", f"{much[0] / max(peak, 1):.1f}")
    return (kind, *times, *sizes, f"{max(errors):.0e}")


def token_table(counts: list[int], clock: Clock, largest_naive: int = 8192) -> TextTable:
    """Time and memory of the relation of one image to itself, as its tokens double."""
    rows = []
    for count in counts:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(count, c, generator=generator).to(clock.device) for c in (128, 256))
        functions: list[Call] = [partial(relate, student, teacher)]
        if count <= largest_naive:
            functions.append(partial(relate, student, teacher, plain=True))
        seconds, peaks = measure(functions, clock)
        times = [f"{x * 1e3:.1f}" for x in seconds] + ["-"] * (2 - len(seconds))
        sizes = [f"{x / MIB:.1f}" for x in peaks] + ["-"] * (2 - len(peaks))
        rows.append((str(count), *times, *sizes, f"{peaks[0] / count / 1024:.2f}"))
    columns = ("tokens", "ms", "naive ms", "peak MiB", "naive MiB", "KiB a token")
    return TextTable(columns, tuple(rows), "relational_kl_symmetric, one image to itself, channels 128/256")


def relate(student: Tensor, teacher: Tensor, plain: bool = False) -> tuple[Tensor, Tensor]:
    """That relation and its gradient, by whole matrices where `plain`."""
    leaf = student.clone().requires_grad_()
    if plain:
        loss = naive.pairs_of_images([leaf], [teacher], 0.1)
    else:
        s, t = (F.normalize(x).unsqueeze(0) for x in (leaf, teacher))
        weights = torch.full((len(leaf),), 1.0 / len(leaf), device=leaf.device)
        loss = relational_kl_symmetric(s, t, weights, temperature=0.1)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def enqueue_pair(shape: Shape, device: torch.device) -> tuple[list[DistillationLoss], list[Call]]:
    """Two equal losses, and what enqueues a batch in the first, vectorised, and in the second by loops."""
    inputs = make_inputs(shape, device)
    ours = make_loss("cirkd_memory", shape, device)
    plain = copy.deepcopy(ours)
    labels = resize_labels(inputs.labels, (shape.height, shape.width))
    pair = MapPair(inputs.student.feature, inputs.teacher.feature, labels, None)
    return [ours, plain], [
        lambda: ours._enqueue(pair, inputs),  # type: ignore[operator]
        lambda: naive.enqueue(plain, inputs),
    ]


def enqueue_line(shape: Shape, clock: Clock) -> str:
    """16 images at once, as eight workers give them."""
    shape = shape._replace(images=16)
    _, functions = enqueue_pair(shape, clock.device)
    functions[0]()
    ours, slow = best_seconds(functions, clock)
    return (
        f"enqueue of {shape.images} images, {shape.classes} classes, {shape.height} x {shape.width}: "
        f"{ours * 1e3:.1f} ms, by loops {slow * 1e3:.1f} ms: {slow / ours:.1f} times faster"
    )


def exchange_line(shape_name: str) -> str:
    """Bytes that one of two ranks receives in a step of `cirkd_memory`, counted in two gloo processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_count_received, args=(shape_name, folder), nprocs=2)  # type: ignore[no-untyped-call]
        ours = int((Path(folder) / "received").read_text())
    shape = SHAPES[shape_name]
    pixels = shape.images * shape.height * shape.width
    maps = pixels * (shape.teacher * 4 + 8)  # float32 features and int64 labels of the other rank
    queues = shape.classes * (20_000 + 2_000) * shape.teacher * 4
    return (
        f"{shape_name}: a rank of two receives {ours / 1e6:.3f} MB a step; gathered maps {maps / 1e6:.1f} MB "
        f"and broadcast queues (20000 + 2000 a class) {queues / 1e6:.1f} MB: {(maps + queues) / ours:.0f} "
        "times fewer"
    )


def _count_received(rank: int, shape_name: str, folder: str) -> None:
    """One of the two processes: a step with collectives that count the bytes that come from the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    received = 0

    def counting(collective: Any, share: int) -> Any:
        def call(out: Tensor, *args: Any, **options: Any) -> Any:
            nonlocal received
            received += out.nbytes // share
            return collective(out, *args, **options)

        return call

    for name, share in {"all_gather_into_tensor": 2, "reduce_scatter_tensor": 1, "all_reduce": 1}.items():
        setattr(dist, name, counting(getattr(dist, name), share))
    loss = make_loss("cirkd_memory", SHAPES[shape_name]._replace(slots=2_000), CPU)
    forward_backward(loss, make_inputs(SHAPES[shape_name], CPU, step=rank))
    if rank == 0:
        (Path(folder) / "received").write_text(str(received))
    dist.barrier()
    dist.destroy_process_group()
