"""A teacher's weights go to a node once, and none of them stay there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cirkd_ray.cluster import staging
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.staging import remove_unused, staged
from cirkd_ray.config import RunSpec
from cirkd_ray.weights import load_model
from tests.paths import REPO
from tests.tinyrun import tiny_baseline, tiny_distillation

HOLDER = """
import sys
from pathlib import Path
from cirkd_ray.cluster.staging import staged
from cirkd_ray.config import load_run
with staged(load_run(sys.argv[1]), Path(sys.argv[2])) as run:
    print(run.teacher.weights, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def source(teacher: Path, tmp_path: Path) -> Path:
    shutil.copytree(teacher, tmp_path / "teacher")
    return tmp_path / "teacher"


def weights_of(run: RunSpec) -> Path:
    assert run.teacher is not None
    return Path(str(run.teacher.weights))


def test_many_runs_on_a_node_copy_a_teacher_once_and_the_last_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, cache = tiny_distillation(source), tmp_path / "cache"
    copies: list[Path] = []
    copy, together, gone = staging._copy, threading.Barrier(7), threading.Event()
    monkeypatch.setattr(staging, "_copy", lambda files, folder: (copies.append(folder), copy(files, folder)))
    found: list[Path] = []

    def run() -> None:
        with staged(spec, cache) as mine:
            found.append(weights_of(mine))
            together.wait(120)
            assert gone.wait(120)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    together.wait(120)
    assert not remove_unused(cache)
    assert len(copies) == 1
    assert len(set(found)) == 1
    assert found[0].is_relative_to(cache)
    shutil.rmtree(source)
    load_model(found[0])  # whole, and without a look at the source
    gone.set()
    for thread in threads:
        thread.join()
    assert remove_unused(cache)
    assert not cache.exists()


def test_other_weights_under_the_same_name_are_another_copy(source: Path, tmp_path: Path) -> None:
    spec, cache = tiny_distillation(source), tmp_path / "cache"
    with staged(spec, cache) as first:
        (source / "model.json").write_text((source / "model.json").read_text() + "\n")
        with staged(spec, cache) as second:
            assert weights_of(first) != weights_of(second)
            assert weights_of(first).is_dir()


@pytest.mark.parametrize("name", ["model.json", "student.safetensors"])
def test_a_file_of_a_run_goes_with_the_other(source: Path, tmp_path: Path, name: str) -> None:
    with staged(tiny_distillation(source / name), tmp_path / "cache") as found:
        shutil.rmtree(source)
        assert weights_of(found).name == name
        load_model(str(weights_of(found)))


def test_runs_without_local_weights_stay_as_they_are(tmp_path: Path) -> None:
    with staged(tiny_baseline(), tmp_path) as found:
        assert found == tiny_baseline()


def test_a_disk_without_room_is_done_without(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(files: list[Path], folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging, "_copy", full)
    with staged(tiny_distillation(source), tmp_path / "cache") as found:
        assert weights_of(found) == source
    assert remove_unused(tmp_path / "cache")


def test_what_a_killed_worker_left_goes_with_the_next_and_what_a_living_one_has_stays(
    source: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_distillation(source).to_yaml())
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(recipe), str(cache)],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        theirs = Path(holder.stdout.readline().strip())
        (cache / f".{'0' * 16}.{'a' * 12}.partial").mkdir()  # of a copy that was being made
        (cache / ("0" * 16)).mkdir()  # without a lock, as earlier versions left it
        other = tmp_path / "other"
        shutil.copytree(source, other)
        with staged(tiny_distillation(other), cache) as mine:
            assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted(
                (theirs.name, weights_of(mine).name)
            )
        holder.kill()
        holder.wait(timeout=60)
        assert theirs.is_dir()
        with staged(tiny_distillation(other), cache) as mine:
            assert not theirs.exists()
            assert weights_of(mine).is_dir()
    finally:
        holder.kill()
        holder.wait(timeout=60)
    assert remove_unused(cache)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_call_removes_the_copies_of_its_workers_at_its_end(
    ray_cluster: None, source: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with ray_session():
        with staged(tiny_distillation(source), cache) as mine:
            assert weights_of(mine).is_dir()
        assert weights_of(mine).is_dir()  # the next trial on this node finds it
    assert not cache.exists()
