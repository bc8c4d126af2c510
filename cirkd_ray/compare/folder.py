"""What a comparison's folder holds, read back, and what follows from it. Needs no Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cirkd_ray.compare.budget import Share, read_timing
from cirkd_ray.compare.statistics import Interval, Paired, compare_to_baseline, share_of_gap, t_interval
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import read_json
from cirkd_ray.train.outcome import read_outcome
from cirkd_ray.train.rundir import RunDirectory

COMPARISON = "comparison.yaml"
BASELINE = "baseline"


@dataclass(frozen=True)
class CompareData:
    """A comparison.

    Attributes:
        recipes: method -> its recipe, the baseline first.
        results: method -> seed -> result of the finished run.
        curves: method -> seed -> its validations.
        memory: method -> seed -> most GPU memory in GiB, where there was a GPU.
        teachers: method -> mIoU of its teacher on the validation split, where that is known.
        failures: run -> why it failed.
        timing: method -> its share, where the time that methods train is equal and not their steps.
    """

    folder: Path
    recipes: dict[str, dict[str, Any]]
    results: dict[str, dict[int, dict[str, Any]]]
    curves: dict[str, dict[int, list[dict[str, Any]]]]
    memory: dict[str, dict[int, float]]
    teachers: dict[str, float]
    failures: dict[str, str]
    timing: dict[str, Share] = field(default_factory=dict)

    def figures(self, method: str, kind: str = "last", name: str = "miou") -> dict[int, float]:
        """Seed -> a figure of the last or best validation."""
        return {seed: float(result[kind][name]) for seed, result in self.results[method].items()}

    def interval(self, method: str, kind: str = "last") -> Interval:
        """Mean mIoU with its 95 % interval over seeds."""
        return t_interval(list(self.figures(method, kind).values()))

    @cached_property
    def paired(self) -> dict[str, Paired]:
        """Every method's last mIoU against the baseline's, over common seeds."""
        methods = {name: self.figures(name) for name in self.recipes if name != BASELINE}
        return compare_to_baseline(methods, self.figures(BASELINE))

    def gap_closed(self, method: str) -> float:
        """(method - baseline) / (teacher - baseline) of mean last mIoUs over common seeds.

        NaN where the teacher leads by less than `LEAST_GAP`, or there is no common seed.
        """
        ours, baseline = self.figures(method), self.figures(BASELINE)
        common = [seed for seed in ours if seed in baseline]
        if not common:
            return math.nan
        level = sum(baseline[seed] for seed in common) / len(common)
        mean = sum(ours[seed] for seed in common) / len(common)
        return share_of_gap(level, mean, self.teachers.get(method, math.nan))

    def mean_of(self, method: str, name: str) -> float:
        """Mean of a figure of the whole run: `seconds`, `images_per_second`."""
        values = [float(r[name]) for r in self.results[method].values() if r.get(name) is not None]
        return sum(values) / len(values) if values else math.nan


def read_comparison(folder: Path) -> CompareData:
    """Read a comparison's folder, finished or not.

    Raises:
        ConfigError: it is none.
    """
    if not (folder / COMPARISON).is_file():
        raise ConfigError(f"{folder}: no comparison here ({COMPARISON} is missing)")
    methods = read_yaml(folder / COMPARISON)["methods"]
    recipes = {name: {k: v for k, v in tree.items() if k != "_environment"} for name, tree in methods.items()}
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in recipes}
    curves: dict[str, dict[int, list[dict[str, Any]]]] = {name: {} for name in recipes}
    memory: dict[str, dict[int, float]] = {name: {} for name in recipes}
    for path in sorted((folder / "runs").glob("*-s*/run.yaml")):
        name, _, seed = path.parent.name.rpartition("-s")
        run = RunDirectory(path.parent)
        rows, result = run.read_metrics(), run.read_result()
        if name not in recipes:
            continue
        curves[name][int(seed)] = [row for row in rows if "miou" in row]
        used = [float(row["gpu_memory_gib"]) for row in rows if "gpu_memory_gib" in row]
        if used:
            memory[name][int(seed)] = max(used)
        if result is not None:
            results[name][int(seed)] = result
    teachers = read_json(folder / "teachers.json") or {}
    scores = {name: _score(results.get(name, {}), folder / weights) for name, weights in teachers.items()}
    known = {name: score for name, score in scores.items() if score is not None}
    failures, timing = read_outcome(folder)["failures"], read_timing(folder)
    return CompareData(folder, recipes, results, curves, memory, known, failures, timing)


def _score(results: dict[int, dict[str, Any]], weights: Path) -> float | None:
    """A teacher's mIoU on the runs' own validation split, as they measured it.

    Runs of earlier versions did not: then its best validation, as its own run or card tells.
    """
    for result in results.values():
        if "teacher" in result:
            return float(result["teacher"]["miou"])
    folder = weights if weights.is_dir() else weights.parent
    result = read_json(folder / "result.json") or {}
    validation = result.get("best") or (read_json(folder / "model.json") or {}).get("validation") or {}
    miou = validation.get("miou")
    return None if miou is None else float(miou)
