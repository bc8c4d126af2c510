"""What can be known to go wrong before a run starts, found by building it without values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from cirkd_ray.config import DistillSpec, ModelSpec, RunSpec
from cirkd_ray.data import DATASETS, build_dataset
from cirkd_ray.data.facts import look
from cirkd_ray.data.palettes import Palettes
from cirkd_ray.errors import ConfigError, DataError, UserError
from cirkd_ray.losses import DistillationLoss
from cirkd_ray.losses.size import require_memory
from cirkd_ray.models.segmentation import EncoderDecoder, SegmentationModel
from cirkd_ray.train.build import build_datasets, build_network, build_teacher
from cirkd_ray.train.distiller import build_losses
from cirkd_ray.train.rehearsal import rehearse, try_crop, unknown
from cirkd_ray.train.teacher import teacher_recipe
from cirkd_ray.types import ClassSet

T = TypeVar("T")


def check_run(*specs: RunSpec) -> tuple[str, ...]:
    """`DryRun.check` of recipes that are to run on this machine's data; returns its notes."""
    dry = DryRun()
    for spec in specs:
        dry.check(spec)
    return tuple(dry.notes)


class DryRun:
    """Builds what resolved recipes describe on torch's `meta` device: shapes without values.

    Each data set, network and teacher is looked at once, however many recipes name it: the methods of a
    comparison and the trials of a sweep share them. No queue is drawn. Of weights, names and shapes are read.

    Args:
        elsewhere: data and weights may be on other machines: what is not here is left out with a note.
            Samples, starting weights, memory and maps are not looked at, and nothing is downloaded.

    Attributes:
        notes: what could not be checked, and what the data have wrong; the keys are sentences.
        built: the student and the losses of the recipe that was checked last.
        teacher: of that recipe.
    """

    def __init__(self, elsewhere: bool = False) -> None:
        self.elsewhere = elsewhere
        self.notes: dict[str, None] = {}
        self.built: tuple[SegmentationModel, dict[str, DistillationLoss]] | None = None
        self.teacher: SegmentationModel | None = None
        self._found: dict[Hashable, Any] = {}

    def check(self, spec: RunSpec, loss: str | None = None) -> None:
        """Check a recipe: its data (a few samples), networks, weights, losses, and the maps that these meet.

        Args:
            spec: a resolved recipe.
            loss: build this loss alone, where the others are known to be right.

        Raises:
            UserError: with the setting or file and what to do.
        """
        if spec.task.weight == 0 and spec.distill is None:
            raise ConfigError(
                "task.weight: is 0 and there is no distillation, so there is nothing to train on"
            )
        data = spec.data.model_dump_json()
        classes = self._once(("data", data), lambda: self._classes(spec))
        if classes is None:
            return
        student = self._network(spec.model, classes, "model")
        if spec.distill is None or spec.teacher is None:
            self.built, self.teacher = (student, {}), None
            if not self.elsewhere:
                self.notes |= dict.fromkeys(rehearse(spec, student))
            return
        key = ("teacher", data, spec.teacher.model_dump_json())
        teacher = self._once(key, lambda: self._teacher(spec, classes))
        if teacher is None:
            return
        losses = self._losses(spec, student, teacher, loss)
        self.built, self.teacher = (student, losses), teacher
        if not self.elsewhere:
            require_memory(losses.values(), torch.device("cpu"))
            for network, taps in ((student, "student_taps"), (teacher, "teacher_taps")):
                network.taps = frozenset().union(*(getattr(item, taps) for item in losses.values()))
            self.notes |= dict.fromkeys(rehearse(spec, student, teacher, losses))

    def _once(self, key: Hashable, find: Callable[[], T]) -> T:
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

    def _left(self, what: object, why: str) -> None:
        """Note what is not checked; of a message its first line."""
        self.notes[f"{str(what).splitlines()[0]}: {why}"] = None

    def _classes(self, spec: RunSpec) -> ClassSet | None:
        """The data set's classes; None where only its files tell and they are not here."""
        data = spec.data
        if self.elsewhere:
            try:
                return build_dataset(data.name, split=data.val_split, root=data.root, **data.settings).classes
            except DataError as error:
                declared: ClassSet | None = getattr(DATASETS.get(data.name), "classes", None)
                if declared is None:
                    self._left(error, "its files tell the classes, so that nothing was built")
                return declared
        train, val = build_datasets(spec)
        palettes = Palettes()
        for dataset, split in ((train, data.train_split), (val, data.val_split)):
            if len(dataset) == 0:
                raise DataError(f"data: the split {split!r} of {data.name!r} is empty")
            self.notes |= dict.fromkeys(look(dataset, training=dataset is train, palettes=palettes))
        if spec.train.batch_size > len(train):
            many = f"{spec.train.batch_size} is more than the {len(train)} images of {data.train_split!r}"
            self.notes[f"warning: train.batch_size: {many}: a batch holds some of them several times"] = None
        return train.classes

    def _network(self, model: ModelSpec, classes: ClassSet, where: str) -> SegmentationModel:
        """The network of a name and settings; its starting weights fit."""
        if self.elsewhere:
            model = ModelSpec.model_validate({**model.model_dump(), "weights": None, "pretrained": False})

        def build() -> SegmentationModel:
            return build_network(model, len(classes), where)

        values = bool(model.settings.get("pretrained"))  # whether they can be had shows when they are
        key = ("network", len(classes), model.model_dump_json())
        return self._once(key, lambda: self._built(build, values))

    def _built(self, build: Callable[[], SegmentationModel], values: bool) -> SegmentationModel:
        """The network on `meta`; with values where these are wanted, or where it cannot be built without."""
        if not values:
            with contextlib.suppress(Exception), torch.device("meta"), _Undrawn():
                network = build()
                encoder = network.encoder if isinstance(network, EncoderDecoder) else None
                if encoder is not None and encoder.multiple > 1 and not self.elsewhere:
                    self._once(("probe", network.name), lambda: encoder.probe("model"))
                return network
        return build()  # says what is wrong, if anything is

    def _teacher(self, spec: RunSpec, classes: ClassSet) -> SegmentationModel | None:
        """The teacher; None where nothing here says which network it is."""
        assert spec.teacher is not None
        teacher, model = spec.teacher, spec.teacher.model
        if teacher.train is not None:
            plan = teacher_recipe(spec)
            if not self.elsewhere:
                self.check(plan)
            return self._network(plan.model, classes, "teacher.model")
        try:
            found = self._built(
                lambda: build_teacher(teacher, len(classes), classes), values=teacher.module is not None
            )
        except UserError as error:
            if not self.elsewhere:
                raise
            self._left(error, "the teacher was not checked")
            return None if model is None else self._network(model, classes, "teacher.model")
        if teacher.module is not None and spec.data.crop is not None and not self.elsewhere:
            try_crop(found, spec.data.crop)
        return found

    def _losses(
        self, spec: RunSpec, student: SegmentationModel, teacher: SegmentationModel, only: str | None
    ) -> dict[str, DistillationLoss]:
        """Each loss, or the one named `only`; one that needs values hides no other."""
        assert spec.distill is not None
        losses: dict[str, DistillationLoss] = {}
        for name, item in spec.distill.losses.items():
            if only not in (None, name):
                continue
            one = spec.model_copy(update={"distill": DistillSpec(losses={name: item})})
            try:
                with torch.device("meta"):
                    losses |= build_losses(one, student, teacher, student.num_classes)
            except UserError:
                raise
            except Exception as error:  # of a constructor that looks at values
                self.notes[unknown(f"distill.losses.{name}", error)] = None
        return losses


class _Undrawn(TorchFunctionMode):
    """Starting values are not drawn: on `meta` there are none, and asking takes half of a network's time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))
