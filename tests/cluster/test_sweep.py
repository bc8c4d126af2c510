"""Sweeps under Ray Tune with trials that do not train: schedulers, searchers, failures, exchanges."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.util import placement_group_table
from ray.util.state import list_actors

from cirkd_ray.cluster.outcomes import TrialLog
from cirkd_ray.cluster.pool import Job, run_jobs
from cirkd_ray.cluster.sweep import make_tuner
from cirkd_ray.sweep.folder import SweepData, read_sweep
from tests.cluster.sweep_stubs import note_report, run_in_step_with_others, stub_plan, stub_run
from tests.tinyrun import tiny_baseline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


def swept(folder: Path, steps: int = 4, at_a_time: int = 4, train: Any = stub_run, **space: Any) -> SweepData:
    plan, sweep = stub_plan(folder, steps, **space)
    make_tuner(plan, sweep, steps, 1, at_a_time, train).fit()
    return read_sweep(folder)


def test_a_random_sweep_ranks_its_trials_and_records_a_failure(ray_cluster: None, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"uniform": [0.001, 0.02]}, "task.aux_weight": {"choice": [0.5, 1.0, 2.0]}}
    space: dict[str, Any] = {"parameters": parameters, "budget": {"trials": 4}}
    data = swept(tmp_path / "s", **space)
    assert len(data.trials) == 4
    expected = {True: "failed", False: "finished"}
    for trial in data.trials:
        if trial.values:
            assert trial.status == expected[trial.values["task.aux_weight"] == 2.0]
    failed = [trial for trial in data.trials if trial.status == "failed"]
    assert failed
    assert {trial.reason for trial in failed} == {"not finite"}
    best = data.ranked[0]
    assert best.figure("miou") == max(trial.figure("miou") for trial in data.ranked)
    assert abs(best.settings["optim.lr"] - 0.01) == min(
        abs(t.settings["optim.lr"] - 0.01) for t in data.ranked
    )
    plan, sweep = stub_plan(tmp_path / "s", **{**space, "budget": {"trials": 4, "hours": 2}})
    held = make_tuner(plan, sweep, 4, 1, 3, stub_run)._local_tuner._tune_config
    assert (held.max_concurrent_trials, held.time_budget_s) == (3, 7200)  # not those of the first call


@pytest.mark.slow
def test_asha_with_tpe_stops_bad_trials_early(ray_cluster: None, tmp_path: Path) -> None:
    """One at a time: else chance decides whether a bad trial comes to a rung after better ones."""
    data = swept(
        tmp_path / "s",
        steps=8,
        at_a_time=1,
        budget={"trials": 8},
        scheduler={"name": "asha", "reduction_factor": 2},
        searcher={"name": "tpe"},
        parameters={"optim.lr": {"uniform": [0.001, 0.9]}},
    )
    assert {trial.status for trial in data.trials} == {"finished", "stopped"}
    assert data.steps_spent < data.steps_planned == 64


def test_an_exploited_trial_starts_from_the_donors_weights(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialLog, "on_trial_result", note_report)
    data = swept(
        tmp_path / "s",
        steps=12,
        train=run_in_step_with_others,
        budget={"trials": 4},
        scheduler={"name": "pbt", "perturb_every": 3, "quantile": 0.25},
        parameters={"optim.lr": {"uniform": [0.001, 0.9]}},
    )
    exchanged = [trial for trial in data.trials if trial.generations > 1]
    assert exchanged
    for trial in exchanged:
        last = data.folder / "trials" / trial.id / f"g{trial.generations - 1}"
        about = json.loads((last / "trial.json").read_text())
        donor = json.loads((last / "donor.json").read_text())
        assert about["parent"]["path"].startswith(f"{about['parent']['trial']}/g")
        assert about["parent"]["step"] == donor["step"] > 0
        result = json.loads((last / "result.json").read_text())
        assert result["weights"] == donor["weights"]
        assert result["last"]["step"] == 12
        if about["parent"]["step"] == 12:  # the donor had finished: there was nothing left to train
            assert not (last / "checkpoints").exists()
            assert result["last"] == donor["last"]
        assert trial.trained_steps + sum(step for step, _ in trial.parents) >= trial.step
    assert all(0.001 <= trial.values["optim.lr"] <= 0.9 for trial in data.trials)


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "searcher"), [("hyperband", "random"), ("median", "tpe")])
def test_the_other_schedulers_come_to_an_end(
    ray_cluster: None, tmp_path: Path, scheduler: str, searcher: str
) -> None:
    data = swept(tmp_path / "s", scheduler={"name": scheduler}, searcher={"name": searcher}, at_a_time=2)
    assert len(data.ranked) == 4
    assert any(trial.status == "finished" for trial in data.trials)


@pytest.mark.slow
def test_several_metrics_are_searched_for_together(ray_cluster: None, tmp_path: Path) -> None:
    data = swept(
        tmp_path / "s",
        metric={"miou": "max", "images_per_second": "max"},
        searcher={"name": "tpe"},
        at_a_time=2,
    )
    assert [trial.status for trial in data.trials] == ["finished"] * 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_trials_leave_nothing_behind(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def left() -> tuple[int, int, int]:
        """Actors alive, placement groups not removed, and temporary files and folders of ours."""
        actors = [actor for actor in list_actors(limit=10_000) if actor.state == "ALIVE"]
        groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
        return len(actors), len(groups), len(list(Path(tempfile.gettempdir()).glob("cirkd-*")))

    swept(tmp_path / "warm", steps=2, at_a_time=2, budget={"trials": 2})
    before, process, sizes = left(), psutil.Process(), []
    for number, trials in enumerate((20, 200)):
        start = time.monotonic()
        data = swept(tmp_path / f"s{number}", steps=2, at_a_time=2, budget={"trials": trials})
        seconds = (time.monotonic() - start) / trials
        sizes.append(process.memory_info().rss / 2**20)
        assert [trial.status for trial in data.trials] == ["finished"] * trials
        with capsys.disabled():
            print(f"\n{trials} trials: {seconds:.2f} s each, driver {sizes[-1]:.0f} MiB, left {left()}")
    end = time.monotonic() + 60
    while left() != before and time.monotonic() < end:
        time.sleep(1)
    assert left() == before
    assert sizes[1] - sizes[0] < 150


def test_a_pool_runs_what_is_left_and_survives_failures(ray_cluster: None, tmp_path: Path) -> None:
    good = tiny_baseline(train={"steps": 2, "validate_every": 1})
    bad = tiny_baseline(train={"steps": 2, "validate_every": 1}, task={"aux_weight": 2.0})
    jobs = [Job(name, spec, tmp_path / name) for name, spec in (("a", good), ("bad", bad), ("b", good))]
    said: list[str] = []
    found = run_jobs(jobs, 2, said.append, stub_run)
    assert list(found) == ["a", "bad", "b"]
    assert found["bad"] == "not finite"
    assert isinstance(found["a"], dict)
    assert found["a"]["last"]["step"] == 2
    assert sorted(text.split(" (")[0] for text in said) == [
        "a: mIoU 99.00 %",
        "b: mIoU 99.00 %",
        "bad: failed: not finite",
    ]
    said.clear()
    again = run_jobs([jobs[0], jobs[2]], 2, said.append, stub_run)
    assert again == {name: found[name] for name in ("a", "b")}
    assert said == []  # nothing was run again
    longer = tiny_baseline(train={"steps": 3, "validate_every": 1})
    refused = run_jobs([Job("a", longer, tmp_path / "a")], 2, said.append, stub_run)
    assert "was started with train.steps=2, not 3" in str(refused["a"])
