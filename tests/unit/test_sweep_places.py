"""Where the trials of a sweep run, and what of a trial is remembered when it runs again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cirkd_ray.cluster.capacity import driver_resources, placed
from cirkd_ray.cluster.outcomes import TrialLog
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.cluster.trial import TrialPlan, prepare, run_trial
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError, TrainingError, UserError
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.outcome import FAILURE, OUTCOME, write_failure
from cirkd_ray.train.rundir import RunDirectory
from tests.tinyrun import tiny_baseline

SPACE = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.001, 0.1]}}}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 99, 100, 5000])
def test_the_place_on_the_head_admits_so_many_and_leaves_room(count: int) -> None:
    pbt = SweepSpec.model_validate({**SPACE, "scheduler": {"name": "pbt"}})
    share = driver_resources(pbt, count)["node:__internal_head__"]
    assert count * share <= 1
    if count < 90:
        assert (count + 1) * share > 1  # one more does not fit
        assert 1 - count * share > 1e-3  # another run's driver does


def test_trials_keep_the_places_of_the_sweep() -> None:
    base = tiny_baseline(cluster={"device": "auto", "workers": "auto"})
    found = placed(SweepSpec.model_validate(SPACE), base, Plan(4, 1.0, 1)).cluster
    assert (found.device, found.workers, found.autoscaling) == ("cuda", 4, True)
    resizing = {**SPACE, "parameters": {"train.batch_size": {"choice": [4, 6]}}}
    found = placed(SweepSpec.model_validate(resizing), base, Plan(2, 1.0, 0)).cluster
    assert (found.device, found.workers) == ("cpu", "auto")


@pytest.mark.ray
def test_that_a_run_does_not_fit_now_is_not_remembered(ray_cluster: None, tmp_path: Path) -> None:
    plan = TrialPlan(
        str(tmp_path),
        SweepSpec.model_validate(SPACE).model_dump(mode="json"),
        tiny_baseline(train={"steps": 2}).to_dict(),
    )

    def no_room(spec: RunSpec, directory: RunDirectory, callbacks: object, parent: object) -> None:
        raise ConfigError("cluster.workers: the run needs 2 x 1 CPU, the cluster has 0 CPU")

    def left_its_reason(spec: RunSpec, directory: RunDirectory, callbacks: object, parent: object) -> None:
        write_failure(directory.path, TrainingError("not finite"))
        raise TrainingError("not finite")

    for train, kept in ((no_room, False), (left_its_reason, True)):
        with pytest.raises(UserError):
            run_trial(plan, {"optim.lr": 0.01}, train, "t")
        assert (tmp_path / "trials" / "t" / FAILURE).exists() is kept


def test_a_trial_that_is_continued_takes_other_workers(tmp_path: Path) -> None:
    sweep = SweepSpec.model_validate(SPACE)
    for workers in (2, 1):
        base = tiny_baseline(cluster={"workers": workers})
        plan = TrialPlan(str(tmp_path), sweep.model_dump(mode="json"), base.to_dict())
        spec, directory, _ = prepare(plan, tmp_path / "t", {"optim.lr": 0.01}, None)
        assert spec.cluster.workers == workers
    assert directory.path.name == "g0"


def test_an_outcome_is_forgotten_when_the_trial_runs_again(tmp_path: Path) -> None:
    log, trial = TrialLog(str(tmp_path), "miou", 2), SimpleNamespace(trial_id="t", last_result={})
    log.on_trial_complete(1, [], trial)
    assert (tmp_path / "trials" / "t" / OUTCOME).exists()
    log.on_trial_start(1, [], trial)
    assert not (tmp_path / "trials" / "t" / OUTCOME).exists()


def test_the_miou_of_a_trial_says_over_how_many_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = {"step": 4, "steps": 4, "miou": 0.5, "miou_classes": 2, "classes": 3}
    log, trial = TrialLog(str(tmp_path), "miou", 2), SimpleNamespace(trial_id="t", last_result=last)
    log.on_trial_complete(1, [], trial)
    assert "mIoU % 50.00 over 2 of 3 classes" in capsys.readouterr().out


def test_students_are_measured_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirkd_ray.cluster import latency

    seen: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        latency,
        "latency_ms",
        lambda spec, folder: seen.append((spec.model.name, spec.model.settings["head_channels"])),
    )
    names = ["deeplabv3:mobilenetv3_small_050", "deeplabv3:mobilenetv3_small_100"]
    parameters = {
        "model.name": {"choice": names},
        "model.head_channels": {"quniform": [16, 32, 16]},
        "optim.lr": {"uniform": [0.1, 0.2]},
    }
    space = {**SPACE, "parameters": parameters, "metric": {"miou": "max", "latency_ms": "min"}}
    latency.measure_students(SweepSpec.model_validate(space), tiny_baseline(), tmp_path)
    assert seen == [(name, width) for name in names for width in (16, 32)]
    latency.measure_students(SweepSpec.model_validate(SPACE), tiny_baseline(), tmp_path)
    assert len(seen) == 4
