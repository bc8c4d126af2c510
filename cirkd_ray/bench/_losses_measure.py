"""Inputs, time and peak memory for `cirkd bench losses`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs, build_loss
from cirkd_ray.types import SegmentationOutput


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


def leaves(inputs: LossInputs) -> LossInputs:
    """The same inputs with student maps that require gradients anew."""
    logits, aux, feature = (t.detach().requires_grad_() for t in inputs.student[:3] if t is not None)
    student = SegmentationOutput(logits, aux, feature)
    return LossInputs(student, inputs.teacher, inputs.labels, step=inputs.step)


def forward_backward(
    function: Callable[[LossInputs], dict[str, Tensor]], inputs: LossInputs
) -> dict[str, Tensor]:
    """One call and the gradients of the sum of its terms."""
    terms = function(leaves(inputs))
    torch.autograd.backward(torch.stack([*terms.values()]).sum())
    return {name: value.detach() for name, value in terms.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock(NamedTuple):
    """How to time: on which device, how often, and whether by the processor's time instead of the wall's."""

    device: torch.device
    repeat: int = 3
    cpu: bool = False

    def now(self) -> float:
        synchronize(self.device)
        return time.process_time() if self.cpu else time.perf_counter()


def best_seconds(functions: list[Callable[[], object]], clock: Clock) -> list[float]:
    """The shortest time of each, taken in turns so that a busy moment of the machine hits all alike."""
    best = [float("inf")] * len(functions)
    for _ in range(clock.repeat):
        for i, function in enumerate(functions):
            start = clock.now()
            function()
            best[i] = min(best[i], clock.now() - start)
    return best


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that one call of `function` held at once, beyond what there was before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as found:
        function()
    assert found.kineto_results is not None
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
