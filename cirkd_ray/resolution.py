"""Checks the open parts of a RunSpec against the classes that they name, and fills in their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from cirkd_ray.composition import Tree
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.registry import settings_model, validate
from cirkd_ray.types import PADDING_LABEL

if TYPE_CHECKING:
    from cirkd_ray.config import LossSpec, ModelSpec, RunSpec


def resolved_tree(spec: RunSpec) -> Tree:
    """The spec's plain values with every default of the named classes written out.

    Raises:
        ConfigError: an unknown class or setting, with its path and the nearest valid name.
    """
    tree = spec.to_dict()
    _fix_places(tree)
    tree["model"].update(_model_settings(spec.model, "model"))
    if spec.teacher is not None and spec.teacher.model is not None:
        tree["teacher"]["model"].update(_model_settings(spec.teacher.model, "teacher.model"))
    tree["data"].update(_data_settings(spec))
    if spec.distill is not None:
        tree["distill"]["losses"] = {
            name: _loss_tree(loss, f"distill.losses.{name}")
            for name, loss in spec.distill.losses.items()
            if loss is not None
        }
        if not tree["distill"]["losses"]:
            raise ConfigError("distill.losses: no loss is left; set distill=null to train without a teacher")
    return tree


def _fix_places(tree: Tree) -> None:
    """Relative paths are relative to where the command was given: workers run in folders of their own."""
    teacher = tree["teacher"] or {}
    for owner, key in (
        (tree["data"], "root"),
        (tree["model"], "weights"),
        (teacher, "weights"),
        (teacher.get("model") or {}, "weights"),
    ):
        place = owner.get(key)
        if place is not None:
            owner[key] = _fixed(place)
    module, query, arguments = (teacher.get("module") or "").partition("?")
    if query:
        teacher["module"] = f"{module}?{'&'.join(map(_fixed_argument, arguments.split('&')))}"


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
    from cirkd_ray.models.build import model_settings, parse_name

    published = parse_name(model.name, where).defaults
    return validate(model_settings(model.name), {**published, **model.settings}, where).model_dump(
        mode="json"
    )


def _data_settings(spec: RunSpec) -> dict[str, Any]:
    from cirkd_ray.data import DATASETS

    cls = DATASETS.get(spec.data.name)
    settings = validate(settings_model(cls), spec.data.settings, "data").model_dump(mode="json")
    for key in ("train_split", "val_split"):
        split = getattr(spec.data, key)
        if cls.splits and split not in cls.splits:  # a set without a list takes any name
            raise ConfigError(
                f"data.{key}: {spec.data.name!r} has no split {split!r}{nearest(split, cls.splits)}"
            )
    return {**settings, "crop": list(spec.data.crop or cls.default_crop)}


def _loss_tree(loss: LossSpec, where: str) -> Tree:
    from cirkd_ray.losses import LOSSES

    cls = LOSSES.get(loss.kind)
    tree = loss.model_dump(mode="json")
    tree.update(validate(settings_model(cls), loss.settings, where).model_dump(mode="json"))
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


def check_classes(count: int, data: str) -> None:
    """Class indices must fit below the label values that are set aside."""
    if not 2 <= count <= PADDING_LABEL:
        raise ConfigError(f"data: {data!r} has {count} classes; 2 to {PADDING_LABEL} can be trained")


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file, with every loss's and data set's own settings."""
    from cirkd_ray.composition import NOT_INHERITED
    from cirkd_ray.config import RunSpec
    from cirkd_ray.data import DATASETS
    from cirkd_ray.losses import LOSSES
    from cirkd_ray.models.build import model_names

    schema = RunSpec.model_json_schema()
    names = {"type": "string"}
    schema["properties"]["extends"] = {
        "description": f"recipes that this one is laid over; all but {', '.join(NOT_INHERITED)} is inherited",
        "anyOf": [names, {"type": "array", "items": names}],
    }
    schema["required"] = []  # what is missing may be inherited
    definitions = schema["$defs"]
    for definition in definitions.values():
        definition.pop("required", None)
    _choose(
        definitions["LossSpec"], "kind", {name: settings_model(LOSSES.get(name)) for name in LOSSES.names()}
    )
    _choose(
        definitions["DataSpec"],
        "name",
        {name: settings_model(DATASETS.get(name)) for name in DATASETS.names()},
    )
    definitions["ModelSpec"]["properties"]["name"]["examples"] = model_names()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _choose(definition: dict[str, Any], key: str, models: dict[str, type[BaseModel]]) -> None:
    """Add to an open definition the settings that each value of `key` brings."""
    definition["additionalProperties"] = True
    definition["properties"][key]["enum"] = sorted(models)
    definition["allOf"] = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": model.model_json_schema().get("properties", {})},
        }
        for name, model in models.items()
    ]
