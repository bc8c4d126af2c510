"""What a sweep's folder holds, read back: trials, controls, finalists. Needs no Ray."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cirkd_ray.composition import read_yaml
from cirkd_ray.engine.rundir import RunDirectory
from cirkd_ray.errors import ConfigError


@dataclass(frozen=True)
class Trial:
    """One configuration.

    Attributes:
        id: the name of its folder.
        values: what was sampled, by dotted path; of the last generation where they changed on the way.
        settings: what that set in the recipe.
        status: running, finished, stopped or failed.
        reason: why it failed.
        rows: its validations, first to last, over all generations.
        steps: how many it would have had.
        generations: 1, or more where PBT exchanged its weights.
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
        """Steps that it really did: those before an exchange count, those of the donor do not."""
        return sum(int(row["_new"]) for row in self.rows)


@dataclass(frozen=True)
class SweepData:
    """A sweep."""

    folder: Path
    space: dict[str, Any]
    trials: tuple[Trial, ...]
    controls: dict[str, dict[int, dict[str, Any]]]
    finalists: dict[str, dict[int, dict[str, Any]]]

    @property
    def metric(self) -> str:
        """The one that ranks."""
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


def read_sweep(folder: Path) -> SweepData:
    """Read a sweep's folder, finished or not.

    Raises:
        ConfigError: it is none.
    """
    if not (folder / "sweep.yaml").is_file():
        raise ConfigError(f"{folder}: no sweep here (sweep.yaml is missing)")
    space = read_yaml(folder / "sweep.yaml")
    latencies = _latencies(folder)
    trials = [_trial(path, latencies) for path in sorted((folder / "trials").glob("*/")) if path.is_dir()]
    return SweepData(
        folder,
        space,
        tuple(trial for trial in trials if trial is not None),
        _runs(folder / "controls"),
        _runs(folder / "finalists"),
    )


def _trial(folder: Path, latencies: dict[str, dict[str, float]]) -> Trial | None:
    runs = sorted(folder.glob("g*/trial.json"), key=lambda path: int(path.parent.name[1:]))
    outcome = _json(folder / "outcome.json") or {"status": "running", "reason": ""}
    if not runs:
        return Trial(folder.name, {}, {}, outcome["status"], outcome["reason"], (), 0, 0, (), {})
    rows: list[dict[str, Any]] = []
    parents = []
    about: dict[str, Any] = {}
    for path in runs:
        about = json.loads(path.read_text())
        start = about["parent"]["step"] if about["parent"] else 0
        if about["parent"]:
            parents.append((start, str(about["parent"]["trial"])))
        for row in RunDirectory(path.parent).read_metrics():
            if "miou" in row:
                rows.append(
                    {**row, "_new": int(row["step"]) - start, "_generation": int(path.parent.name[1:])}
                )
                start = int(row["step"])
    recipe = read_yaml(runs[-1].parent / "run.yaml")
    return Trial(
        folder.name,
        about["values"],
        about["settings"],
        outcome["status"],
        outcome["reason"],
        tuple(rows),
        int(recipe["train"]["steps"]),
        len(runs),
        tuple(parents),
        latencies.get(_network(recipe), {}),
    )


def _latencies(folder: Path) -> dict[str, dict[str, float]]:
    found = {}
    for path in (folder / "latency").glob("*.json"):
        measured = json.loads(path.read_text())
        found[json.dumps(measured.pop("model"), sort_keys=True)] = measured
    return found


def _network(recipe: dict[str, Any]) -> str:
    return json.dumps(recipe["model"], sort_keys=True)


def _runs(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Name -> seed -> result of the finished runs `NAME-sSEED`."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-s*/result.json")):
        name, _, seed = path.parent.name.rpartition("-s")
        found.setdefault(name, {})[int(seed)] = json.loads(path.read_text())
    return found


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found
