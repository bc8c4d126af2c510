"""Whole tiny runs in this process: files, resume, faults."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import ConfigError, StorageError, TrainingError
from cirkd_ray.train.checkpoint import STATE, list_checkpoints, newest_checkpoint
from cirkd_ray.train.dry_run import check_run
from cirkd_ray.train.local import run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import run_recipe
from cirkd_ray.weights import load_model
from tests.errors import refuses
from tests.tinyrun import KillAt, Killed, figures, tiny_baseline, tiny_distillation, tiny_tree
from tests.unit.test_data_sets import make_folder


class Messages(Listener):
    """Keeps what the run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


def new_run(spec: RunSpec, path: Path, *listeners: Listener) -> RunDirectory:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    run_local(spec, directory, listeners)
    return directory


@pytest.fixture(scope="module")
def undisturbed(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    spec = tiny_distillation(
        teacher, train={"ema": 0.9, "accumulate": 2}, optim={"name": "adamw", "clip_grad_norm": 1.0}
    )
    return new_run(spec, tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_run_leaves_what_the_readme_says(undisturbed: RunDirectory) -> None:
    rows = undisturbed.read_metrics()
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert {
        "lr",
        "images_per_second",
        "data_wait",
        "loss/total",
        "loss/task",
        "loss/kd",
        "loss/minibatch",
    } <= set(rows[0])
    assert {"loss/memory.memory_pixel", "loss/memory.memory_region", "grad_norm"} <= set(rows[0])
    assert [row["step"] for row in rows if "miou" in row] == [3, 6]
    result = undisturbed.read_result()
    assert result is not None
    assert result["steps"] == 6
    assert result["last"]["step"] == 6
    assert 0 <= result["last"]["miou"] <= result["best"]["miou"] <= 1
    assert any(key.startswith("iou/") for key in result["best"])
    recipe = undisturbed.recipe.read_text()
    assert "torch:" in recipe
    assert "git_commit" in recipe
    loaded = load_model(undisturbed.path)
    assert loaded.info["validation"]["miou"] == result["best"]["miou"]
    assert loaded.classes.names[0] == "road"


def test_total_is_the_weighted_sum_of_the_terms(undisturbed: RunDirectory) -> None:
    for row in undisturbed.read_metrics():
        memory = row["loss/memory.memory_pixel"] + row["loss/memory.memory_region"]
        total = row["loss/task"] + row["loss/kd"] + row["loss/minibatch"] + 0.1 * memory
        assert math.isclose(total, row["loss/total"], rel_tol=1e-5)


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(
    undisturbed: RunDirectory, tmp_path: Path, step: int
) -> None:
    spec, path = undisturbed.spec(), tmp_path / "run"
    with pytest.raises(Killed):  # before the checkpoint of that step
        new_run(spec, path, KillAt(step))
    messages = Messages()
    again = new_run(spec, path, messages)
    others = [text for text in messages.texts if "teacher: " not in text]
    assert others == [f"continuing at step 2 from {path / 'checkpoints' / 'step_00000002'}"]
    assert figures(again) == figures(undisturbed)
    first, second = (load_file(run.path / "student.safetensors") for run in (undisturbed, again))
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [
        torch.load(run.checkpoints / "step_00000006" / STATE, weights_only=True)
        for run in (undisturbed, again)
    ]
    for part in ("student", "losses", "average"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[0][part])


def test_a_truncated_checkpoint_is_passed_over_with_a_warning(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(undisturbed.path, path)
    run = RunDirectory(path)
    run.result.unlink()
    newest, before = list_checkpoints(run.checkpoints)
    with (newest / STATE).open("r+b") as file:
        file.truncate(1000)
    messages = Messages()
    again = new_run(undisturbed.spec(), path, messages)
    assert "is truncated (1000 of" in messages.texts[0]
    assert messages.texts[1].startswith(f"continuing at step {int(before.name[-8:])} from")
    assert figures(again) == figures(undisturbed)


@pytest.mark.parametrize("name", ["student.safetensors", "model.json"])
def test_a_lost_student_is_exported_again(undisturbed: RunDirectory, tmp_path: Path, name: str) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(undisturbed.path, run.path)
    for lost in (name, "result.json"):  # as the error of `read_finished` advises
        (run.path / lost).unlink()
    messages = Messages()
    new_run(undisturbed.spec(), run.path, messages)
    others = [text for text in messages.texts if "teacher: " not in text]
    assert others[1].startswith(f"{name} is not in {run.path}")
    assert figures(run) == figures(undisturbed)
    result, before = run.read_finished(), undisturbed.read_result()
    assert result is not None
    assert before is not None
    assert result["last"]["miou"] == before["last"]["miou"]
    assert result["best"]["step"] == 6
    assert load_model(run.path).info["validation"]["miou"] == result["last"]["miou"]


def test_a_changed_byte_is_noticed(undisturbed: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.checkpoints, tmp_path / "checkpoints")
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    data = bytearray((newest / STATE).read_bytes())
    data[len(data) // 2] ^= 1
    (newest / STATE).write_bytes(data)
    (list_checkpoints(tmp_path / "checkpoints")[1] / "manifest.json").unlink()
    found: list[str] = []
    assert newest_checkpoint(tmp_path / "checkpoints", found.append) is None
    assert "damaged (its checksum differs)" in found[0]
    assert "incomplete (manifest.json is missing)" in found[1]


def test_old_checkpoints_are_pruned(undisturbed: RunDirectory) -> None:
    assert [path.name for path in list_checkpoints(undisturbed.checkpoints)] == [
        "step_00000006",
        "step_00000004",
    ]


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_distillation(teacher, cluster={"storage_timeout": 0})
    real = torch.save

    def full_after_two(state: Any, file: Any) -> None:
        if state["step"] > 2:
            file.write(bytes(1000))
            raise OSError(28, "No space left on device")
        real(state, file)

    monkeypatch.setattr(torch, "save", full_after_two)
    path = tmp_path / "run"
    with refuses(
        path, StorageError, "No space left on device", path / "checkpoints/step_00000002", "--resume"
    ):
        new_run(spec, path)
    assert [p.name for p in (path / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    assert new_run(spec, path).read_result() is not None


def test_a_non_finite_loss_stops_with_step_name_and_last_checkpoint(teacher: Path, tmp_path: Path) -> None:
    spec = tiny_distillation(
        teacher, optim={"lr": 1e30, "warmup_steps": 0}, train={"checkpoint_every": 1, "log_every": 1}
    )
    with pytest.raises(TrainingError) as error:
        new_run(spec, tmp_path / "run")
    message = str(error.value)
    assert re.match(r"loss '\w+': .* step \d+; ", message), message
    kept = newest_checkpoint(tmp_path / "run" / "checkpoints", lambda text: None)
    if kept is not None:
        assert str(kept) in message


def test_a_poisoned_term_is_named(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cirkd_ray.losses.kd import KD

    calls = {"n": 0}
    real = KD.forward

    def poisoned(self: Any, inputs: Any) -> dict[str, torch.Tensor]:
        calls["n"] += 1
        found = real(self, inputs)
        return {name: value * float("nan") if calls["n"] == 4 else value for name, value in found.items()}

    monkeypatch.setattr(KD, "forward", poisoned)
    with refuses("loss 'kd'", TrainingError, "at step 4", "step_00000002"):  # the fourth, counted from 1
        new_run(tiny_distillation(teacher, train={"log_every": 10, "validate_every": 6}), tmp_path / "run")


def test_a_continued_run_must_be_the_same_recipe(undisturbed: RunDirectory) -> None:
    spec = undisturbed.spec()
    changed = spec.model_copy(update={"optim": spec.optim.model_copy(update={"lr": 0.5})})
    with refuses(undisturbed.path, ConfigError, "optim.lr=0.02", 0.5):
        open_directory(undisturbed, changed, resume=True)
    with refuses(undisturbed.path, ConfigError, "--resume", "--name"):
        open_directory(undisturbed, spec, resume=False)
    more = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"workers": 4})})
    open_directory(undisturbed, more, resume=True)


def test_teacher_stage_is_trained_once_and_reused(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(json.dumps(tiny_baseline(train={"steps": 2, "validate_every": 2}).to_dict()))
    losses = {"kd": {"kind": "kd"}}
    spec = tiny_baseline(teacher={"train": str(teacher)}, distill={"losses": losses}, train={"steps": 2})
    first = run_recipe(spec, RunDirectory(tmp_path / "out" / "a"), tmp_path / "out", run_local)
    assert first.teacher is not None
    assert first.reused == ()
    second = run_recipe(spec, RunDirectory(tmp_path / "out" / "b"), tmp_path / "out", run_local)
    assert second.reused == (second.teacher,)
    assert figures(first.directory) == figures(second.directory)


def test_a_teacher_of_other_classes_is_refused_before_training(teacher: Path, tmp_path: Path) -> None:
    card = json.loads((teacher / "model.json").read_text())
    shutil.copytree(teacher, tmp_path / "teacher")
    from cirkd_ray.models import build_model
    from cirkd_ray.types import ClassSet
    from cirkd_ray.weights import save_model

    model = build_model(card["name"], num_classes=3, **card["settings"])
    save_model(model, tmp_path / "teacher", ClassSet(("a", "b", "c"), ((0, 0, 0),) * 3))
    with refuses(f"teacher {tmp_path / 'teacher'}", ConfigError, "3 classes", 8):
        run_recipe(
            tiny_distillation(tmp_path / "teacher"), RunDirectory(tmp_path / "run"), tmp_path, run_local
        )
    assert not (tmp_path / "run").exists()


def test_what_would_fail_later_is_refused_before_the_teacher_is_trained(tmp_path: Path) -> None:
    losses = {"m": {"kind": "cirkd_memory", "pixel_memory": 10}}
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(json.dumps(tiny_baseline().to_dict()))
    spec = tiny_baseline(teacher={"train": str(teacher)}, distill={"losses": losses})
    with refuses("distill.losses.m", ConfigError, "pixel_memory: 10"):
        run_recipe(spec, RunDirectory(tmp_path / "run"), tmp_path, run_local)


def test_a_batch_that_does_not_divide_names_both_numbers(tmp_path: Path) -> None:
    with refuses("train.batch_size", ConfigError, 5, 2):
        new_run(tiny_baseline(train={"batch_size": 5, "accumulate": 2}), tmp_path / "run")


def test_data_of_ones_own_is_checked_and_trained_on(tmp_path: Path) -> None:
    root = make_folder(
        tmp_path / "own", {"classes": ["a", "b"]}, {f"day/{n}": n % 2 for n in range(4)} | {"night/x": 1}
    )
    data = {"name": "folder", "root": str(root), "train_split": "day", "val_split": "night", "crop": [32, 32]}
    tree = tiny_tree(train={"steps": 1, "validate_every": 1, "pictures": 0}) | {"data": data}
    spec = from_tree(tree)
    check_run(spec)
    directory = new_run(spec, tmp_path / "run")
    assert directory.read_metrics()[-1]["step"] == 1
    assert load_model(directory.path).classes.names == ("a", "b")
