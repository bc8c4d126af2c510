"""What can be known to go wrong before a run starts: looked at once, on the machine that starts it."""

from __future__ import annotations

from cirkd_ray.config import RunSpec
from cirkd_ray.data.facts import look
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.train.build import build_datasets, build_network, build_teacher
from cirkd_ray.train.distiller import build_losses
from cirkd_ray.train.rehearsal import rehearse
from cirkd_ray.train.teacher import teacher_recipe


def check_run(spec: RunSpec) -> tuple[str, ...]:
    """Check a resolved recipe against its data and its teacher, read a few samples of each split, and let
    the losses see maps of the sizes that they will meet.

    Returns:
        What the user should know of the data, a line each.

    Raises:
        UserError: with the setting or file and what to do.
    """
    if spec.task.weight == 0 and spec.distill is None:
        raise ConfigError("task.weight: is 0 and there is no distillation, so there is nothing to train on")
    train, val = build_datasets(spec)
    notes: list[str] = []
    for dataset, split in ((train, spec.data.train_split), (val, spec.data.val_split)):
        if len(dataset) == 0:
            raise DataError(f"data: the split {split!r} of {spec.data.name!r} is empty")
        notes += look(dataset, training=dataset is train)
    if spec.train.batch_size > len(train):
        many = f"{spec.train.batch_size} is more than the {len(train)} images of {spec.data.train_split!r}"
        notes.append(f"train.batch_size: {many}: a batch holds some of them several times")
    student = build_network(spec.model, len(train.classes), "model")
    if spec.distill is None or spec.teacher is None:
        return tuple(notes)
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
    return tuple(notes)
