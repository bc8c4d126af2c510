"""Trials without training: a run's files and reports as `fit` leaves them, in no time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cirkd_ray.cluster.trial import TrialPlan
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import TrainingError
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.rundir import RunDirectory
from tests.tinyrun import tiny_baseline


def stub_run(
    spec: RunSpec,
    directory: RunDirectory,
    callbacks: Sequence[Any],
    resume_from: Path | None,
    pause: float = 0.0,
) -> dict[str, Any]:
    """A run whose mIoU rises to 1 - |lr - 0.01|; it fails for task.aux_weight 2 and can be continued."""
    if spec.task.aux_weight == 2.0:
        (directory.path / "failure.json").write_text(
            json.dumps({"kind": "TrainingError", "message": "not finite"})
        )
        raise TrainingError("not finite")
    checkpoints = sorted(directory.checkpoints.glob("step_*"))
    start = checkpoints[-1] if checkpoints else resume_from
    state = (
        json.loads((start / "state.json").read_text())
        if start
        else {"step": 0, "weights": directory.path.parent.name, "last": {}}
    )
    last: dict[str, Any] = state["last"]
    for step in range(state["step"] + 1, spec.train.steps + 1):
        if step % spec.train.validate_every:
            continue
        time.sleep(pause)
        quality = 1.0 - abs(spec.optim.lr - 0.01)
        last = {"step": step, "miou": quality * step / spec.train.steps, "images_per_second": 1.0}
        directory.append_metrics(last)
        folder = directory.checkpoints / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({**state, "step": step, "last": last}))
        for callback in callbacks:
            callback.after_report(
                run_context=None, metrics=[last], checkpoint=SimpleNamespace(path=str(folder))
            )
    result = {
        "last": last,
        "best": last,
        "steps": spec.train.steps,
        "model": "stub",
        "weights": state["weights"],
    }
    directory.write_result(result)
    return result


def slow_run(
    spec: RunSpec, directory: RunDirectory, callbacks: Sequence[Any], resume_from: Path | None
) -> Any:
    """The same, slow enough to be killed on the way."""
    return stub_run(spec, directory, callbacks, resume_from, pause=1.5)


def stub_plan(folder: Path, steps: int = 4, **space: Any) -> tuple[TrialPlan, SweepSpec]:
    """A sweep of the learning rate of a tiny baseline, with its folder made."""
    tree = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.001, 0.02]}}, "budget": {"trials": 4}}
    sweep = SweepSpec.model_validate({**tree, **space})
    base = tiny_baseline(train={"steps": steps, "validate_every": 1, "checkpoint_every": 1})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(json.dumps(sweep.model_dump(mode="json")))
    return TrialPlan(str(folder), sweep.model_dump(mode="json"), base.to_dict()), sweep
