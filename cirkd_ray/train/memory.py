"""What members of a cohort take of their device, in bytes and seconds: counted, or measured in steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from cirkd_ray.config import RunSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.device import wait
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.batches import training_batches
from cirkd_ray.train.build import Run, assemble, build_datasets, choose_arithmetic
from cirkd_ray.train.disk import checkpoint_bytes
from cirkd_ray.train.distributed import World
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.shared import MicroBatch, SharedForward
from cirkd_ray.train.step import TrainStep
from cirkd_ray.train.timing import WARM_UP, side_by_side, waiting
from cirkd_ray.train.untrained import untrained, untrained_teacher

ROUNDS = 5
"""Steps that are timed."""


class Taken(NamedTuple):
    """What a run takes of a worker.

    A cohort holds one teacher and what is each member's own, and works for one member at a time.

    Attributes:
        teacher: bytes of its weights.
        own: bytes that a member keeps between its steps: weights, gradients, moments, queues, average.
        work: bytes beside these in a step: images, the teacher's maps, activations.
        process: bytes of the process itself, on CPUs.
        shared_seconds: of a step's images and the teacher's forward pass; 0 where nothing was timed.
        own_seconds: of a member's part of a step.
    """

    teacher: int
    own: int
    work: int
    process: int = 0
    shared_seconds: float = 0.0
    own_seconds: float = 0.0

    @property
    def fixed(self) -> int:
        """Bytes that a cohort of such members takes beside what is each one's own."""
        return self.process + self.teacher + self.work

    def seconds(self, members: int) -> float:
        """Of a step, for each of so many members."""
        return self.shared_seconds / members + self.own_seconds


def together(members: Sequence[Taken]) -> int:
    """Bytes of a cohort."""
    fixed = max(m.process for m in members) + max(m.teacher for m in members) + max(m.work for m in members)
    return fixed + sum(m.own for m in members)


def most_that_fit(each: Taken, there: int) -> int:
    """How many such members fit into so many bytes; none where one does not."""
    return max(0, (there - each.fixed) // max(1, each.own))


def counted(spec: RunSpec, dry: DryRun) -> Taken:
    """About the least that a run takes: its tensors, and what the student's pass keeps for the way back.

    Args:
        spec: a resolved recipe.
        dry: has just checked it.
    """
    if dry.built is None or spec.data.crop is None:
        return Taken(0, 0, 0)
    student, losses = dry.built
    trained = [student, *losses.values()]
    gradients = sum(p.nbytes for module in trained for p in module.parameters())
    workers = 1 if spec.cluster.workers == "auto" else spec.cluster.workers
    images = max(1, spec.train.batch_size // spec.train.accumulate // workers)
    work = _saved_bytes(student, images, spec.data.crop)
    if spec.cluster.device == "cuda" and spec.train.precision != "fp32":
        work //= 2
    work = max(0, work - gradients)  # which there are none of yet
    teacher = 0 if dry.teacher is None or not losses else bytes_of([dry.teacher])
    return Taken(teacher, checkpoint_bytes(spec, student, losses) + gradients, work)


def measured(spec: RunSpec, world: World, timed: bool = False) -> Taken:
    """What a run takes, by two of its steps, or some more where they are timed; all weights are random.

    Args:
        spec: a resolved recipe; of several workers, with the batch of one.
        world: where the steps are done.
        timed: whether seconds are wanted, too.

    Raises:
        UserError: the run cannot be built.
    """
    process = _resident_bytes() if world.device.type == "cpu" else 0
    run = _built(spec, world)
    batches = training_batches(run, 0, 2 + (WARM_UP + ROUNDS if timed else 0))
    found = taken(run.step, run.shared, partial(islice, batches, spec.train.accumulate), timed)
    return found._replace(process=process)


def taken(
    step: TrainStep, shared: SharedForward, batches: Callable[[], Iterable[DeviceBatch]], timed: bool = False
) -> Taken:
    """`measured` of a step that is built.

    Args:
        step: of a run that is in training.
        shared: prepares images and runs the teacher.
        batches: gives the next step's micro-batches.
        timed: as of `measured`.
    """
    device, turn = step.world.device, list[MicroBatch]()

    def share() -> None:
        """As a cohort does for all members, of whom the first does not let go of the maps."""
        turn[:] = [shared(batch, readers=2) for batch in batches()]
        if step.distiller.losses:
            for micro_batch in turn:
                micro_batch.taught()

    def act() -> None:
        step(0, turn)
        turn.clear()

    def twice() -> None:
        for _ in range(2):
            share()
            act()

    average = [] if step.average is None else [step.average]
    weights = bytes_of([step.distiller, *average])
    teacher = 0 if shared.teacher is None else bytes_of([shared.teacher])
    peak, kept = used_bytes(twice, device)
    found = Taken(teacher, weights + kept, peak - kept)
    if not timed:
        return found
    seconds = side_by_side({"shared": share, "own": act}, waiting(time.perf_counter, device), rounds=ROUNDS)
    return found._replace(shared_seconds=seconds["shared"], own_seconds=seconds["own"])


def _built(spec: RunSpec, world: World) -> Run:
    precision = choose_arithmetic(spec, world.device)
    train_set, val_set = build_datasets(spec)
    classes = train_set.classes
    student = untrained(spec.model, len(classes), "model")
    teacher = untrained_teacher(spec, classes)
    (step,), shared = assemble([spec], world, [student], teacher, len(classes), precision)
    if isinstance(step, Exception):
        raise step
    step.distiller.train()
    return Run(spec, world, train_set, val_set, student, shared, step, precision)


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


def _saved_bytes(student: SegmentationModel, images: int, crop: tuple[int, int]) -> int:
    """Bytes that one forward pass in training keeps for the backward pass, found without values; 0 where the
    network has no such form."""
    saved: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        saved[x.untyped_storage()._cdata] = x
        return x

    held = {
        name: torch.empty_like(t, device="meta").requires_grad_(isinstance(t, nn.Parameter))
        for name, t in (*student.named_parameters(), *student.named_buffers())
    }
    try:
        with torch.device("meta"), saved_tensors_hooks(note, lambda x: x):
            functional_call(student.train(), held, torch.zeros(images, 3, *crop))
    except Exception:  # of torch, where an operator has no such form, or of timm
        return 0
    parameters = {t.untyped_storage()._cdata for t in held.values()}
    return sum(x.untyped_storage().nbytes() for key, x in saved.items() if key not in parameters)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that one call of `function` held at once, beyond what there was before it."""
    return used_bytes(function, device)[0]


def used_bytes(function: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """`peak_bytes`, and the bytes that are left after the call; what the function returns is let go first."""
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as found:
        function()
    assert found.kineto_results is not None
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, held


def _resident_bytes() -> int:
    """RAM of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
