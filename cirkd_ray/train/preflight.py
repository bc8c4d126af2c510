"""What can be known to go wrong before a run starts: looked at once, on the machine that starts it."""

from __future__ import annotations

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.train.build import build_datasets, build_network, build_teacher
from cirkd_ray.train.distiller import build_losses
from cirkd_ray.train.rehearsal import rehearse
from cirkd_ray.train.teacher import teacher_recipe

SAMPLES = 4
"""Images of each split that are read before a run starts; `cirkd data check` reads them all."""


def spread(length: int, count: int = SAMPLES) -> list[int]:
    """Up to `count` numbers below `length`, from the first to the last."""
    return sorted({round(k * (length - 1) / max(1, count - 1)) for k in range(count)})


def check_run(spec: RunSpec) -> None:
    """Check a resolved recipe against its data and its teacher, read a few samples of each split, and let
    the losses see maps of the sizes that they will meet.

    Raises:
        UserError: with the setting or file and what to do.
    """
    if spec.task.weight == 0 and spec.distill is None:
        raise ConfigError("task.weight: is 0 and there is no distillation, so there is nothing to train on")
    train, val = build_datasets(spec)
    for dataset, split in ((train, spec.data.train_split), (val, spec.data.val_split)):
        if len(dataset) == 0:
            raise DataError(f"data: the split {split!r} of {spec.data.name!r} is empty")
        for index in spread(len(dataset)):
            dataset.load(index)
    student = build_network(spec.model, len(train.classes), "model")
    if spec.distill is None or spec.teacher is None:
        return
    if spec.teacher.train is not None:
        plan = teacher_recipe(spec)
        check_run(plan)
        teacher = build_network(plan.model, len(train.classes), "teacher.model")
    else:
        teacher = build_teacher(spec.teacher, len(train.classes), train.classes)
    losses = build_losses(spec, student, teacher, len(train.classes))
    for network, taps in ((student, "student_taps"), (teacher, "teacher_taps")):
        network.taps = frozenset().union(*(getattr(loss, taps) for loss in losses.values()))
    rehearse(spec, student, teacher, losses)
