"""The networks of a recipe with random weights, for measurements that ask for none."""

from __future__ import annotations

from cirkd_ray.config import ModelSpec, RunSpec
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.build import build_network, build_teacher
from cirkd_ray.train.teacher import teacher_recipe
from cirkd_ray.types import ClassSet


def untrained(model: ModelSpec, classes: int, where: str) -> SegmentationModel:
    """A network without the weights that its recipe starts it with."""
    tree = {**model.model_dump(), "weights": None}
    if "pretrained" in tree:
        tree["pretrained"] = False
    return build_network(ModelSpec.model_validate(tree), classes, where)


def untrained_teacher(spec: RunSpec, classes: ClassSet) -> SegmentationModel | None:
    """The recipe's teacher, untrained where the recipe says which network it is."""
    if spec.distill is None or spec.teacher is None:
        return None
    model = teacher_recipe(spec).model if spec.teacher.train is not None else spec.teacher.model
    if model is None:
        return build_teacher(spec.teacher, len(classes))
    return untrained(model, len(classes), "teacher.model").eval()
