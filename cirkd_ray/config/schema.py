"""JSON Schema of a recipe file, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from cirkd_ray.config.composition import NOT_INHERITED
from cirkd_ray.config.registry import DATASETS, LOSSES, TASK_LOSSES, network_names
from cirkd_ray.config.spec import RunSpec


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a recipe file, with every loss's and data set's own settings."""
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
    named = (
        ("LossSpec", "kind", LOSSES),
        ("TaskLossSpec", "kind", TASK_LOSSES),
        ("DataSpec", "name", DATASETS),
    )
    for name, key, registry in named:
        _choose(definitions[name], key, {entry: registry.settings(entry) for entry in registry.names()})
    definitions["ModelSpec"]["properties"]["name"]["examples"] = network_names()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _choose(definition: dict[str, Any], key: str, models: dict[str, type[BaseModel]]) -> None:
    """Add to an open definition the settings that each value of `key` brings."""
    definition["additionalProperties"] = True
    of_its_own = {"pattern": "[.:]", "description": "package.module:Class"}
    definition["properties"][key]["anyOf"] = [{"enum": sorted(models)}, of_its_own]
    definition["allOf"] = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": model.model_json_schema().get("properties", {})},
        }
        for name, model in models.items()
    ]
