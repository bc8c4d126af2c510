"""The page of a single run: from its files alone, and with what its networks see in validation images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cirkd_ray.cli import main
from cirkd_ray.report.run_images import look
from cirkd_ray.report.run_page import class_table
from cirkd_ray.train.local import run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.tinyrun import tiny_distillation


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    spec = tiny_distillation(teacher, train={"steps": 3})
    directory = RunDirectory(tmp_path_factory.mktemp("report") / "run")
    open_directory(directory, spec, resume=False)
    run_local(spec, directory)
    return directory


def test_a_page_of_files_alone(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--images", "0"]) == 0
    page = Path(capsys.readouterr().out.split()[-1])
    text = page.read_text()
    assert page == run.path / "report" / "index.html"
    assert "3 of 3 steps" in text
    assert "Confusion" not in text
    assert not re.search(r'(src|href)="https?://', text)


def test_a_page_with_images(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run.path), "--images", "4"]) == 0
    folder = run.path / "report"
    text = (folder / "index.html").read_text()
    for name in ("curves", "confusion", "best", "worst", "relations", "embeddings"):
        assert (folder / f"{name}.png").stat().st_size > 1000, name
    assert "Classes, on 4 validation images" in text
    assert "teacher IoU %" in text


def test_the_table_of_classes_is_that_of_the_counts(run: RunDirectory) -> None:
    seen = look(run, 6, lambda count: None)
    student = run.read_finished()
    assert student is not None
    assert seen.images == 6
    assert seen.networks["student"].miou == pytest.approx(student["best"]["miou"])  # all of the split
    table = class_table(seen)
    assert len(table.rows) == len(seen.classes) + 1
    assert table.columns == ("class", "student IoU %", "teacher IoU %")
