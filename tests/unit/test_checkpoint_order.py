"""A checkpoint is on disk before the validation of the same step: a validation that fails costs no step."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.config import from_tree
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.inference import SlidingWindow, Views
from cirkd_ray.evaluate.job import EvaluationJob, Evaluator
from cirkd_ray.models.segmentation import EncoderDecoder
from cirkd_ray.train import loop, validation
from cirkd_ray.train.checkpoint import STATE, list_checkpoints, remove_partial_checkpoints
from cirkd_ray.train.dry_run import check_run
from cirkd_ray.train.local import run_local
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import open_directory
from cirkd_ray.train.step import TrainStep
from tests.errors import refuses
from tests.tinyrun import figures, tiny_baseline, tiny_tree

SPEC = tiny_baseline(train={"steps": 4, "validate_every": 2, "checkpoint_every": 2})


def run(path: Path, *listeners: Listener, spec: Any = SPEC, start: Path | None = None) -> RunDirectory:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    if start is None:
        run_local(spec, directory, listeners)
    else:
        world = loop.World.current()
        reporter = LocalReporter(directory.checkpoints, 2)
        loop.train(spec, world, directory, reporter, listeners, start)
    return directory


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(tmp_path_factory.mktemp("order") / "run")


class Counted:
    """Calls of a function, one of which may fail."""

    def __init__(self, function: Any, fails: int = -1) -> None:
        self.function, self.fails, self.calls = function, fails, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls - 1 == self.fails:
            raise MemoryError("too many classes")
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("fails", [0, 1])
def test_a_failed_validation_costs_no_step_and_is_done_on_resume(
    undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    path, step = tmp_path / "run", 2 * (fails + 1)
    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", Counted(validation.evaluate, fails))
        with pytest.raises(MemoryError):
            run(path)
    assert list_checkpoints(path / "checkpoints")[0].name == f"step_{step:08d}"
    steps = Counted(TrainStep.__call__)
    monkeypatch.setattr(TrainStep, "__call__", lambda *args: steps(*args))
    again = run(path)
    assert steps.calls == 4 - step
    assert figures(again) == figures(undisturbed)
    results = [found.read_result() or {} for found in (again, undisturbed)]
    for key in ("best", "last"):
        told = [{k: v for k, v in result[key].items() if k != "images_per_second"} for result in results]
        assert told[0] == told[1]


def test_a_validation_that_was_done_is_not_repeated(
    undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KillAtThree(Listener):
        def metrics(self, step: int, metrics: Any) -> None:
            if step == 3:
                raise MemoryError

    spec = from_tree(tiny_tree(train={**SPEC.train.model_dump(), "log_every": 3}))
    with pytest.raises(MemoryError):
        run(tmp_path / "run", KillAtThree(), spec=spec)
    validations = Counted(validation.evaluate)
    monkeypatch.setattr(validation, "evaluate", validations)
    again = run(tmp_path / "run", spec=spec)
    assert validations.calls == 1
    rows = [row["step"] for row in again.read_metrics()]
    assert rows == [2, 3, 4]
    result = again.read_result() or {}
    assert result["best"]["miou"] == (undisturbed.read_result() or {})["best"]["miou"]


def test_a_run_from_anothers_checkpoint_has_the_scores_of_its_validation(
    undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = Counted(validation.evaluate)
    monkeypatch.setattr(validation, "evaluate", validations)
    other = run(tmp_path / "run", start=undisturbed.checkpoints / "step_00000002")
    assert figures(other) == figures(undisturbed)[1:]
    own, before = (found.read_result() or {} for found in (other, undisturbed))
    assert own["last"]["miou"] == before["last"]["miou"]


def test_windows_of_validation_are_those_of_eval(tmp_path: Path) -> None:
    window = {"validate_window": [32, 40], "validate_stride": [32, 24]}
    found = run(tmp_path / "run", spec=tiny_baseline(train={**SPEC.train.model_dump(), "steps": 1, **window}))
    views = Views(window=SlidingWindow((32, 40), (32, 24)))
    settings = {"height": 32, "width": 64, "train_images": 40, "val_images": 6}
    job = EvaluationJob(str(found.path), "shapes", device="cpu", settings=settings, views=views)
    assert Evaluator(job).evaluate().metrics()["miou"] == (found.read_result() or {})["last"]["miou"]
    for wrong in ({"validate_stride": [8, 8]}, {"validate_window": [8, 8], "validate_stride": [9, 8]}):
        with pytest.raises(ConfigError, match=r"validate_stride: needs a validate_window"):
            tiny_baseline(train=wrong)
    larger = tiny_baseline(
        train={**SPEC.train.model_dump(), "steps": 1, **window, "validate_window": [32, 48]}
    )
    with pytest.raises(ConfigError, match=r"validate_window=\[32, 40\], not \[32, 48\]"):
        open_directory(found, larger, resume=True)  # as the message about memory says


def test_numbers_that_are_not_finite_are_null_on_disk_and_nan_when_read(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append_metrics({"step": 1, "loss/kd": math.inf, "miou": math.nan, "lr": 0.5})
    directory.write_result({"steps": 1, "best": {"miou": math.nan, "iou/a": 0.5}, "images_per_second": None})
    directory.append_validation(1, {"miou": math.nan}, {"miou": 0.25})
    for path in (directory.metrics, directory.validations, directory.result):
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    (row,) = directory.read_metrics()
    assert math.isnan(row["miou"])
    assert math.isnan(row["loss/kd"])
    assert row["lr"] == 0.5
    result = directory.read_result() or {}
    assert math.isnan(result["best"]["miou"])
    assert result["images_per_second"] is None
    assert math.isnan((directory.read_validation(1) or {})["best"]["miou"])
    directory.rewind(1, validated=False)
    assert directory.read_metrics() == []
    assert directory.read_validation(1) is None


def test_what_a_killed_upload_left_is_removed(undisturbed: RunDirectory, tmp_path: Path) -> None:
    whole = undisturbed.checkpoints / "step_00000002"
    for name in ("step_00000008", "step_00000009", "step_00000010"):
        shutil.copytree(whole, tmp_path / name)
    (tmp_path / "step_00000008" / STATE).unlink()
    (tmp_path / "step_00000009" / "manifest.json").unlink()
    with (tmp_path / "step_00000010" / STATE).open("r+b") as state:
        state.truncate(100)
    (tmp_path / "step_00000007").symlink_to(whole)
    remove_partial_checkpoints(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000007"]


def test_a_crop_that_leaves_batchnorm_one_value_is_named(tmp_path: Path) -> None:
    model = {"name": "deeplabv3_resnet18", "pretrained": False}
    small = tiny_baseline(
        model=model, data={"crop": [8, 8]}, train={"batch_size": 1, "steps": 1}, cluster={"workers": 1}
    )
    with refuses("data.crop", ConfigError):
        check_run(small)
    with refuses("data.crop", ConfigError) as caught:
        run(tmp_path / "run", spec=small)
    assert "train.batch_size" in str(caught.value)
    check_run(tiny_baseline(model=model, data={"crop": [8, 8]}))


def test_a_crop_that_is_too_small_for_a_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = EncoderDecoder.forward

    def picky(self: Any, images: torch.Tensor) -> Any:
        if images.shape[2] < 64:
            raise RuntimeError("Output size is too small")
        return forward(self, images)

    monkeypatch.setattr(EncoderDecoder, "forward", picky)
    with refuses("data.crop", ConfigError) as caught:
        check_run(SPEC)
    assert "Output size is too small" in str(caught.value)
