"""The run's log as JSON lines, for machines that collect logs."""

from __future__ import annotations

from typing import Any

from cirkd_ray.report.loggers.base import LOGGERS, Logger


@LOGGERS.register("json")
class JsonLog(Logger):
    """Begins `log.jsonl`, to which every process of the run adds what it says (`RunDirectory.log`)."""

    service = False

    def start(self, spec: dict[str, Any], step: int) -> None:
        """Also where a run that was begun without it goes on."""
        self.directory.json_log.touch()
