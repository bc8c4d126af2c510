"""The loggers of a run, from its recipe."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.report.loggers.background import InBackground
from cirkd_ray.report.loggers.base import LOGGERS, Logger
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory


def require_loggers(spec: RunSpec) -> list[type[Logger]]:
    """The classes that a recipe names.

    Raises:
        ConfigError: there is no such logger, or its package is not installed here.
    """
    found = [LOGGERS.get(name, "train.loggers") for name in dict.fromkeys(spec.train.loggers)]
    for name, kind in zip(dict.fromkeys(spec.train.loggers), found, strict=True):
        if kind.package and find_spec(kind.package) is None:
            raise ConfigError(
                f"train.loggers: {name} needs the package {kind.package}; pip install 'cirkd-ray[{name}]' on "
                "every node"
            )
    return found


def chosen_loggers(spec: RunSpec, directory: RunDirectory) -> Iterable[Listener]:
    """Loggers of one run, for its main rank.

    Raises:
        ConfigError: as of `require_loggers`.
    """
    kinds = zip(dict.fromkeys(spec.train.loggers), require_loggers(spec), strict=True)
    return [InBackground(name, kind, directory) if kind.service else kind(directory) for name, kind in kinds]
