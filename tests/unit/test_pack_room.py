"""What members take of a worker, how large a pack is, and what does not fit: before anything is placed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.cluster import room
from cirkd_ray.cluster.capacity import capacity, trials_on_head
from cirkd_ray.cluster.measuring import of_one_worker
from cirkd_ray.cluster.resources import Plan
from cirkd_ray.cluster.room import PACK, Room, fitted, fitting_cohorts, ram_of_worker
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.pack import choose, heaviest, sharing
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.distributed import World
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.memory import Taken, counted, measured, most_that_fit, together
from tests.errors import refuses
from tests.tinyrun import tiny_baseline, tiny_distillation

EACH = Taken(teacher=100, own=10, work=30, process=5, shared_seconds=4.0, own_seconds=1.0)
CPU, GPU = Plan(1, 1.0, 0), Plan(1, 1.0, 1.0)


def space(**changes: Any) -> SweepSpec:
    tree = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.1, 1.0]}}, "budget": {"trials": 12}}
    return SweepSpec.model_validate({**tree, **changes})


def test_a_cohort_holds_one_teacher_and_works_for_one_member() -> None:
    assert together([EACH] * 3) == 5 + 100 + 30 + 3 * 10
    assert together([EACH, Taken(0, 50, 80, 6)]) == 6 + 100 + 80 + 10 + 50
    assert [most_that_fit(EACH, there) for there in (10, 144, 145, 164, 165)] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("there", "most", "size", "why"),
    [
        (None, 99, 10, "save less than 3%"),  # 4/9 + 1 s a member; a tenth saves 3.1 %, an eleventh 2.6 %
        (175, 99, 4, "no more fit into 175 B"),
        (100, 99, 1, "no more fit"),
        (None, 3, 3, "so it is"),
    ],
)
def test_a_pack_is_as_large_as_fits_and_pays(there: int | None, most: int, size: int, why: str) -> None:
    found = choose(EACH, there, {"so it is": most})
    assert found.size == size
    assert why in found.reason
    assert f"{size} x 10 B a member" in found.reason


def test_without_a_costly_teacher_nothing_is_gained() -> None:
    assert choose(EACH._replace(shared_seconds=0.02), None, {"so it is": 9}).size == 1


def test_the_head_has_room_for_the_processes_of_trials() -> None:
    assert [trials_on_head(memory, 2) for memory in (0.0, 4.4e9, 5.6e9, 8.1e9)] == [1, 1, 2, 4]
    assert capacity(CPU, {"CPU": 64}, 11e9, None, pack=6).reason == "11.0 GB on the head / 5.2"


def test_trials_share_by_value() -> None:
    assert sharing(space()) == 12
    crops = {"data.crop": {"choice": [[32, 64], [32, 32]]}, "optim.lr": {"choice": [0.1, 0.2]}}
    assert 6 <= sharing(space(parameters=crops)) < 12
    grids = {path: {"grid": value["choice"]} for path, value in crops.items()}
    assert sharing(space(parameters=grids, searcher={"name": "grid"}, budget={})) == 2


def test_the_heaviest_trial_has_the_largest_student_and_all_losses(teacher: Path) -> None:
    small, large = "deeplabv3:mobilenetv3_small_050", "deeplabv3:mobilenetv3_small_100"
    parameters = {
        "model.name": {"choice": [large, small]},
        "model.head_channels": {"quniform": [16, 32, 16]},
        "distill.losses.memory.weight": {"choice": [0.0, 1.0]},
        "distill.losses.memory.pixel_memory": {"randint": [40, 80]},
        "distill.losses.kd.temperature": {"uniform": [1.0, 4.0]},
        "optim.name": {"choice": ["sgd", "adamw"]},
        "optim.momentum": {"uniform": [0.5, 0.9], "when": {"optim.name": "sgd"}},
    }
    base = tiny_distillation(teacher)
    found = heaviest(space(parameters=parameters), base, DryRun())
    assert (found.model.name, found.model.settings["head_channels"]) == (large, 32)
    assert found.distill is not None
    memory = found.distill.losses["memory"]
    assert memory is not None
    assert memory.settings["pixel_memory"] == 80
    assert 0 not in (memory.weight, *(memory.weights or {}).values())
    assert found.optim.name == "adamw"


def test_what_is_counted_is_the_least_of_what_is_measured(teacher: Path) -> None:
    spec = tiny_distillation(teacher, cluster={"workers": 1}, train={"ema": 0.9})
    dry = DryRun()
    dry.check(spec)
    least, found = counted(spec, dry), measured(spec, World(), timed=True)
    assert least.teacher == pytest.approx(found.teacher, rel=0.05)  # without an auxiliary head
    assert found.own == pytest.approx(least.own, rel=0.1)
    assert 0.3 * found.work < least.work < 1.05 * found.work
    assert found.process > 1e7
    assert found.shared_seconds > 0 < found.own_seconds
    assert measured(tiny_baseline(), World()).teacher == 0


def test_several_micro_batches_hold_their_maps(teacher: Path) -> None:
    one, two = (tiny_distillation(teacher, train={"accumulate": n, "batch_size": 4 * n}) for n in (1, 2))
    assert measured(two, World()).work - measured(one, World()).work > 0


def test_one_worker_has_its_share_of_the_batch() -> None:
    spec = of_one_worker(tiny_baseline(train={"batch_size": 8}), Plan(4, 1.0, 0))
    assert (spec.train.batch_size, spec.cluster.workers, spec.cluster.device) == (2, 1, "cpu")
    assert of_one_worker(tiny_baseline(), GPU).cluster.device == "cuda"


def test_workers_share_the_ram_of_their_node() -> None:
    nodes = [{"CPU": 4.0, "memory": 80.0}, {"CPU": 1.0, "memory": 15.0}, {"CPU": 0.5, "memory": 1.0}]
    assert ram_of_worker(CPU, nodes[:1], 2) == 36  # of two workers, less a tenth
    assert ram_of_worker(CPU, nodes, 9) == 13
    assert ram_of_worker(CPU, [{"CPU": 4.0}], 2) is None


@pytest.fixture
def measurement(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, RunSpec]]:
    """What would be measured; each takes `EACH` of 175 bytes."""
    asked: list[dict[str, RunSpec]] = []

    def measure(specs: dict[str, RunSpec], *rest: Any) -> Room:
        asked.append(specs)
        return Room(175, "a GPU", dict.fromkeys(specs, EACH))

    monkeypatch.setattr(room, "measure", measure)
    monkeypatch.setattr(room, "head_bytes", lambda: 1e12)
    return asked


def test_auto_is_chosen_once_and_kept(
    measurement: list[dict[str, RunSpec]], teacher: Path, tmp_path: Path
) -> None:
    sweep, said = space(resources={"pack": "auto"}), list[str]()
    for _ in range(2):
        found = fitted(sweep, tiny_distillation(teacher), GPU, 1, tmp_path, said.append)
        assert (found.resources.pack, found.pack) == (4, 4)
    assert len(measurement) == 1
    assert "packs of 4" in said[0]
    assert "as when the sweep began" in said[1]
    assert json.loads((tmp_path / PACK).read_text())["size"] == 4
    fitted(sweep, tiny_distillation(teacher), Plan(1, 1.0, 0.5), 1, tmp_path, said.append)
    assert len(measurement) == 2  # of another part of a GPU


def test_a_pack_that_does_not_fit_is_refused_with_the_arithmetic(
    measurement: list[dict[str, RunSpec]], teacher: Path, tmp_path: Path
) -> None:
    base, facts = tiny_distillation(teacher), ("100 B the teacher", "5 x 10 B a member", "175 B")
    with refuses("resources.pack", ConfigError, *facts, "largest pack that fits is 4"):
        fitted(space(resources={"pack": 5}), base, GPU, 1, tmp_path, print)
    assert fitted(space(resources={"pack": 4}), base, GPU, 1, tmp_path, print).pack == 4
    with pytest.raises(ConfigError):  # what fitted was another pack
        fitted(space(resources={"pack": 5}), base, GPU, 1, tmp_path, print)


def test_a_trial_that_does_not_fit_its_part_of_a_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, teacher: Path, tmp_path: Path
) -> None:
    def measure(specs: dict[str, RunSpec], *rest: Any) -> Room:
        return Room(140, "0.5 x a GPU", dict.fromkeys(specs, EACH), frozenset(specs) if full else frozenset())

    monkeypatch.setattr(room, "measure", measure)
    monkeypatch.setattr(room, "head_bytes", lambda: 1e12)
    base, part, full = tiny_distillation(teacher), Plan(1, 1.0, 0.5), False
    with refuses("cluster.gpus_per_worker", ConfigError, "145 B", "140 B", "0.5 x a GPU"):
        fitted(space(), base, part, 2, tmp_path, print)
    with refuses("cluster.gpus_per_worker", ConfigError, "kd takes", "140 B"):
        fitting_cohorts({"kd": base}, 1, part, 1, print)
    with refuses("resources.pack", ConfigError, "not even one"):
        fitted(space(resources={"pack": 2}), base, GPU, 1, tmp_path, print)
    full = True
    with refuses("train.batch_size", ConfigError, "at least 145 B"):
        fitted(space(resources={"pack": "auto"}), base, GPU, 1, tmp_path, print)
    assert fitted(space(), base, GPU, 1, tmp_path, print) == space()  # alone on whole GPUs: as ever


def test_methods_of_a_comparison_are_together_as_far_as_they_fit(
    measurement: list[dict[str, RunSpec]], teacher: Path
) -> None:
    base, said = tiny_distillation(teacher), list[str]()
    methods = dict.fromkeys("abcdefg", base)
    assert fitting_cohorts({"a": base}, 1, GPU, 1, said.append) == [["a"]]
    assert not measurement
    assert list(map(len, fitting_cohorts(methods, 1, GPU, 1, said.append))) == [4, 3]
    assert len(said) == 1
    assert "205 B" in said[0]
    assert list(map(len, fitting_cohorts(methods, 3, GPU, 1, said.append))) == [3, 2, 2]


def test_on_cpus_a_count_is_enough_where_it_is_small(
    monkeypatch: pytest.MonkeyPatch, teacher: Path, tmp_path: Path
) -> None:
    node = {"CPU": 2.0, "memory": 1e12}
    monkeypatch.setattr("cirkd_ray.cluster.room.ray.nodes", lambda: [{"Alive": True, "Resources": node}])

    def on_a_worker(work: Any, plan: Plan, spec: RunSpec, *arguments: Any) -> Any:
        called.append(spec)
        return work(torch.device("cpu"), *arguments)

    called: list[RunSpec] = []
    monkeypatch.setattr(room, "on_a_worker", on_a_worker)
    base, sweep = tiny_distillation(teacher), space(resources={"pack": 3})
    assert fitted(sweep, base, CPU, 1, tmp_path / "small", print).pack == 3
    assert not called
    node["memory"] = 30e6  # less than a process with torch
    with refuses("resources.pack", ConfigError, "not even one"):
        fitted(sweep, base, CPU, 1, tmp_path / "large", print)
    assert len(called) == 1


def test_a_gpu_tells_its_memory_and_who_runs_out_of_it(
    monkeypatch: pytest.MonkeyPatch, teacher: Path
) -> None:
    class Properties:
        total_memory = 2**30

    def measured(spec: RunSpec, world: World, timed: bool) -> Taken:
        assert spec.name != "never"
        if spec.name == "starved":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return EACH

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretend")
    monkeypatch.setattr(room, "measured", measured)
    names = ("fits", "starved", "never")
    trees = {name: tiny_baseline(name=name).to_dict() for name in names}
    least = {**dict.fromkeys(names, Taken(1, 1, 1)), "never": Taken(0, 2**30, 0)}
    found = room._measure(torch.device("cuda"), trees, least, None, 1.0, False)
    assert found.there == int(0.9 * 2**29)
    assert found.place == "1 x Pretend"
    assert found.taken == {**least, "fits": EACH}
    assert found.full == {"starved", "never"}
