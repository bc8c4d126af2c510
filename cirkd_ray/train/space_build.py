"""Whether a configuration's networks and losses can be built, found out without their memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.config import DataSpec, DistillSpec, RunSpec, TeacherSpec
from cirkd_ray.data import DATASETS, build_dataset
from cirkd_ray.errors import DataError, UserError
from cirkd_ray.models import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.distiller import build_losses
from cirkd_ray.train.teacher import teacher_recipe
from cirkd_ray.types import ClassSet
from cirkd_ray.weights.card import locate, read_card
from cirkd_ray.weights.external import load_module


class Builder:
    """Builds what resolved recipes describe on torch's `meta` device: shapes without values.

    Each network is built once; a queue of any length costs nothing.
    """

    def __init__(self) -> None:
        self._networks: dict[str, SegmentationModel | None] = {}
        self._classes: dict[str, int | None] = {}

    def check(self, spec: RunSpec, loss: str | None = None) -> None:
        """Build student, teacher and losses (or the one named `loss`).

        Where the data set or the teacher is not on this machine, what depends on it is not looked at here:
        `preflight.check_run` names what is missing before a sweep starts.

        Raises:
            UserError: what the constructors say.
        """
        classes = self._count(spec.data)
        if classes is None:
            return
        student = self._network(spec.model.name, spec.model.settings, classes, "model")
        if spec.distill is None or spec.teacher is None:
            return
        teacher = self._teacher(spec, spec.teacher, classes)
        if teacher is None:
            return
        if loss is not None:
            if loss not in spec.distill.losses:  # null has removed it
                return
            one = DistillSpec(losses={loss: spec.distill.losses[loss]})
            spec = spec.model_copy(update={"distill": one})
        with torch.device("meta"):
            build_losses(spec, student, teacher, classes)

    def _count(self, data: DataSpec) -> int | None:
        """Number of classes; None where only the data tell and they are not here."""
        key = _key(data.model_dump(mode="json"))
        if key not in self._classes:
            found: ClassSet | None
            try:
                val = build_dataset(data.name, split=data.val_split, root=data.root, **data.settings)
                found = val.classes
            except DataError:
                found = getattr(DATASETS.get(data.name), "classes", None)
            self._classes[key] = None if found is None else len(found)
        return self._classes[key]

    def _teacher(self, spec: RunSpec, teacher: TeacherSpec, classes: int) -> SegmentationModel | None:
        """The teacher; None where its weights are not here."""
        key = _key({**teacher.model_dump(mode="json"), "classes": classes})
        if key not in self._networks:
            model = teacher_recipe(spec).model if teacher.train is not None else teacher.model
            if model is not None:
                self._networks[key] = self._network(model.name, model.settings, classes, "teacher.model")
            else:
                self._networks[key] = self._elsewhere(teacher, classes)
        return self._networks[key]

    def _elsewhere(self, teacher: TeacherSpec, classes: int) -> SegmentationModel | None:
        """The network of a weights file by its card; one of another make as it is."""
        try:
            if teacher.module is not None:
                return load_module(teacher.module, num_classes=classes)
            assert teacher.weights is not None
            weights, card_path = locate(Path(teacher.weights))
            card = read_card(card_path, weights)
            return self._network(card["name"], card["settings"], int(card["num_classes"]), "teacher.weights")
        except UserError:
            return None

    def _network(self, name: str, settings: Mapping[str, Any], classes: int, where: str) -> SegmentationModel:
        key = _key({"name": name, "settings": settings, "classes": classes})
        found = self._networks.get(key)
        if found is None:
            with torch.device("meta"):  # without a download: the shapes do not depend on it
                found = build_model(
                    name, num_classes=classes, where=where, **{**settings, "pretrained": False}
                )
            self._networks[key] = found
        return found


def _key(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, sort_keys=True, default=str)
