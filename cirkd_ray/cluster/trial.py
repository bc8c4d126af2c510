"""One trial of a sweep: a Tune function around a Train run.

A trial's folder holds one run a *generation*: `g0`, and `g1`, `g2`, ... where PBT gave it a donor's weights
and new values. Each has the run's files and `trial.json`: its values, and the checkpoint it started from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.train import UserCallback

from cirkd_ray import errors
from cirkd_ray.cluster.bridge import Fit, Pointer, report, restored
from cirkd_ray.cluster.latency import LATENCY, latency_ms, measured_figures
from cirkd_ray.cluster.train import fit, read_failure
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.applied import differences
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.errors import ConfigError, UserError
from cirkd_ray.files import write_text
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import open_directory

Runner = Callable[[RunSpec, RunDirectory, Sequence[UserCallback], Path | None], Any]
GENERATION, FAILED = "trial.json", "failed.json"


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep share; plain values, so that it can be sent about.

    Attributes:
        folder: the sweep's.
        space: the SweepSpec.
        base: the resolved recipe before a trial's own values, its teacher given by weights.
    """

    folder: str
    space: dict[str, Any]
    base: dict[str, Any]

    def spec(self, values: Mapping[str, Any]) -> RunSpec:
        """The resolved recipe of a trial."""
        settings = SweepSpec.model_validate(self.space).settings(values)
        return from_tree(apply_overrides(self.base, settings))


def make_trainable(plan: TrialPlan, runner: Runner = fit) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs for every trial."""

    def trial(config: dict[str, Any]) -> None:
        run_trial(plan, config, runner, tune.get_context().get_trial_id())

    return trial


def run_trial(plan: TrialPlan, config: Mapping[str, Any], runner: Runner, trial_id: str) -> None:
    """Train one configuration, reporting as it goes.

    Raises:
        UserError: the configuration cannot be trained; kept in the folder, so that a retry ends at once.
    """
    folder = Path(plan.folder) / "trials" / trial_id
    folder.mkdir(parents=True, exist_ok=True)
    _raise_what_failed_before(folder)
    sweep = SweepSpec.model_validate(plan.space)
    directory = None
    try:
        values = sweep.tidy(config)
        pointer = restored()
        spec, directory, parent = prepare(plan, folder, values, pointer)
        figures = _figures(sweep, spec, Path(plan.folder))
        _train(spec, directory, runner, parent, trial_id, figures)
    except UserError as error:
        # What its workers or its configuration met stays; that the cluster is smaller for a while does not.
        if directory is None or read_failure(directory) is not None:
            failure = {"kind": type(error).__name__, "message": str(error)}
            write_text(folder / FAILED, json.dumps(failure))
        raise


def prepare(
    plan: TrialPlan, folder: Path, values: dict[str, Any], pointer: Pointer | None
) -> tuple[RunSpec, RunDirectory, Path | None]:
    """The recipe, the run's directory and the donor's checkpoint if any.

    Where the sweep goes on with other workers, these are in effect.

    Raises:
        ConfigError: a sampled value is not in effect in the recipe that was written.
    """
    sweep = SweepSpec.model_validate(plan.space)
    settings = sweep.settings(values)
    spec = from_tree(apply_overrides(plan.base, settings))
    directory, parent = _generation(folder, values, pointer)
    open_directory(directory, spec, resume=True)
    check_applied(directory.spec(), settings)  # what a reader of run.yaml will see
    check_applied(spec, settings)
    about: dict[str, Any] = {"trial": folder.name, "values": values, "settings": settings}
    about["parent"] = asdict(parent) if parent else None
    write_text(directory.path / GENERATION, json.dumps(about, indent=2))
    return spec, directory, Path(parent.path) if parent else None


def check_applied(spec: RunSpec, settings: Mapping[str, Any]) -> None:
    """Every sampled setting must be the one in effect.

    Raises:
        ConfigError: naming those that are not.
    """
    wrong = differences(spec, settings)
    if wrong:
        raise ConfigError(f"sampled values are not in effect: {'; '.join(wrong)}")


def _generation(
    folder: Path, values: dict[str, Any], pointer: Pointer | None
) -> tuple[RunDirectory, Pointer | None]:
    """The run to go on with, or a new one that starts from another's checkpoint, and that checkpoint."""
    known = sorted(folder.glob("g*/" + GENERATION), key=lambda path: int(path.parent.name[1:]))
    if known:
        last = json.loads(known[-1].read_text())
        parent = Pointer(**last["parent"]) if last["parent"] else None
        foreign = pointer is not None and pointer.trial != folder.name and pointer != parent
        if last["values"] == values and not foreign:
            return RunDirectory(known[-1].parent), parent
    return RunDirectory(folder / f"g{len(known)}"), pointer


def _train(
    spec: RunSpec,
    directory: RunDirectory,
    runner: Runner,
    parent: Path | None,
    trial_id: str,
    figures: dict[str, float],
) -> None:
    """Run and report; of a run with nothing left to do, its last line."""
    every, steps = spec.train.validate_every, spec.train.steps

    def told(row: Mapping[str, Any], path: str | None) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
        place = {"steps": steps, "report": -(-int(row["step"]) // every)}
        pointer = Pointer(trial_id, path, int(row["step"])) if path else None
        report({**numbers, **figures, **place}, pointer)

    if directory.read_result() is not None:
        told(_last_line(directory), None)
        return
    reported, saved = False, (0, "")
    background = Fit(lambda bridge: runner(spec, directory, [bridge], parent))
    for row, path in background.reports():
        if row["step"] >= steps:
            background.join()  # the result is on disk before a scheduler may end the trial
        saved = (row["step"], path) if path else saved  # a checkpoint comes before the same step's validation
        if "miou" in row and background.error is None:
            reported = True
            told(row, saved[1] if saved[0] == row["step"] else None)
    if not reported:  # it started from the last checkpoint of a donor that has finished
        told(_last_line(directory), None)


def _last_line(directory: RunDirectory) -> dict[str, Any]:
    """The last validation of a finished run: its own, or its donor's where it had nothing left to train."""
    rows = [row for row in directory.read_metrics() if "miou" in row]
    last: dict[str, Any] = rows[-1] if rows else (directory.read_result() or {})["last"]
    return last


def _figures(sweep: SweepSpec, spec: RunSpec, folder: Path) -> dict[str, float]:
    """What is known of the student before it is trained, where the sweep asks for it."""
    return latency_ms(spec, folder / LATENCY) if measured_figures(sweep) else {}


def _raise_what_failed_before(folder: Path) -> None:
    path = folder / FAILED
    if path.is_file():
        found = json.loads(path.read_text())
        raise getattr(errors, found["kind"], UserError)(found["message"])
