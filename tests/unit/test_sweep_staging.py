"""A teacher's weights go to a node once."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from cirkd_ray.cluster import staging
from cirkd_ray.cluster.staging import staged
from cirkd_ray.weights import load_model
from tests.tinyrun import tiny_baseline, tiny_distillation


def test_many_runs_on_a_node_copy_a_teacher_once(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "teacher"
    shutil.copytree(teacher, source)
    spec, cache = tiny_distillation(source), tmp_path / "cache"
    copies: list[Path] = []
    copy = staging._copy
    monkeypatch.setattr(staging, "_copy", lambda files, folder: (copies.append(folder), copy(files, folder)))
    found = []
    threads = [threading.Thread(target=lambda: found.append(staged(spec, cache))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1
    assert len({str(run.teacher.weights) for run in found}) == 1
    weights = Path(found[0].teacher.weights)
    assert weights.is_relative_to(cache)
    shutil.rmtree(source)
    load_model(weights)  # whole, and without a look at the source
    assert not list(cache.glob(".*.partial"))


def test_other_weights_under_the_same_name_are_another_copy(teacher: Path, tmp_path: Path) -> None:
    source = tmp_path / "teacher"
    shutil.copytree(teacher, source)
    spec, cache = tiny_distillation(source), tmp_path / "cache"
    first = staged(spec, cache)
    (source / "model.json").write_text((source / "model.json").read_text() + "\n")
    second = staged(spec, cache)
    assert first.teacher is not None
    assert second.teacher is not None
    assert first.teacher.weights != second.teacher.weights


@pytest.mark.parametrize("name", ["model.json", "student.safetensors"])
def test_a_file_of_a_run_goes_with_the_other(teacher: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / "teacher"
    shutil.copytree(teacher, source)
    found = staged(tiny_distillation(source / name), tmp_path / "cache")
    shutil.rmtree(source)
    assert found.teacher is not None
    assert Path(str(found.teacher.weights)).name == name
    load_model(str(found.teacher.weights))


def test_runs_without_local_weights_stay_as_they_are(tmp_path: Path) -> None:
    assert staged(tiny_baseline(), tmp_path) == tiny_baseline()
