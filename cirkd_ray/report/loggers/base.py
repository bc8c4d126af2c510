"""What a logger is: a listener of a run that `train.loggers` names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from cirkd_ray.config.composition import flatten
from cirkd_ray.config.registry import Registry
from cirkd_ray.files import write_text
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory

_NOT_IN_NAMES = re.compile(r"[^\w./ -]")


class Logger(Listener):
    """Keeps what a run tells, in any of the methods of `Listener`.

    Args:
        directory: the run's; `directory.labels` says what it is called.

    Attributes:
        service: it may be away. Then its methods are called in a thread of their own, and what they raise is
            said once and ends nothing. A logger that writes into the run's folder says False: the run waits
            for a full disk, and loses no line.
        package: that it needs, and that the extra of its name installs; "" for none.
    """

    service: ClassVar[bool] = True
    package: ClassVar[str] = ""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def remembered(self, name: str) -> str | None:
        """What an earlier start of this run remembered, such as the id that a service knows it by."""
        place = self.directory.path / "loggers" / name
        return place.read_text(encoding="utf-8").strip() if place.is_file() else None

    def remember(self, name: str, value: str) -> None:
        """Keep it in the run's folder: a run that is resumed goes on under the same id."""
        place = self.directory.path / "loggers" / name
        place.parent.mkdir(exist_ok=True)
        write_text(place, f"{value}\n")


LOGGERS: Registry[Logger] = Registry(
    "logger", "cirkd_ray.report.loggers", "cirkd_ray.report.loggers.base:Logger"
)


def plain_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings by dotted path, as values that every service takes."""
    flat = flatten(dict(spec)).items()
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in flat
    }


def plain_figures(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a line, by names that every service takes."""
    return {
        _NOT_IN_NAMES.sub("_", f"{prefix}{name}"): float(value)
        for name, value in metrics.items()
        if isinstance(value, bool | int | float) and math.isfinite(value)
    }
