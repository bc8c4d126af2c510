"""Trials without training: a run's files and reports as `fit` leaves them, in no time."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cirkd_ray.cluster.donors import hold
from cirkd_ray.cluster.membership import End, Joining, is_to_leave, note_ended
from cirkd_ray.cluster.outcomes import TrialLog
from cirkd_ray.cluster.trial import TrialPlan
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import TrainingError
from cirkd_ray.files import append_line, write_text
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.checkpoint import MANIFEST, STATE, checkpoint_name
from cirkd_ray.train.distributed import World
from cirkd_ray.train.outcome import write_failure
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped
from tests.tinyrun import tiny_baseline


def stub_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """A whole checkpoint of no network; its folder's name tells its step."""
    step = int(folder.name.split("_")[1].partition("-")[0])
    content = json.dumps({**state, "step": step}).encode()
    folder.mkdir(parents=True)
    (folder / STATE).write_bytes(content)
    manifest = {"step": step, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def stub_steps(
    spec: RunSpec, directory: RunDirectory, callbacks: Sequence[Any], resume_from: Path | None
) -> Iterator[int]:
    """A run whose mIoU rises to 1 - |lr - 0.01|, before each of its steps.

    It fails for task.aux_weight 2 and can be resumed.
    """
    if spec.task.aux_weight == 2.0:
        write_failure(directory.path, TrainingError("not finite"))
        raise TrainingError("not finite")
    checkpoints = sorted(directory.checkpoints.glob("step_*"))
    start = checkpoints[-1] if checkpoints else resume_from
    state = (
        json.loads((start / STATE).read_text())
        if start
        else {"step": 0, "weights": directory.path.parent.name, "last": {}}
    )
    if start and start == resume_from:  # its donor deletes it in the end
        write_text(directory.path / "donor.json", json.dumps(state))
    last: dict[str, Any] = state["last"]
    for step in range(state["step"] + 1, spec.train.steps + 1):
        if step % spec.train.validate_every:
            continue
        yield step
        quality = 1.0 - abs(spec.optim.lr - 0.01)
        last = {"step": step, "miou": quality * step / spec.train.steps, "images_per_second": 1.0}
        folder = stub_checkpoint(directory.checkpoints / checkpoint_name(step), {**state, "last": last})
        for callback in callbacks:
            callback.after_report(
                run_context=None, metrics=[last], checkpoint=SimpleNamespace(path=str(folder))
            )
        directory.append_metrics(last)
    result = {
        "last": last,
        "best": last,
        "steps": spec.train.steps,
        "model": "stub",
        "weights": state["weights"],
    }
    directory.write_result(result)


def stub_run(
    spec: RunSpec,
    directory: RunDirectory,
    callbacks: Sequence[Any],
    resume_from: Path | None,
    before_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """All steps of `stub_steps`; returns the result."""
    for step in stub_steps(spec, directory, callbacks, resume_from):
        before_step(step)
    return directory.read_result() or {}


def stub_pack(work: Sequence[dict[str, Any]], folder: Path, holds: bool) -> None:
    """Such runs as a pack: a step of each in its turn; some leave, others join, one of three lacks memory.

    With `holds` a step waits until Tune has the step before of all, which the test writes down, and until
    those that were given a donor's weights, whose process starts again, have come back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    joining = Joining(folder)
    callbacks = [SimpleNamespace(after_report=_held)] if holds else []
    members: dict[Path, tuple[int, Iterator[int]]] = {}
    away: dict[str, float] = {}

    def enter(run: dict[str, Any], list_: str) -> None:
        directory, start = RunDirectory(run["directory"]), run["resume_from"]
        steps = stub_steps(from_tree(run["spec"]), directory, callbacks, start and Path(start))
        members[directory.path] = (0, steps)
        append_line(folder / list_, directory.path.parent.name)
        away.pop(directory.path.parent.name, None)

    for run in work:
        enter(run, "members")
    if len(members) == 3:
        lost = [*members][1]
        del members[lost]
        note_ended(lost, End("TrainingError", "OutOfMemoryError: 8 GiB"))
    while members:
        time.sleep(0.1)
        for run in joining.take(World()):
            enter(run, "joined")
        first = min(at for at, _ in members.values())
        waits = holds and any(_reported(path) < at - 1 for path, (at, _) in members.items())
        waits |= any(time.monotonic() < until for until in away.values())
        for path, (at, steps) in [*members.items()]:
            try:
                if is_to_leave(path):
                    raise Stopped("left")
                if at == first and not waits:
                    members[path] = (next(steps), steps)
            except (StopIteration, Stopped, TrainingError) as how:
                del members[path]
                if holds and isinstance(how, Stopped):
                    away[path.parent.name] = time.monotonic() + 120
                note_ended(
                    path, End() if isinstance(how, StopIteration) else End(type(how).__name__, str(how))
                )


def _reported(run: Path) -> int:
    file = run.parent / "reported"
    return int(file.read_text()) if file.is_file() else 0


def _held(run_context: Any, metrics: Any, checkpoint: Any) -> None:
    hold(Path(checkpoint.path))


def slow_run(
    spec: RunSpec, directory: RunDirectory, callbacks: Sequence[Any], resume_from: Path | None
) -> Any:
    """The same, slow enough to be killed on the way."""
    return stub_run(spec, directory, callbacks, resume_from, lambda step: time.sleep(1.5))


def run_in_step_with_others(
    spec: RunSpec, directory: RunDirectory, callbacks: Sequence[Any], resume_from: Path | None
) -> Any:
    """The same for each of four trials: a step waits until Tune has the step before from all others.

    The test that uses it has Tune write each report down, by `note_report`.
    """
    trial = directory.path.parent

    def wait(step: int) -> None:
        end = time.monotonic() + 900
        while True:
            others = [
                int(path.read_text()) for path in trial.parent.glob("*/reported") if path.parent != trial
            ]
            if step == 1 or sum(other >= step - 1 for other in others) == 3:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"step {step}: the others are at {others}")
            time.sleep(0.05)

    return stub_run(spec, directory, callbacks, resume_from, wait)


def note_report(
    self: TrialLog, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
) -> None:
    """As `on_trial_result` of a TrialLog: Tune has dealt with a report."""
    write_text(self.folder / "trials" / trial.trial_id / "reported", str(result["step"]))


def stub_plan(folder: Path, steps: int = 4, **space: Any) -> tuple[TrialPlan, SweepSpec]:
    """A sweep of the learning rate of a tiny baseline, with its folder made."""
    tree = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.001, 0.02]}}, "budget": {"trials": 4}}
    sweep = SweepSpec.model_validate({**tree, **space})
    base = tiny_baseline(train={"steps": steps, "validate_every": 1, "checkpoint_every": 1})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(json.dumps(sweep.model_dump(mode="json")))
    return TrialPlan(str(folder), sweep.model_dump(mode="json"), base.to_dict()), sweep
