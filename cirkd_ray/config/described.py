"""What a named class is and which settings it takes, as plain text: for `cirkd losses`, tables and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from cirkd_ray.config.docstrings import text_of
from cirkd_ray.config.registry import Registry, settings_model


class Described(NamedTuple):
    """A setting.

    Attributes:
        name: as it stands in a recipe.
        meaning: what it decides.
        values: its type and bounds.
        default: as YAML writes it.
    """

    name: str
    meaning: str
    values: str
    default: str


class Entry(NamedTuple):
    """A registered class.

    Attributes:
        name: its own.
        text: what it does, with equation and source.
        settings: its own.
        terms: term -> published weight, of losses.
    """

    name: str
    text: str
    settings: tuple[Described, ...]
    terms: Mapping[str, float]

    @property
    def summary(self) -> str:
        """The first sentence."""
        return " ".join(self.text.split("\n\n")[0].split())


def entry_of(registry: Registry[Any], name: str) -> Entry:
    """What is known of the entry `name`.

    Raises:
        ConfigError: there is none.
    """
    cls = registry.get(name)
    weights: Mapping[str, float] = getattr(cls, "default_weights", {})
    terms = {term: float(weights.get(term, 1.0)) for term in getattr(cls, "terms", ())}
    return Entry(name, text_of(cls), tuple(settings_of(settings_model(cls))), terms)


def settings_of(model: type[BaseModel]) -> list[Described]:
    """The fields of a model of settings."""
    schema = model.model_json_schema()
    found = []
    for name, field in schema.get("properties", {}).items():
        values = _values(field, schema.get("$defs", {}))
        default = _written(field["default"]) if "default" in field else ""
        found.append(Described(name, field.get("description", ""), values, default))
    return found


def _values(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Type and bounds in words."""
    if "$ref" in field:
        return _values(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "enum" in field or "const" in field:
        return " | ".join(_written(value) for value in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        return " | ".join(dict.fromkeys(_values(option, definitions) for option in field["anyOf"]))
    kind = field.get("type", "any")
    if kind == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        inside = ", ".join(_values(item, definitions) for item in items)
        return f"[{inside}{', ...' if 'prefixItems' not in field else ''}]"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"), ("maximum", "<="),
        )
        if key in field
    ]  # fmt: skip
    words = {"integer": "whole number", "string": "text", "boolean": "true | false", "object": "mapping"}
    return " ".join([words.get(kind, kind), *bounds])


def _written(value: Any) -> str:
    """A plain value as YAML writes it on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
