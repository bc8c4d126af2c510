"""Checks the open parts of a RunSpec against the classes that they name, and fills in their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cirkd_ray.config.composition import Tree, apply_overrides, flatten
from cirkd_ray.config.registry import (
    DATASETS,
    LOSSES,
    TASK_LOSSES,
    network_settings,
    settings_model,
    validate,
)
from cirkd_ray.config.roles import Role
from cirkd_ray.config.sections import DataSpec, LossSpec, ModelSpec, TaskLossSpec
from cirkd_ray.config.settings import role_of
from cirkd_ray.config.spec import RunSpec
from cirkd_ray.errors import ConfigError, nearest


def resolved_tree(spec: RunSpec) -> Tree:
    """The spec's plain values with every default of the named classes written out.

    Raises:
        ConfigError: an unknown class or setting, with its path and the nearest valid name.
    """
    tree = _with_fixed_places(spec.to_dict())
    tree["model"].update(_model_settings(spec.model, "model"))
    if spec.teacher is not None and spec.teacher.model is not None:
        tree["teacher"]["model"].update(_model_settings(spec.teacher.model, "teacher.model"))
    tree["data"].update(_data_settings(spec))
    tree["task"]["losses"] = {
        name: _task_loss_tree(loss, f"task.losses.{name}")
        for name, loss in spec.task.losses.items()
        if loss is not None
    }
    if not tree["task"]["losses"]:
        raise ConfigError("task.losses: no loss is left; set task.weight=0 to train from the teacher alone")
    if spec.distill is not None:
        tree["distill"]["losses"] = {
            name: _loss_tree(loss, f"distill.losses.{name}")
            for name, loss in spec.distill.losses.items()
            if loss is not None
        }
        if not tree["distill"]["losses"]:
            raise ConfigError("distill.losses: no loss is left; set distill=null to train without a teacher")
        for name in tree["task"]["losses"].keys() & tree["distill"]["losses"].keys():
            raise ConfigError(f"task.losses.{name}: a loss of distill.losses has this name; choose another")
    return tree


def _with_fixed_places(tree: Tree) -> Tree:
    """Relative paths are relative to where the command was given: workers run in folders of their own."""
    leaves = flatten(tree)
    fixed = {k: _fixed(v) for k, v in leaves.items() if v is not None and Role.PLACE in role_of(k)}
    module, query, arguments = (leaves.get("teacher.module") or "").partition("?")
    if query:
        fixed["teacher.module"] = f"{module}?{'&'.join(map(_fixed_argument, arguments.split('&')))}"
    return apply_overrides(tree, fixed)


def _fixed_argument(item: str) -> str:
    """`weights=PATH` of a teacher's factory with its path fixed; other arguments as they are."""
    key, _, text = item.partition("=")
    try:
        place = yaml.safe_load(text) if key == "weights" else None  # as `load_module` reads it
    except yaml.YAMLError:
        raise ConfigError(f"teacher.module: {item!r} cannot be read; is a quote or bracket open?") from None
    return f"{key}={_fixed(place)}" if isinstance(place, str) else item


def _fixed(place: str) -> str:
    """That path from the root on; addresses stay as they are."""
    return place if "://" in place else str(Path(place).expanduser().absolute())


def _model_settings(model: ModelSpec, where: str) -> dict[str, Any]:
    settings, published = network_settings(model.name, where)
    known = ModelSpec.model_fields
    return validate(settings, {**published, **model.settings}, where, known).model_dump(mode="json")


def _data_settings(spec: RunSpec) -> dict[str, Any]:
    cls = DATASETS.get(spec.data.name, "data.name")
    known = DataSpec.model_fields
    settings = validate(settings_model(cls), spec.data.settings, "data", known).model_dump(mode="json")
    for key in ("train_split", "val_split"):
        split = getattr(spec.data, key)
        if cls.splits and split not in cls.splits:  # a set without a list takes any name
            raise ConfigError(
                f"data.{key}: {spec.data.name!r} has no split {split!r}{nearest(split, cls.splits)}"
            )
    return {**settings, "crop": list(spec.data.crop or cls.default_crop)}


def _task_loss_tree(loss: TaskLossSpec, where: str) -> Tree:
    cls = TASK_LOSSES.get(loss.kind, f"{where}.kind")
    settings = validate(settings_model(cls), loss.settings, where, TaskLossSpec.model_fields)
    return {**loss.model_dump(mode="json"), **settings.model_dump(mode="json")}


def _loss_tree(loss: LossSpec, where: str) -> Tree:
    cls = LOSSES.get(loss.kind, f"{where}.kind")
    tree = loss.model_dump(mode="json")
    settings = validate(settings_model(cls), loss.settings, where, LossSpec.model_fields)
    tree.update(settings.model_dump(mode="json"))
    unknown = [term for term in loss.weights or {} if term not in cls.terms]
    if unknown:
        raise ConfigError(
            f"{where}.weights.{unknown[0]}: {loss.kind!r} has no such term{nearest(unknown[0], cls.terms)}"
        )
    if loss.weights is not None or (loss.weight is None and len(cls.terms) > 1):
        defaults = {term: float(cls.default_weights.get(term, 1.0)) for term in cls.terms}
        tree["weights"] = {**defaults, **(loss.weights or {})}
    elif loss.weight is None:
        tree["weight"] = float(cls.default_weights.get(cls.terms[0], 1.0))
    return tree
