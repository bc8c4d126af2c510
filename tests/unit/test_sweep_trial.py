"""One trial without Ray: applied configuration, generations, a donor's weights; what fits a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cirkd_ray.cluster.bridge import Pointer
from cirkd_ray.cluster.capacity import capacity, check_places, driver_resources, largest_plan
from cirkd_ray.cluster.donors import hold
from cirkd_ray.cluster.pool import Job
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.cluster.search import make_scheduler, make_searcher
from cirkd_ray.cluster.sweep import best_recipe, control_runs
from cirkd_ray.cluster.trial import Reports, TrialPlan, check_applied, prepare
from cirkd_ray.config import RunSpec, from_tree, load_run
from cirkd_ray.config.composition import apply_overrides
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.folder import is_expired, read_sweep, write_expired
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.checkpoint import checkpoint_name, read_checkpoint
from cirkd_ray.train.distributed import World
from cirkd_ray.train.local import run_local
from cirkd_ray.train.loop import train
from cirkd_ray.train.reporter import LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.same_data import DataGuard
from tests.cluster.sweep_stubs import stub_checkpoint
from tests.errors import refuses
from tests.tinyrun import tiny_baseline

DATA = DataGuard.of(tiny_baseline())
SPACE = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.001, 0.1]}}}


def plan_in(folder: Path) -> TrialPlan:
    base = tiny_baseline(train={"steps": 4, "validate_every": 2, "checkpoint_every": 2})
    return TrialPlan(str(folder), SweepSpec.model_validate(SPACE).model_dump(mode="json"), base.to_dict())


def test_a_trial_writes_the_recipe_that_it_runs(tmp_path: Path) -> None:
    spec, directory, parent = prepare(plan_in(tmp_path), tmp_path / "t1", {"optim.lr": 0.05}, None)
    assert parent is None
    assert spec.optim.lr == 0.05
    assert RunDirectory(directory.path).spec() == spec
    about = json.loads((directory.path / "trial.json").read_text())
    assert about["settings"] == {"optim.lr": 0.05}


def test_a_sampled_value_that_is_not_in_effect_fails_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_baseline()
    with refuses("parameters", ConfigError, "optim.lr=0.02", 0.05):
        check_applied(spec, {"optim.lr": 0.05})
    dropped = plan_in(tmp_path)
    monkeypatch.setattr("cirkd_ray.cluster.trial.apply_overrides", lambda tree, settings: tree)
    with refuses("parameters", ConfigError, "optim.lr=0.02", 0.05):
        prepare(dropped, tmp_path / "t1", {"optim.lr": 0.05}, None)


def test_generations_follow_the_values_and_the_pointer(tmp_path: Path) -> None:
    plan, folder = plan_in(tmp_path), tmp_path / "t1"

    def generation(lr: float, pointer: Pointer | None) -> tuple[str, Path | None]:
        _, directory, parent = prepare(plan, folder, {"optim.lr": lr}, pointer)
        return directory.path.name, parent

    own, donor = Pointer("t1", "/own", 2), Pointer("t2", "/donor", 2)
    assert generation(0.05, None) == ("g0", None)
    assert generation(0.05, own) == ("g0", None)  # retried, or paused and continued
    assert generation(0.06, donor) == ("g1", Path("/donor"))  # exploited
    assert generation(0.06, donor) == ("g1", Path("/donor"))  # killed before its first report
    assert generation(0.06, Pointer("t1", "/own2", 4)) == ("g1", Path("/donor"))
    assert generation(0.06, Pointer("t3", "/other", 4)) == ("g2", Path("/other"))


def test_a_run_from_a_donors_checkpoint_has_its_weights_and_its_own_settings(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    spec, donor, _ = prepare(plan, tmp_path / "t1", {"optim.lr": 0.05}, None)
    run_local(spec, donor)
    path = hold(donor.checkpoints / checkpoint_name(2))
    spec, heir, parent = prepare(plan, tmp_path / "t2", {"optim.lr": 1e-12}, Pointer("t1", str(path), 2))
    frozen = from_tree(apply_overrides(spec.to_dict(), {"optim.lr": 1e-12, "optim.momentum": 0.0}))
    world = World.current(torch.device("cpu"))
    train(frozen, world, heir, LocalReporter(heir.checkpoints, 9), (), parent)
    assert [row["step"] for row in heir.read_metrics()] == [4]
    before, after = (read_checkpoint(p) for p in (path, heir.checkpoints / checkpoint_name(4)))
    for name, tensor in before["student"].items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(after["student"][name], tensor, rtol=0, atol=1e-6)
    assert heir.read_metrics()[0]["lr"] < 1e-11


@pytest.mark.parametrize("holds", [False, True])
def test_each_validation_is_reported_with_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    """The run was ended between the checkpoint of step 2 and its validation, and is resumed there."""
    directory = RunDirectory(tmp_path / "trials" / "t1" / "g0")
    told: list[tuple[int, str | None]] = []

    def row(step: int) -> dict[str, float]:
        return {"step": step, "miou": 0.1 * step}

    def saved(step: int) -> str:
        return str(stub_checkpoint(directory.checkpoints / checkpoint_name(step), {}))

    def reports(directory: RunDirectory) -> Iterator[tuple[dict[str, float], str | None]]:
        yield row(2), None
        path = saved(4)
        yield {"step": 4}, str(hold(Path(path))) if holds else path
        yield row(4), None
        yield row(5), None

    run = SimpleNamespace(reports=lambda: reports(directory), join=lambda: None, error=None)
    monkeypatch.setattr("cirkd_ray.cluster.trial.BackgroundRun", lambda call, holds, here: run)
    monkeypatch.setattr(
        "cirkd_ray.cluster.trial.report",
        lambda figures, pointer: told.append((figures["step"], pointer and pointer.path)),
    )
    spec = tiny_baseline(train={"steps": 9, "validate_every": 1})
    directory.create(spec)
    directory.append_metrics(row(1))
    for step in (1, 2):
        saved(step)
    trial = Reports(spec, directory, {}, holds)
    trial.tell_missed(0)
    trial.train(lambda *arguments: {}, None)
    folder = "t1/g0/donors" if holds else "t1/g0/checkpoints"
    assert told == [*((step, f"{folder}/{checkpoint_name(step)}") for step in (1, 2, 4)), (5, None)]
    assert all((tmp_path / "trials" / path).is_dir() for _, path in told if path)


@pytest.mark.parametrize("holds", [False, True])
def test_validations_whose_reports_died_with_their_worker_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    """Reports of steps 2 and 6 are lost; the checkpoint of step 4 was damaged and is written again."""
    directory = RunDirectory(tmp_path / "trials" / "t1" / "g0")
    told: list[tuple[int, str | None]] = []

    def validated(step: int, name: str = "") -> str:
        path = str(stub_checkpoint(directory.checkpoints / (checkpoint_name(step) + name), {}))
        directory.append_metrics({"step": step, "miou": 0.1 * step})
        return str(hold(Path(path))) if holds else path

    def reports() -> Iterator[tuple[dict[str, float], str | None]]:
        yield {"step": 1, "miou": 0.1}, None
        stub_checkpoint(directory.checkpoints / checkpoint_name(2), {})
        directory.append_metrics({"step": 2, "miou": 0.2})  # and the worker dies
        yield {"step": 4}, validated(4)
        yield {"step": 4, "miou": 0.4}, None
        for folder in ("checkpoints", "donors"):  # a hard link is damaged with the file
            (directory.path / folder / checkpoint_name(4) / "state.pt").unlink(missing_ok=True)
        yield {"step": 4}, validated(4, "-again")
        yield {"step": 4, "miou": 0.4}, None
        stub_checkpoint(directory.checkpoints / checkpoint_name(6), {})
        directory.append_metrics({"step": 6, "miou": 0.6})  # and the worker dies, with nothing left to train

    run = SimpleNamespace(reports=reports, join=lambda: None, error=None)
    monkeypatch.setattr("cirkd_ray.cluster.trial.BackgroundRun", lambda call, holds, here: run)
    monkeypatch.setattr(
        "cirkd_ray.cluster.trial.report",
        lambda figures, pointer: told.append((figures["step"], pointer and pointer.path)),
    )
    spec = tiny_baseline(train={"steps": 6, "validate_every": 1})
    directory.create(spec)
    Reports(spec, directory, {}, holds).train(lambda *arguments: {}, None)
    folder = "t1/g0/donors" if holds else "t1/g0/checkpoints"
    assert told == [(1, None), *((step, f"{folder}/{checkpoint_name(step)}") for step in (2, 4, 6))]


def test_a_donors_checkpoint_that_was_written_again_is_found(tmp_path: Path) -> None:
    plan, donor = plan_in(tmp_path), tmp_path / "t1" / "g0" / "checkpoints"
    again = stub_checkpoint(donor / f"{checkpoint_name(2)}-again", {})
    damaged = stub_checkpoint(donor / checkpoint_name(2), {})
    for path in (damaged, stub_checkpoint(donor / f"{checkpoint_name(2)}-again-again", {})):
        (path / "state.pt").write_bytes(b"damaged")
    pointer = Pointer("t1", f"t1/g0/checkpoints/{damaged.name}", 2)
    assert prepare(plan, tmp_path / "t2", {"optim.lr": 0.05}, pointer)[2] == again
    (again / "state.pt").unlink()
    assert prepare(plan, tmp_path / "t3", {"optim.lr": 0.05}, pointer)[2] == damaged  # the error names it


@pytest.mark.parametrize(
    ("available", "memory", "limit", "count", "reason"),
    [
        ({"CPU": 8}, 1e12, None, 4, "8 CPU / 2"),
        ({"CPU": 64, "GPU": 6}, 1e12, None, 3, "6 GPU / 2"),
        ({"CPU": 64, "GPU": 64}, 11e9, None, 5, "11.0 GB on the head / 2.2"),
        ({"CPU": 64, "GPU": 64}, 1e12, 2, 2, "resources.concurrent=2"),
        ({"CPU": 64, "GPU": 64}, 0, None, 1, "0.0 GB on the head / 2.2"),
    ],
)
def test_as_many_trials_run_as_fit(
    available: dict[str, float], memory: float, limit: int | None, count: int, reason: str
) -> None:
    gpus = 1 if "GPU" in available else 0
    found = capacity(Plan(2, 1.0, gpus), available, memory, limit)
    assert (found.count, found.reason) == (count, reason)


def test_a_trial_that_cannot_fit_is_refused_with_the_arithmetic() -> None:
    space = {"recipe": "tiny", "parameters": {"data.workers": {"choice": [0, 3]}}}
    with refuses("cluster.workers", ConfigError, "2 x 4 CPU", "6 CPU"):
        largest_plan(SweepSpec.model_validate(space), tiny_baseline(), {"CPU": 6})
    assert largest_plan(SweepSpec.model_validate(space), tiny_baseline(), {"CPU": 8}).total_cpus == 8
    between = {"recipe": "tiny", "parameters": {"train.batch_size": {"quniform": [8, 16, 2]}}}
    with refuses("train.batch_size", ConfigError, 10):
        largest_plan(SweepSpec.model_validate(between), tiny_baseline(cluster={"workers": 4}), {"CPU": 8})


@pytest.mark.parametrize("autoscaling", [False, True])
def test_a_trial_that_fits_no_node_is_refused(monkeypatch: pytest.MonkeyPatch, autoscaling: bool) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}] * 4 + [{"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr("cirkd_ray.cluster.capacity.ray.nodes", lambda: nodes)
    spec = tiny_baseline(cluster={"workers": 2, "cpus_per_worker": 8, "autoscaling": autoscaling})
    plan = largest_plan(SweepSpec.model_validate(SPACE), spec, {"CPU": 16})
    if autoscaling:
        check_places(plan, spec)
    else:
        with refuses("cluster.workers", ConfigError, "2 workers of 8 CPU", "4 nodes", "room for 0"):
            check_places(plan, spec)


def test_a_sweep_whose_hours_are_spent_says_so(tmp_path: Path) -> None:
    from cirkd_ray.cluster.outcomes import TrialLog
    from cirkd_ray.cluster.sweep import Sweep, _cut_off, _open, _set_aside

    def sweep(hours: float) -> Sweep:
        spec = SweepSpec.model_validate({**SPACE, "budget": {"hours": hours}})
        return Sweep(spec, tiny_baseline(), tmp_path / "s", tmp_path, lambda text: None, DATA)

    _open(sweep(1.0), fresh=False)
    (tmp_path / "s" / "tune").mkdir()  # it has begun
    for name in ("a", "b", "ghost"):
        (tmp_path / "s" / "trials" / name).mkdir(parents=True)
    (tmp_path / "s" / "trials" / "a" / "outcome.json").write_text('{"status": "finished", "reason": ""}')
    _open(sweep(2.0), fresh=False)  # not spent yet: another limit
    _set_aside(tmp_path / "s", {"a", "b"})
    assert (tmp_path / "s" / "lost" / "ghost").is_dir()
    log = TrialLog(str(tmp_path / "s"), "miou", 16)
    log.setup()
    log.on_step_begin(0, [])
    assert not is_expired(tmp_path / "s")
    log.deadline -= 2.0 * 3600  # of the second call, not of the first
    log.on_step_begin(1, [])
    _cut_off(tmp_path / "s")
    status = [(trial.id, trial.status, trial.reason) for trial in read_sweep(tmp_path / "s").trials]
    assert status == [("a", "finished", ""), ("b", "expired", "budget.hours is spent")]
    _open(sweep(2.0), fresh=False)
    with refuses(tmp_path / "s", ConfigError, "budget.hours is spent", "budget.hours at 2.0"):
        _open(sweep(3.0), fresh=False)


@pytest.mark.parametrize(("hours", "interrupted"), [(None, True), (1.0, True), (1e-9, False)])
def test_a_search_that_ends_early_was_interrupted_unless_its_hours_are_spent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hours: float | None, interrupted: bool
) -> None:
    from cirkd_ray.cluster import sweep

    plans: list[TrialPlan] = []
    tuner = SimpleNamespace(fit=lambda: [SimpleNamespace(path="/storage/tune/a")])
    monkeypatch.setattr(sweep, "make_tuner", lambda plan, *others: plans.append(plan) or tuner)
    spec = SweepSpec.model_validate({**SPACE, "budget": {"hours": hours}, "scheduler": {"name": "pbt"}})
    here = sweep.Sweep(spec, tiny_baseline(), tmp_path, tmp_path, lambda text: None, DATA)
    for name in ("a", "ghost"):
        (tmp_path / "trials" / name).mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        sweep._search(here, here.base, 2)
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["a"]
    assert (tmp_path / "trials" / "a" / "outcome.json").is_file() != interrupted
    write_expired(tmp_path)  # the search is over, whatever this call's clock says
    sweep._search(here, here.base, 2)
    assert (tmp_path / "trials" / "a" / "outcome.json").is_file()
    assert plans[0].base["train"]["keep_checkpoints"] == tiny_baseline().train.keep_checkpoints


def test_paused_trials_are_bounded_by_places_on_the_head() -> None:
    pbt = SweepSpec.model_validate({**SPACE, "scheduler": {"name": "pbt"}})
    place = driver_resources(pbt, 3)
    assert place["CPU"] == 0
    assert 3 * place["node:__internal_head__"] <= 1 < 4 * place["node:__internal_head__"]
    assert driver_resources(SweepSpec.model_validate(SPACE), 3)["node:__internal_head__"] == 1e-3


@pytest.mark.parametrize("scheduler", ["none", "asha", "hyperband", "median", "pbt"])
def test_every_scheduler_can_be_made(scheduler: str) -> None:
    sweep = SweepSpec.model_validate({**SPACE, "scheduler": {"name": scheduler}})
    assert make_scheduler(sweep, 40, 10) is not None
    assert make_searcher(sweep) is not None


def test_a_grid_is_shuffled_where_trials_are_stopped_early() -> None:
    axis = {"optim.lr": {"grid": [0.001 * k for k in range(1, 13)]}}

    def order(scheduler: str) -> list[float]:
        space = {"recipe": "tiny", "parameters": axis, "searcher": {"name": "grid"}}
        search = make_searcher(SweepSpec.model_validate({**space, "scheduler": {"name": scheduler}}))
        return [search.suggest(f"t{k}")["optim.lr"] for k in range(12)]

    assert order("none") == sorted(order("none"))
    assert order("asha") == order("asha") != sorted(order("asha"))
    assert sorted(order("asha")) == order("none")


def test_controls_and_best_recipe() -> None:
    base = load_run("quickstart")
    controls = control_runs(base, base.train.steps)
    assert controls["defaults"] == base
    assert controls["baseline"].distill is None
    assert list(control_runs(controls["baseline"], 7)) == ["defaults"]
    assert {run.train.steps for run in control_runs(base, 480).values()} == {480}
    space = {
        "recipe": "quickstart",
        "parameters": SPACE["parameters"],
        "budget": {"steps": 7},
        "set": {"seed": 3},
    }
    best = best_recipe(SweepSpec.model_validate(space), {"optim.lr": 0.07})
    assert (best.optim.lr, best.seed, best.train.steps) == (0.07, 3, base.train.steps)
    assert best.teacher == base.teacher  # its full run trains, or finds, the recipe's own teacher


def test_a_folder_of_another_sweep_or_recipe_is_not_continued(tmp_path: Path) -> None:
    from cirkd_ray.cluster.sweep import Sweep, _open

    base, said = tiny_baseline(), []

    def sweep(space: dict[str, object], spec: RunSpec = base) -> Sweep:
        return Sweep(
            SweepSpec.model_validate({**SPACE, **space}), spec, tmp_path / "s", tmp_path, said.append, DATA
        )

    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "precious").touch()
    for fresh in (False, True):
        with refuses(tmp_path / "s", ConfigError, "--name", "--out"):
            _open(sweep({}), fresh=fresh)
    (tmp_path / "s" / "precious").unlink()
    _open(sweep({}), fresh=False)
    (tmp_path / "s" / "tune").mkdir(exist_ok=True)  # it has begun
    _open(sweep({"resources": {"concurrent": 2}}), fresh=False)  # another cluster, the same sweep
    _open(sweep({"set": {"cluster.max_failures": 9, "data.workers": 0}}), fresh=False)
    _open(sweep({}), fresh=False)
    with refuses(tmp_path / "s", ConfigError, "budget.trials=None", 3):
        _open(sweep({"budget": {"trials": 3}}), fresh=False)
    with refuses(tmp_path / "s", ConfigError, "recipe 'tiny'"):
        _open(sweep({}, tiny_baseline(optim={"lr": 0.5})), fresh=False)
    _open(sweep({"budget": {"trials": 3}}), fresh=True)
    assert len(list(tmp_path.glob("s.old-*"))) == 1
    assert said


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_every_searchers_values_are_plain_values_of_their_domains(searcher: str) -> None:
    parameters = {
        "a": {"loguniform": [1e-3, 1e-1]},
        "b": {"choice": ["x", "y"]},
        "c": {"quniform": [10, 60, 10]},
        "d": {"randint": [1, 4], "when": {"b": "x"}},
        "e": {"choice": [False, True]},
    }
    sweep = SweepSpec.model_validate(
        {"recipe": "tiny", "parameters": parameters, "searcher": {"name": searcher}}
    )
    search = make_searcher(sweep)
    for index in range(12):
        config = search.suggest(f"t{index}")
        values = sweep.tidy(config)
        assert set(values) == {"a", "b", "c", "e"} | ({"d"} if values["b"] == "x" else set())
        assert [type(values[name]) for name in ("a", "b", "c", "e")] == [float, str, int, bool]
        assert 1e-3 <= values["a"] <= 1e-1
        assert values["c"] in (10, 20, 30, 40, 50, 60)
        assert values.get("d", 1) in (1, 2, 3, 4)
        done = {
            "miou": 0.01 * index,
            "config": config,
            "training_iteration": 1,
        }
        search.on_trial_complete(f"t{index}", {**done, "trial_id": f"t{index}"})


def test_a_teacher_whose_recipe_has_changed_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirkd_ray.cluster import sweep as module

    trained: list[Path] = []
    monkeypatch.setattr(
        module, "train_once", lambda name, spec, directory, fit, say, data: trained.append(directory.path)
    )
    monkeypatch.setattr(module, "with_weights", lambda spec, path: spec)
    trains = "teacher.train=quickstart/teacher"
    base = load_run("quickstart", [trains])
    data = DataGuard.of(base)
    sweep = module.Sweep(SweepSpec.model_validate(SPACE), base, tmp_path, tmp_path, print, data)
    module._with_teacher(sweep)
    module._with_teacher(sweep)
    assert len(set(trained)) == 1
    changed = load_run("quickstart", [trains, "teacher.set=[train.steps=3]"])
    with refuses(tmp_path, ConfigError, trained[0].name):
        module._with_teacher(module.Sweep(sweep.spec, changed, tmp_path, tmp_path, print, data))
    assert len(trained) == 2


def test_a_control_that_failed_is_written_down_and_the_command_ends_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirkd_ray.cli import main
    from cirkd_ray.cluster import sweep as module
    from cirkd_ray.sweep.folder import SweepData, Trial, read_sweep

    best = Trial(
        "t", {}, {"optim.lr": 0.01}, "finished", "", ({"step": 4, "miou": 0.5, "_new": 4},), 4, 1, (), {}
    )
    space = SweepSpec.model_validate({**SPACE, "recipe": "quickstart", "seeds": [0, 1]})
    (tmp_path / "sweep.yaml").write_text(json.dumps(space.model_dump(mode="json")))
    outcomes: dict[str, dict[str, object] | str] = {}

    def run_jobs(
        jobs: list[Job], at_a_time: int, say: object, train: object, together: object
    ) -> dict[str, dict[str, object] | str]:
        return {job.name: outcomes.get(job.name, {"last": {}}) for job in jobs}

    def run_sweep(*args: object) -> SweepData:
        sweep = module.Sweep(space, tiny_baseline(), tmp_path, tmp_path, print, DATA)
        data = SweepData(tmp_path, space.model_dump(mode="json"), (best,), {}, {})
        module._controls_and_finalists(sweep, tiny_baseline(), data, 1)
        return replace(data, failures=read_sweep(tmp_path).failures)

    monkeypatch.setattr("cirkd_ray.cluster.pool.run_jobs", run_jobs)
    monkeypatch.setattr(module, "run_sweep", run_sweep)
    command = ["tune", "smoke", "--out", str(tmp_path)]
    (tmp_path / "smoke").mkdir()
    outcomes["controls/defaults-s1"] = outcomes["finalists/t-s1"] = "a loss is not finite"
    assert main(command) == 1
    assert read_sweep(tmp_path).failures == outcomes
    outcomes.clear()
    assert main(command) == 0  # what had failed was done again
    assert read_sweep(tmp_path).failures == {}
