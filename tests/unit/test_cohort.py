"""Runs that share batches and a teacher are, to the last bit, the runs that they are alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cirkd_ray.config import RunSpec
from cirkd_ray.device import without_autotuning
from cirkd_ray.errors import ConfigError, TrainingError
from cirkd_ray.train.build import choose_arithmetic
from cirkd_ray.train.checkpoint import STATE, list_checkpoints
from cirkd_ray.train.cohort import check_cohort
from cirkd_ray.train.distributed import World
from cirkd_ray.train.entry import Ended, Entry
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.loop import train, train_cohort
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.shared import SharedForward
from cirkd_ray.train.step import TrainStep
from cirkd_ray.train.stop import Stopped
from cirkd_ray.types import SegmentationOutput
from tests.errors import refuses
from tests.paths import REPO
from tests.tinyrun import figures, tiny_baseline, tiny_distillation

TRAIN = {"steps": 4, "accumulate": 2, "log_every": 1, "validate_every": 2, "validate_limit": 2, "pictures": 0}
STREAMS = re.compile(r"cuda\.(Stream|stream|set_stream|CUDAGraph|graph)\b|torch\.Stream\b")
ADVERSARIAL = {"pixel": {"kind": "kd"}, "adversarial": {"kind": "adversarial"}}


class Messages(Listener):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def recipes(teacher: Path) -> dict[str, RunSpec]:
    """Methods that differ in losses, optimiser, averaging, length and student."""
    return {
        "queues": tiny_distillation(
            teacher, train={**TRAIN, "ema": 0.9}, optim={"name": "adamw", "clip_grad_norm": 1.0}
        ),
        "discriminator": tiny_distillation(teacher, train=TRAIN, distill={"losses": ADVERSARIAL}),
        "baseline": tiny_baseline(train={**TRAIN, "steps": 3}, model={"head_channels": 24}),
    }


def entry(spec: RunSpec, path: Path, **options: Any) -> Entry:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    return Entry(spec, directory, LocalReporter(directory.checkpoints, 9), **options)


def alone(spec: RunSpec, path: Path) -> RunDirectory:
    each = entry(spec, path)
    train(spec, World.current(), each.directory, each.reporter)
    return each.directory


def together(specs: dict[str, RunSpec], out: Path, **options: dict[str, Any]) -> dict[str, Ended]:
    entries = [entry(spec, out / name, **options.get(name, {})) for name, spec in specs.items()]
    return dict(zip(specs, train_cohort(entries, World()), strict=True))


def same_state(one: Any, other: Any) -> bool:
    """Whether two checkpoints hold the same numbers, but for seconds."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        kept = {key for key in one if key not in ("seconds", "images_per_second", "wait", "data_wait")}
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in kept)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(one == other)


def assert_same_run(found: RunDirectory, expected: RunDirectory) -> None:
    assert figures(found) == figures(expected)
    first, second = (load_file(run.path / "student.safetensors") for run in (found, expected))
    assert all(torch.equal(first[name], second[name]) for name in second)
    newest = list_checkpoints(expected.checkpoints)[0].name
    states = [torch.load(run.checkpoints / newest / STATE, weights_only=True) for run in (found, expected)]
    assert same_state(*states)


@pytest.fixture(scope="module")
def apart(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    out = tmp_path_factory.mktemp("apart")
    return {name: alone(spec, out / name) for name, spec in recipes(teacher).items()}


def test_members_are_the_runs_that_they_are_alone(
    teacher: Path, apart: dict[str, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = []
    real = SharedForward.teach
    monkeypatch.setattr(SharedForward, "teach", lambda *a: taught.append(1) or real(*a))
    broken = tiny_distillation(teacher, optim={"lr": 1e30, "warmup_steps": 0}, train=TRAIN)
    told = Messages()
    ended = together({"broken": broken, **recipes(teacher)}, tmp_path, broken={"listeners": [told]})
    for name, expected in apart.items():
        assert_same_run(RunDirectory(tmp_path / name), expected)
        result = ended[name]
        assert isinstance(result, dict)
        assert result["best"]["miou"] == expected.read_result()["best"]["miou"]  # type: ignore[index]
    assert isinstance(ended["broken"], TrainingError)
    assert any("failed at step" in text and "the others go on" in text for text in told.texts)
    assert len(taught) == TRAIN["steps"] * TRAIN["accumulate"]  # type: ignore[operator]


def asked_at(step: int) -> Callable[[], bool]:
    """Asked before every step: whether to leave, which is so before step `step`, counted from 0."""
    asked = iter(range(100))
    return lambda: next(asked) == step


def test_a_member_that_leaves_goes_on_in_another_cohort_and_at_another_step(
    teacher: Path, apart: dict[str, RunDirectory], tmp_path: Path
) -> None:
    specs = recipes(teacher)
    pair = {name: specs[name] for name in ("queues", "baseline")}
    ended = together(
        pair, tmp_path, queues={"asked_to_stop": asked_at(3)}, baseline={"asked_to_stop": asked_at(1)}
    )
    assert [str(ended[name]) for name in pair] == ["stopped at step 3", "stopped at step 1"]
    assert all(isinstance(each, Stopped) for each in ended.values())
    ended = together(specs, tmp_path)  # at the steps 3, 0 and 1
    for name, expected in apart.items():
        assert isinstance(ended[name], dict)
        assert_same_run(RunDirectory(tmp_path / name), expected)


def test_a_cohort_that_is_stopped_goes_on_apart(
    teacher: Path, apart: dict[str, RunDirectory], tmp_path: Path
) -> None:
    specs = recipes(teacher)
    pair = {name: specs[name] for name in ("discriminator", "baseline")}
    entries = [entry(spec, tmp_path / name) for name, spec in pair.items()]
    heartbeat = Heartbeat()  # the teacher is scored first, and asks as well
    with pytest.raises(Stopped, match="step 2"):
        train_cohort(entries, World(), lambda: heartbeat.beat.step == 2, heartbeat)
    assert_same_run(alone(pair["baseline"], tmp_path / "baseline"), apart["baseline"])


def test_a_member_without_memory_or_with_a_wrong_setting_ends_alone(
    teacher: Path, apart: dict[str, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainStep.__call__

    def greedy(self: TrainStep, *args: Any) -> Any:
        if "kd" in self.distiller.losses:
            raise torch.OutOfMemoryError("too little memory")
        return real(self, *args)

    monkeypatch.setattr(TrainStep, "__call__", greedy)
    bad = {"unfit": {"kind": "cirkd_memory", "pixel_memory": 40, "pixel_keys": 10**9}}
    specs = {
        "greedy": tiny_distillation(teacher, train=TRAIN, distill={"losses": {"kd": {"kind": "kd"}}}),
        "wrong": tiny_distillation(teacher, train=TRAIN, distill={"losses": bad}),
        "baseline": recipes(teacher)["baseline"],
    }
    ended = together(specs, tmp_path)
    assert isinstance(ended["greedy"], torch.OutOfMemoryError)
    assert isinstance(ended["wrong"], ConfigError)
    assert_same_run(RunDirectory(tmp_path / "baseline"), apart["baseline"])


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"seed": 1}, "seed"),
        ({"data": {"crop": [32, 32]}}, "data.crop"),
        ({"train": {"batch_size": 8}}, "train.batch_size"),
        ({"train": {"validate_every": 6}}, "train.validate_every"),
        ({"train": {"precision": "bf16"}}, "train.precision"),
        ({"data": {"workers": 1}}, "data.workers"),
    ],
)
def test_what_is_shared_must_be_equal(teacher: Path, change: dict[str, Any], setting: str) -> None:
    with refuses(setting, ConfigError, "one", "other"):
        check_cohort({"one": tiny_distillation(teacher), "other": tiny_distillation(teacher, **change)})


def test_members_have_one_teacher(teacher: Path) -> None:
    with refuses("teacher.weights", ConfigError, "one", "other", teacher):
        check_cohort({"one": tiny_distillation(teacher), "other": tiny_distillation(teacher.parent)})


def test_what_is_a_members_own_may_differ(teacher: Path) -> None:
    check_cohort({**recipes(teacher), "longer": tiny_distillation(teacher, train={**TRAIN, "steps": 9})})


def test_the_teachers_time_is_no_time_of_a_member_without_losses(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, now, teach = [0.0], time.perf_counter, SharedForward.teach

    def slowly(self: SharedForward, images: torch.Tensor) -> SegmentationOutput:
        late[0] += 1000.0
        return teach(self, images)

    monkeypatch.setattr(SharedForward, "teach", slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: now() + late[0])
    train = {**TRAIN, "steps": 1, "accumulate": 1}
    specs = {"kd": tiny_distillation(teacher, train=train), "baseline": tiny_baseline(train=train)}
    results = together(specs, tmp_path)
    assert results["kd"]["seconds"] > 1000.0  # type: ignore[index]
    assert results["baseline"]["seconds"] < 1000.0  # type: ignore[index]


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_kernels_are_not_chosen_by_their_time(deterministic: bool) -> None:
    spec = tiny_baseline(train={"deterministic": deterministic, "precision": "fp32"})
    before = torch.get_float32_matmul_precision()
    try:
        choose_arithmetic(spec, torch.device("cuda"))
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        with without_autotuning():  # as validations are done
            assert torch.backends.cudnn.benchmark is False
        assert torch.backends.cudnn.benchmark is not deterministic
        choose_arithmetic(spec, torch.device("cpu"))
        assert torch.backends.cudnn.benchmark is False
    finally:
        torch.set_float32_matmul_precision(before)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def test_all_members_compute_on_one_stream() -> None:
    """Streams of their own would let a companion's kernels decide in which order a member's sums are made."""
    found = [p.name for p in (REPO / "cirkd_ray").rglob("*.py") if STREAMS.search(p.read_text())]
    assert found == []
