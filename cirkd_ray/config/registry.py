"""Name -> class, filled by a decorator; a package's modules are found and imported when first asked for.

A class's settings are the keyword-only arguments of its `__init__` that have a default: their annotations
(with pydantic's `Field` bounds in `Annotated`) are the one description from which recipes are validated,
the JSON Schema is made and the class is built. A constructor that takes `**common` has the settings of its
base class, too. A required argument is context that the caller supplies (channels, number of classes).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from cirkd_ray.config.docstrings import arguments_of
from cirkd_ray.config.importing import imported, is_import_path
from cirkd_ray.config.roles import Setting
from cirkd_ray.errors import ConfigError, nearest

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Registry(Generic[T]):
    """The classes of one kind.

    Args:
        kind: what messages call an entry, e.g. "loss".
        package: dotted name of the package whose modules register entries on import.
        base: import path of the class that an entry derives from.
        adapt: import path of a function that makes an entry of another class, or None of one that cannot be.
    """

    def __init__(self, kind: str, package: str, base: str, adapt: str | None = None) -> None:
        self.kind, self.package, self.base, self.adapt = kind, package, base, adapt
        self._entries: dict[str, type[T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that files the class under `name`; a second class of that name is an error."""

        def decorate(cls: type[T]) -> type[T]:
            known = self._entries.get(name, cls)
            names = [f"{item.__module__}.{item.__qualname__}" for item in (known, cls)]
            if names[0] != names[1]:
                raise ConfigError(f"{names[1]}: registers the {self.kind} {name!r}, as {names[0]} does")
            self._entries[name] = cls
            return cls

        return decorate

    def discover(self) -> None:
        """Import every module of the package once, so that all decorators have run."""
        if not self._discovered:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._discovered = True

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self.discover()
        return sorted(self._entries)

    def get(self, name: str, where: str = "") -> type[T]:
        """The class of that name, or at that import path, which the setting at `where` gives.

        Raises:
            ConfigError: no such entry; the message offers the nearest name.
        """
        if is_import_path(name):
            return self._imported(name, where or name)
        self.discover()
        if name not in self._entries:
            raise ConfigError(f"{where or name}: no {self.kind} named {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def _imported(self, path: str, where: str) -> type[T]:
        """A class of the user's own."""
        found, base = imported(path, where), imported(self.base, where)
        if not (isinstance(found, type) and issubclass(found, base)) and self.adapt is not None:
            found = imported(self.adapt, where)(found)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(f"{where}: {path!r} is no {self.kind}; derive it from {self.base}")
        return found

    def settings(self, name: str) -> type[BaseModel]:
        """A pydantic model of the entry's settings."""
        return settings_model(self.get(name))

    def models(self) -> list[type[BaseModel]]:
        """The settings of every entry."""
        return [self.settings(name) for name in self.names()]

    def build(self, name: str, context: Mapping[str, Any], settings: Mapping[str, Any], where: str = "") -> T:
        """Build the entry from caller-supplied `context` and user-supplied, validated `settings`.

        Raises:
            ConfigError: an unknown, ill-typed or out-of-bounds setting, named with its path.
        """
        cls = self.get(name)
        values = validate(settings_model(cls), settings, where or f"{self.kind} {name!r}")
        return cls(**context, **{key: getattr(values, key) for key in type(values).model_fields})


def settings_model(cls: type) -> type[BaseModel]:
    """The pydantic model of `cls`'s settings, inherited ones included; unknown keys are errors."""
    if cls not in _MODELS:
        _MODELS[cls] = _make_settings_model(cls)
    return _MODELS[cls]


_MODELS: dict[type, type[BaseModel]] = {}


def _make_settings_model(cls: type) -> type[BaseModel]:
    found: dict[str, tuple[Any, Any]] = {}
    meanings: dict[str, str] = {}
    for base in cls.__mro__:
        meanings = {**arguments_of(base), **meanings}
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters
        hints = get_type_hints(constructor, include_extras=True)
        for name, parameter in parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in found:  # a subclass's own goes first
                found[name] = (hints[name], parameter.default)
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    fields: dict[str, Any] = {
        name: (hint, Field(default, description=meanings.get(name)))
        for name, (hint, default) in found.items()
        if default is not inspect.Parameter.empty
    }
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
    return create_model(f"{cls.__name__}Settings", __config__=config, **fields)


def validate(model: type[M], values: Mapping[str, Any], where: str, known: Iterable[str] = ()) -> M:
    """`model(**values)` with errors of one line a setting that name its path and the nearest valid key.

    Args:
        model: describes the settings.
        values: what was given.
        where: the section, for messages.
        known: settings of the section that another model describes.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(describe(error, model, where, known)) from None


def describe(error: ValidationError, model: type[BaseModel], where: str, known: Iterable[str] = ()) -> str:
    """pydantic's findings as `PATH: what is wrong`, one a line, at most five."""
    lines = []
    for item in error.errors()[:5]:
        loc = tuple(part for part in item["loc"] if not str(part).startswith("~"))  # which form of a setting
        path = ".".join([*([where] if where else []), *map(str, loc)])
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: no such setting{_hint(model, loc, known)}")
        elif item["type"] == "missing":
            lines.append(f"{path}: {item['msg']}")
        elif isinstance(item["input"], Mapping) and (beside := _beside(model, loc, item["input"])):
            section = path.rpartition(".")[0]
            lines.append(
                f"{path}: takes one value, not a mapping; give {' and '.join(beside)} to {section} itself, "
                f"as in `{section}: {{{beside[0]}: ...}}`"
            )
        else:
            short = loc and isinstance(item["input"], str | int | float | bool | list | tuple | None)
            shown = f" (got {reprlib.repr(item['input'])})" if short else ""
            prefix = f"{path}: " if path else ""
            lines.append(f"{prefix}{item['msg'].removeprefix('Value error, ')}{shown}")
    return "\n".join(lines)


def _hint(model: type[BaseModel], path: tuple[int | str, ...], known: Iterable[str]) -> str:
    """The nearest setting beside an unknown one, or the one of its very name in another section."""
    *sections, last = path
    beside = _fields_at(model, tuple(sections))
    hint = nearest(str(last), beside if sections else {*beside, *known})
    elsewhere = [f"{name}.{last}" for name in model.model_fields if last in _fields_at(model, (name,))]
    return hint if "did you mean" in hint or not elsewhere else f"; did you mean {elsewhere[0]!r}?"


def _beside(model: type[BaseModel], path: tuple[int | str, ...], given: Mapping[Any, Any]) -> list[str]:
    """The keys of a mapping that was given to one setting, where they are settings beside it."""
    if not path or _fields_at(model, path):
        return []
    names = _fields_at(model, path[:-1])
    return [str(key) for key in given] if given and all(str(key) in names for key in given) else []


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The field names of the nested model at `path`, as far as it can be followed."""
    at = Setting(section=model)
    for part in path:
        at = at.inside().get(str(part), Setting())
    return list(at.inside())


LOSSES: Registry[Any] = Registry("loss", "cirkd_ray.losses", "cirkd_ray.losses.base:DistillationLoss")
TASK_LOSSES: Registry[Any] = Registry(
    "task loss", "cirkd_ray.losses.tasks", "cirkd_ray.losses.tasks.base:TaskTerm"
)
DATASETS: Registry[Any] = Registry(
    "data set", "cirkd_ray.data", "cirkd_ray.data.base:SegmentationDataset", "cirkd_ray.data.own:adapted"
)
HEADS: Registry[Any] = Registry(
    "segmentation head", "cirkd_ray.models.heads", "cirkd_ray.models.heads.base:Head"
)


def network_settings(name: str, where: str) -> tuple[type[BaseModel], dict[str, Any]]:
    """The settings of a network, and the published defaults that its name stands for.

    A network's name is composed (`HEAD:BACKBONE`), so there is no class to register. Like the registries,
    this finds the module by its name when it is first asked for: configuration imports nothing that it
    describes.

    Raises:
        ConfigError: an unknown name, head or backbone.
    """
    build = importlib.import_module(_NETWORKS)
    return build.model_settings(name), build.parse_name(name, where).defaults


def network_models() -> list[type[BaseModel]]:
    """The settings of every head, and those that every network has."""
    return [*HEADS.models(), importlib.import_module(_NETWORKS).NetworkSettings]


def network_names() -> list[str]:
    """The networks of the published tables; any `HEAD:TIMM_NAME` is a network as well."""
    names: list[str] = importlib.import_module(_NETWORKS).model_names()
    return names


_NETWORKS = "cirkd_ray.models.build"
