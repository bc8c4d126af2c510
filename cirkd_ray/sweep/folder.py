"""What a sweep's folder holds, read back: trials, controls, finalists. Needs no Ray."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cirkd_ray.config.composition import read_yaml
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import read_json
from cirkd_ray.train.outcome import read_outcome, write_outcome
from cirkd_ray.train.rundir import RunDirectory

SPACE = "sweep.yaml"
EXPIRED = "budget.hours is spent"
"""The reason of a sweep, and of its trials, that `budget.hours` has cut off."""


@dataclass(frozen=True)
class Trial:
    """One configuration.

    Attributes:
        id: the name of its folder.
        values: the sampled values by dotted path, of the last generation.
        settings: what these values set in the recipe.
        status: running, finished, stopped, expired (cut off by `budget.hours`) or failed.
        reason: why it failed.
        rows: its validations, first to last, over all generations.
        steps: the steps that it would train without being stopped.
        generations: 1, or more where PBT exchanged its weights. One without a validation yet does not count:
            values, settings and rows belong together.
        parents: (step, trial) of each exchange.
        extra: figures measured beside its training, such as `latency_ms`.
    """

    id: str
    values: dict[str, Any]
    settings: dict[str, Any]
    status: str
    reason: str
    rows: tuple[dict[str, Any], ...]
    steps: int
    generations: int
    parents: tuple[tuple[int, str], ...]
    extra: dict[str, float]

    @property
    def step(self) -> int:
        """The last validation's."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def figure(self, metric: str) -> float:
        """A metric at the last validation; NaN where there is none."""
        found = self.rows[-1].get(metric, self.extra.get(metric)) if self.rows else None
        return math.nan if found is None else float(found)

    @property
    def trained_steps(self) -> int:
        """Steps that this trial trained itself: not those of its donors."""
        return sum(int(row["_new"]) for row in self.rows)


@dataclass(frozen=True)
class SweepData:
    """A sweep, as its folder tells.

    Attributes:
        space: the tree of its SweepSpec.
        controls, finalists: name -> seed -> result of the finished runs.
        failures: `controls/NAME-sSEED` or `finalists/NAME-sSEED` -> why it failed.
    """

    folder: Path
    space: dict[str, Any]
    trials: tuple[Trial, ...]
    controls: dict[str, dict[int, dict[str, Any]]]
    finalists: dict[str, dict[int, dict[str, Any]]]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return str(next(iter(self.space["metric"])))

    @property
    def sign(self) -> int:
        """1 where more is better."""
        return 1 if self.space["metric"][self.metric] == "max" else -1

    @cached_property
    def ranked(self) -> list[Trial]:
        """Trials with a result, best first: by how far they came (whole runs first), then by the metric."""
        known = [trial for trial in self.trials if trial.rows and trial.status != "failed"]
        usable = [trial for trial in known if not math.isnan(trial.figure(self.metric))]
        return sorted(
            usable,
            key=lambda t: (-(t.step / t.steps if t.steps else 0), -self.sign * t.figure(self.metric), t.id),
        )

    @property
    def steps_spent(self) -> int:
        """Training steps of all trials."""
        return sum(trial.trained_steps for trial in self.trials)

    @property
    def steps_planned(self) -> int:
        """Training steps that all trials would have had without early stopping."""
        return sum(trial.steps for trial in self.trials)

    def steps_left_out(self, status: str) -> int:
        """Steps that the trials of a status were planned to train and did not."""
        return sum(max(0, t.steps - t.trained_steps) for t in self.trials if t.status == status)


def read_sweep(folder: Path) -> SweepData:
    """Read a sweep's folder, finished or not.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    if not (folder / SPACE).is_file():
        raise ConfigError(f"{folder}: no sweep here ({SPACE} is missing)")
    space = read_yaml(folder / SPACE)
    latencies = _latencies(folder)
    trials = [_trial(path, latencies) for path in sorted((folder / "trials").glob("*/")) if path.is_dir()]
    return SweepData(
        folder,
        space,
        tuple(trial for trial in trials if trial is not None),
        _runs(folder / "controls"),
        _runs(folder / "finalists"),
        read_outcome(folder)["failures"],
    )


def write_expired(folder: Path) -> None:
    """Write down that `budget.hours` has ended the sweep's search, or cut off a trial."""
    write_outcome(folder, status="expired", reason=EXPIRED)


def is_expired(folder: Path) -> bool:
    """Whether `budget.hours` has ended the sweep's search."""
    return bool(read_outcome(folder)["status"] == "expired")


def _trial(folder: Path, latencies: dict[str, dict[str, float]]) -> Trial | None:
    runs = sorted(folder.glob("g[0-9]*/trial.json"), key=lambda path: int(path.parent.name[1:]))
    outcome = read_outcome(folder)
    if not runs:
        return Trial(folder.name, {}, {}, outcome["status"], outcome["reason"], (), 0, 0, (), {})
    generations = [_generation(path.parent) for path in runs]
    last = max((n for n, (_, rows) in enumerate(generations) if rows), default=len(runs) - 1)
    kept = generations[: last + 1]
    about = kept[-1][0]
    recipe = read_yaml(runs[last].parent / "run.yaml")
    return Trial(
        folder.name,
        about["values"],
        about["settings"],
        outcome["status"],
        outcome["reason"],
        tuple(row for _, rows in kept for row in rows),
        int(recipe["train"]["steps"]),
        len(kept),
        tuple((a["parent"]["step"], str(a["parent"]["trial"])) for a, _ in kept if a["parent"]),
        latencies.get(_network(recipe), {}),
    )


def _generation(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A generation's `trial.json`, and its validations, each with the steps trained since the one before."""
    about = read_json(folder / "trial.json") or {"parent": None, "values": {}, "settings": {}}
    number, run = int(folder.name[1:]), RunDirectory(folder)
    step = about["parent"]["step"] if about["parent"] else 0
    rows = []
    for row in run.read_metrics():
        if "miou" in row:
            rows.append({**row, "_new": int(row["step"]) - step, "_generation": number})
            step = int(row["step"])
    result = run.read_result()
    if not rows and result is not None:  # its donor had finished: the figures are the donor's
        rows.append({**result["last"], "_new": 0, "_generation": number})
    return about, rows


def _latencies(folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    for path in (folder / "latency").glob("*.json"):
        measured = read_json(path) or {}
        found[json.dumps(measured.pop("model"), sort_keys=True)] = measured
    return found


def _network(recipe: dict[str, Any]) -> str:
    return json.dumps(recipe["model"], sort_keys=True)


def _runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Name -> seed -> result of the finished runs `NAME-sSEED`."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-s*/result.json")):
        name, _, seed = path.parent.name.rpartition("-s")
        if seed.isdecimal():
            found.setdefault(name, {})[int(seed)] = read_json(path) or {}
    return found
