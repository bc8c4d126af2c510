"""What stands around a run: its teacher, shared by several runs, and finding the one to go on with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.cli import main
from cirkd_ray.config import RunSpec
from cirkd_ray.data import build_dataset
from cirkd_ray.data.base import spread
from cirkd_ray.errors import CheckpointError, ConfigError, DataError
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.train.locked import locked
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import each_alone
from cirkd_ray.train.stages import latest_run, named_folder, run_name, train_once
from tests.errors import refuses, require_error
from tests.tinyrun import tiny_baseline

TEACHER = "teacher of many"


def stub_runner(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
    for name in ("student.safetensors", "model.json"):
        (directory.path / name).write_text("{}")
    directory.write_result({"steps": spec.train.steps})
    return directory.read_result() or {}


def test_a_second_run_waits_for_the_teacher_that_another_trains(tmp_path: Path) -> None:
    spec, directory = tiny_baseline(), RunDirectory(tmp_path / "teachers" / "t")
    said: list[str] = []
    entered, free = threading.Event(), threading.Event()

    def slow(plan: RunSpec, where: RunDirectory) -> dict[str, Any]:
        entered.set()
        assert free.wait(30)
        return stub_runner(plan, where)

    first = threading.Thread(target=train_once, args=(TEACHER, spec, directory, slow, said.append))
    first.start()
    assert entered.wait(30)

    def say(text: str) -> None:
        said.append(text)
        free.set()

    assert train_once(TEACHER, spec, directory, stub_runner, say) is True
    first.join()
    assert ["training for" in said[0], "waiting for the process" in said[1], "trained before" in said[2]] == [
        True
    ] * 3
    assert all(text.startswith(f"{TEACHER}: ") for text in said)


def test_a_run_of_its_own_does_not_wait(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    cluster = tiny_baseline().cluster
    with (
        locked(directory, cluster, print),
        refuses(directory.path, ConfigError, "process"),
        locked(directory, cluster, print),
    ):
        pass


def test_a_teacher_whose_model_is_gone_is_named(tmp_path: Path) -> None:
    spec, directory = tiny_baseline(), RunDirectory(tmp_path / "t")
    assert train_once(TEACHER, spec, directory, stub_runner, lambda text: None) is False
    (directory.path / "student.safetensors").unlink()
    assert (directory.read_result() or {})["steps"] == 6
    with refuses(directory.path, CheckpointError, "student.safetensors", "result.json"):
        train_once(TEACHER, spec, directory, stub_runner, lambda text: None)


def test_the_latest_run_is_one_of_this_recipe(tmp_path: Path) -> None:
    for recipe in ("kd", "kd-strong"):
        RunDirectory(tmp_path / run_name(recipe)).create(tiny_baseline(name=recipe))
    RunDirectory(tmp_path / "kd-by-hand").create(tiny_baseline(name="kd"))
    found = latest_run(tmp_path, "kd")
    assert found is not None
    assert found.spec().name == "kd"
    assert found.path.name != "kd-by-hand"
    found.write_result({})
    assert latest_run(tmp_path, "kd") is None


def test_the_samples_of_the_preflight_reach_both_ends() -> None:
    assert spread(0, 4) == []
    assert spread(1, 4) == [0]
    assert spread(2, 4) == [0, 1]
    assert spread(101, 4) == [0, 33, 67, 100]


def test_drawn_scenes_take_no_root() -> None:
    with refuses("data.root", DataError, "'shapes'", "'/images'"):
        build_dataset("shapes", split="val", root="/images")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_start_that_failed_does_not_block_its_name(
    resume: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(tiny_baseline(cluster={"workers": 1}).to_yaml())
    line = ["train", str(recipe), "--local", "--out", str(tmp_path), "--name", "n", *resume]

    def no_room(*args: object) -> dict[str, Any]:
        raise ConfigError("cluster.workers: the cluster is too small")

    monkeypatch.setattr("cirkd_ray.train.local.run_together", no_room)
    assert main([*line, "--set", "optim.lr=0.5"]) == 2
    monkeypatch.setattr("cirkd_ray.train.local.run_together", lambda runs, listeners: [stub_runner(*runs[0])])
    monkeypatch.setattr("cirkd_ray.report.summary.print_outcome", lambda *args: None)
    assert main(line) == 0, capsys.readouterr().err
    assert RunDirectory(tmp_path / "n").spec().optim.lr == 0.02
    capsys.readouterr()
    assert main([*line[:7], "--set", "optim.lr=0.5", *resume]) == 2  # now there is a run
    if resume:
        assert f"--set model.weights={tmp_path / 'n'}" in capsys.readouterr().err


@pytest.mark.parametrize(("workers", "said"), [("2", True), ("1", False), ("auto", False)])
def test_workers_that_a_local_run_does_not_start_are_told(
    workers: str,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(tiny_baseline().to_yaml())
    monkeypatch.setattr("cirkd_ray.train.local.run_together", lambda runs, listeners: [stub_runner(*runs[0])])
    monkeypatch.setattr("cirkd_ray.report.summary.print_outcome", lambda *args: None)
    line = ["train", str(recipe), "--local", "--out", str(tmp_path), "--set", f"cluster.workers={workers}"]
    assert main(line) == 0
    assert ("cluster.workers: 2 is for Ray and torchrun" in capsys.readouterr().out) == said


def test_all_stages_share_one_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cirkd_ray.cluster import run

    happened: list[str] = []
    depth = 0

    @contextmanager
    def session(minimum_cpus: float) -> Iterator[None]:
        nonlocal depth
        happened.extend(["start"] * (depth == 0))
        depth += 1
        yield
        depth -= 1
        happened.extend(["shutdown"] * (depth == 0))

    monkeypatch.setattr(run, "ray_session", session)
    monkeypatch.setattr(run, "fit", lambda spec, directory: happened.append(spec.name) or {})
    with run.ray_runner() as together:
        runner = each_alone(together)
        assert happened == []  # a run that is finished already needs no Ray
        for name in ("teacher", "student"):
            runner(tiny_baseline(name=name), RunDirectory(tmp_path / name))
    assert happened == ["start", "teacher", "student", "shutdown"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", " ", "x" * 201])
@pytest.mark.parametrize("command", [["train"], ["tune", "smoke"], ["compare", "quickstart"]])
def test_a_name_is_that_of_one_folder(
    command: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--name", name, "--out", str(tmp_path / "out")]) == 2
    require_error(capsys.readouterr().err, f"--name {name[:40]!r}", "'/'")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device", "/out/metrics.jsonl")

    monkeypatch.setattr("cirkd_ray.config.schema.json_schema", full)
    assert main(["recipes", "schema"]) == 2
    assert capsys.readouterr().err == "cirkd: /out/metrics.jsonl: No space left on device\n"


def test_a_name_that_a_url_would_cut_is_refused(tmp_path: Path) -> None:
    with refuses("--name 'a?b'", ConfigError):
        named_folder(copy_of("s3://bucket/runs"), "a?b")
    assert named_folder(tmp_path, "a?b") == tmp_path / "a?b"


def test_a_run_behind_a_url_is_called_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRKD_SCRATCH", str(tmp_path))
    url = "s3://bucket/runs/a"
    directory = RunDirectory(copy_of(url))
    with refuses(url, ConfigError, "run.yaml"):
        directory.spec()
    spec = tiny_baseline()
    open_directory(directory, spec, resume=True)
    directory.append_metrics({"step": 1})
    with refuses(url, ConfigError, "--resume"):
        open_directory(directory, spec, resume=False)
    with refuses(url, ConfigError, "train.steps", f"model.weights={url}"):
        open_directory(directory, tiny_baseline(train={"steps": 77}), resume=True)
