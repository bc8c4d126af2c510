"""What became of each trial, written while a sweep runs."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from cirkd_ray.cluster.stopping import ask_to_leave, has_stopped, may_stay
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.report.sweep import figure, figure_name
from cirkd_ray.sweep.folder import SPACE, write_expired
from cirkd_ray.train.outcome import OUTCOME, read_failure, write_outcome
from cirkd_ray.train.stop import asked


class TrialLog(Callback):  # type: ignore[misc]
    """Writes `outcome.json` into the folder of each trial that has ended, and says so on standard output.

    Where `budget.hours` ends the search, it writes that into the sweep's folder before Tune acts on it: Tune
    remembers that the search is over, but not why, and a resumed sweep could not say so.

    Args:
        folder: the sweep's.
        metric: shown with each trial.
        total: number of trials of the sweep.
        packed: trials are trained in packs, which those that have ended leave.
    """

    def __init__(self, folder: str, metric: str, total: int, packed: bool = False) -> None:
        self.folder, self.metric, self.total, self.packed = Path(folder), metric, total, packed
        self.deadline = math.inf

    def setup(self, *args: Any, **info: Any) -> None:
        """Take the hours of this call; not those that the sweep began with."""
        hours = read_yaml(self.folder / SPACE).get("budget", {}).get("hours")
        self.deadline = time.monotonic() + 3600 * hours if hours else math.inf

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the time before Tune looks at its own clock, which was started later.

        A search that is asked to stop ends when the runs of its trials have stopped.
        """
        if time.monotonic() >= self.deadline:
            write_expired(self.folder)
            self.deadline = math.inf
        running = [trial.trial_id for trial in trials if trial.status == "RUNNING"]
        if asked() and all(has_stopped(name) for name in running):
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune saves its state and ends

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It runs, perhaps again: what became of it before does not count."""
        folder = self.folder / "trials" / trial.trial_id
        (folder / OUTCOME).unlink(missing_ok=True)
        if self.packed:
            may_stay(folder)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has come to its end, or its scheduler has stopped it."""
        last = trial.last_result or {}
        whole = last.get("step") is not None and last.get("step") == last.get("steps")
        self._write(trial.trial_id, "finished" if whole else "stopped", "", last)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has failed for good."""
        self._write(trial.trial_id, "failed", self._reason(trial), trial.last_result or {})

    def _reason(self, trial: Any) -> str:
        failure = read_failure(self.folder / "trials" / trial.trial_id)
        if failure is not None:
            return str(failure)
        file = trial.error_file
        lines = Path(file).read_text().strip().splitlines() if file and Path(file).is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "its process was lost")

    def _write(self, trial_id: str, status: str, reason: str, last: dict[str, Any]) -> None:
        from rich.console import Console

        write_outcome(self.folder / "trials" / trial_id, status=status, reason=reason)
        if self.packed:
            ask_to_leave(self.folder / "trials" / trial_id)
        ended = len(list((self.folder / "trials").glob(f"*/{OUTCOME}")))
        value = last.get(self.metric)
        score = ""
        if value is not None:
            score = f" at step {last.get('step')}, {figure_name(self.metric)} {figure(value, self.metric)}"
        if score and self.metric == "miou" and over_classes(last):
            score += f" over {over_classes(last)}"
        text = f"trial {trial_id}: {status}{score}{': ' + reason if reason else ''}"
        console = Console(soft_wrap=True)
        console.print(f"{text} ({ended} of {self.total})", highlight=False, markup=False)
