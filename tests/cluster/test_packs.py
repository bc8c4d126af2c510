"""Sweeps whose trials are trained in packs: each trial's figures and end are its own."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cluster.donors import HELD
from cirkd_ray.cluster.gathering import Waiting, for_workers
from cirkd_ray.cluster.measuring import on_a_worker
from cirkd_ray.cluster.membership import End, ask_to_join, ask_to_leave, how_ended
from cirkd_ray.cluster.outcomes import TrialLog
from cirkd_ray.cluster.packs import packed
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.cluster.room import _measure, fitted
from cirkd_ray.cluster.scheduler_state import read_records
from cirkd_ray.cluster.stopping import in_this_call
from cirkd_ray.cluster.sweep import make_tuner
from cirkd_ray.cluster.train import fit_pack
from cirkd_ray.errors import UserError
from cirkd_ray.sweep.folder import SweepData, read_sweep
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.checkpoint import checkpoint_name, last_step
from cirkd_ray.train.distributed import World
from cirkd_ray.train.local import run_local
from cirkd_ray.train.loop import train
from cirkd_ray.train.memory import Taken
from cirkd_ray.train.outcome import FAILURE
from cirkd_ray.train.reporter import LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped
from tests.cluster.sweep_stubs import note_report, stub_pack, stub_plan, stub_run
from tests.tinyrun import figures, tiny_baseline, tiny_distillation

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def swept(
    folder: Path, size: int, steps: int = 4, places: int = 1, scheduler: str = "none", **space: Any
) -> tuple[SweepData, list[list[str]]]:
    """A sweep in packs that train nothing, and who began each."""
    reduction = {"name": scheduler, "reduction_factor": 2}
    plan, sweep = stub_plan(folder, steps, resources={"pack": size}, scheduler=reduction, **space)
    plan.base["cluster"]["workers"] = 1
    with packed(folder, sweep, places, stub_pack) as train:
        make_tuner(plan, sweep, steps, 1, size * places, train).fit()
    members = [path.read_text().split() for path in sorted(folder.rglob("members"))]
    return read_sweep(folder), members


def test_trials_are_packed_and_one_without_memory_is_trained_alone(ray_cluster: None, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"uniform": [0.001, 0.02]}, "task.aux_weight": {"choice": [0.5, 2.0]}}
    data, members = swept(tmp_path / "s", 3, parameters=parameters, budget={"trials": 5})
    assert sorted(map(len, members)) == [1, 2, 3]
    assert {name for pack in members for name in pack} == {trial.id for trial in data.trials}
    for trial in data.trials:
        fails = trial.values["task.aux_weight"] == 2.0
        assert trial.status == ("failed" if fails else "finished")
        assert fails or trial.step == 4


@pytest.mark.parametrize("scheduler", ["asha", pytest.param("hyperband", marks=pytest.mark.slow)])
def test_trials_end_where_they_do_one_at_a_time(ray_cluster: None, tmp_path: Path, scheduler: str) -> None:
    """Two packs after one another, in an order of values in which chance would decide otherwise."""
    rates = [0.014, 0.010, 0.018, 0.012, 0.011, 0.020, 0.016, 0.013]
    space: dict[str, Any] = {
        "searcher": {"name": "grid"},
        "parameters": {"optim.lr": {"grid": rates}},
        "budget": {"trials": 8},
    }
    packed_, members = swept(tmp_path / "packed", 4, 6, scheduler=scheduler, **space)
    plan, sweep = stub_plan(
        tmp_path / "apart", 6, scheduler={"name": scheduler, "reduction_factor": 2}, **space
    )
    make_tuner(plan, sweep, 6, 1, 1, stub_run).fit()
    ends = [decided(folder) for folder in (packed_.folder, tmp_path / "apart")]
    assert ends[0] == ends[1]
    assert min(ends[0].values()) < max(ends[0].values()) == 6
    assert len(members[0]) == 4


def decided(folder: Path) -> dict[float, int]:
    """The last report of each trial that its scheduler has decided on, by the trial's value."""
    records, _ = read_records(folder)
    values = {trial.id: trial.values["optim.lr"] for trial in read_sweep(folder).trials}
    return {values[name]: record.seen[1] for name, record in records.items()}


def test_a_population_exchanges_weights_in_its_pack_and_keeps_few_checkpoints(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialLog, "on_trial_result", note_report)
    data, members = swept(
        tmp_path / "s",
        4,
        5,
        scheduler="pbt",
        parameters={"optim.lr": {"uniform": [0.001, 0.9]}},
        searcher={"name": "random", "seed": 53},  # the last of a round is the worst, the first the best
        budget={"trials": 4},
    )
    assert [trial.status for trial in data.trials] == ["finished"] * 4
    assert len(members[0]) == 4
    joined = (data.folder / "packs" / "p1" / "joined").read_text().split()
    assert joined  # those that were given weights at the last step may have come too late
    exchanged = [trial for trial in data.trials if trial.generations > 1]
    assert {trial.id for trial in exchanged} >= {*joined}
    for trial in exchanged:
        last = data.folder / "trials" / trial.id / f"g{trial.generations - 1}"
        about, donor = (json.loads((last / name).read_text()) for name in ("trial.json", "donor.json"))
        assert about["parent"]["step"] == donor["step"] > 0
        result = json.loads((last / "result.json").read_text())
        assert result["weights"] == donor["weights"]
        assert result["last"]["step"] == 5
    held = [path for path in data.folder.glob("trials/*/g*/donors/*") if path.is_dir()]
    assert len(held) <= 2 * 4  # a donor's and a last one of each; 20 were reported, or more


def test_the_size_of_packs_is_measured_on_a_worker(ray_cluster: None, teacher: Path, tmp_path: Path) -> None:
    parameters = {"optim.lr": {"uniform": [0.001, 0.02]}}
    tree = {
        "recipe": "tiny",
        "parameters": parameters,
        "resources": {"pack": "auto"},
        "budget": {"trials": 3},
    }
    base, said = tiny_distillation(teacher, cluster={"workers": 1, "device": "cpu"}), list[str]()
    found = fitted(SweepSpec.model_validate(tree), base, Plan(1, 1.0, 0), 1, tmp_path, said.append)
    assert 1 <= found.pack <= 3
    assert said[-1].startswith(f"resources.pack: packs of {found.pack}: a step takes")
    assert f"{found.pack} x " in said[-1]
    missing = base.model_copy(update={"data": base.data.model_copy(update={"name": "camvid", "root": "/no"})})
    with pytest.raises(UserError):
        on_a_worker(
            _measure, Plan(1, 1.0, 0), base, {"a": missing.to_dict()}, {"a": Taken(0, 0, 0)}, None, 0, False
        )


def test_a_trial_leaves_another_takes_its_weights_and_all_train_as_they_do_alone(
    ray_cluster: None, tmp_path: Path
) -> None:
    steps = {"steps": 90, "log_every": 5, "validate_every": 30, "checkpoint_every": 30, "validate_limit": 2}
    spec = tiny_baseline(cluster={"workers": 1, "device": "cpu"}, train=steps)
    shorter = {**steps, "steps": 45}
    other = tiny_baseline(cluster=spec.cluster.model_dump(), train=shorter, optim={"lr": 0.005})
    trials, pack = tmp_path / "trials", tmp_path / "packs" / "p1"
    ended, donor, heir = (RunDirectory(trials / name / "g0") for name in "abc")
    start = donor.checkpoints / checkpoint_name(30)

    def direct() -> None:
        while not ended.read_metrics():
            time.sleep(0.05)
        ask_to_leave(ended.path)
        while not (start.parent.parent / HELD / start.name).is_dir():
            time.sleep(0.05)
        ask_to_join(pack, 0, for_workers(other, heir.path, start))

    for directory, recipe in ((ended, spec), (donor, spec), (heir, other)):
        directory.create(recipe)
    threading.Thread(target=in_this_call(direct), daemon=True).start()
    fit_pack([Waiting(run.path.parent.name, spec, run.path).work() for run in (ended, donor)], pack, True)
    assert [how_ended(run.path) for run in (donor, heir)] == [End(), End()]
    left = how_ended(ended.path)
    assert left is not None
    assert isinstance(left.error(), Stopped)
    assert ended.read_result() is None
    assert 5 <= last_step(ended.checkpoints) < 90
    assert not (ended.path / FAILURE).exists()
    alone, after = (RunDirectory(tmp_path / name) for name in ("alone", "after"))
    alone.create(spec)
    run_local(spec, alone)
    assert figures(donor) == figures(alone)
    after.create(other)
    held = donor.path / HELD / start.name
    train(other, World(), after, LocalReporter(after.checkpoints, 2), (), held)
    assert figures(heir) == figures(after)
    assert [row["step"] for row in figures(heir)][:2] == [35, 40]
