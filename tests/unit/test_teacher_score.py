"""The teacher's score is of this run's own validation split, measured once and told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.compare.folder import read_comparison
from cirkd_ray.evaluate import ConfusionMatrix
from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.report.console import output
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.summary import print_outcome
from cirkd_ray.train import validation
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Outcome
from cirkd_ray.train.validation import SCORES, chance, near_chance, shared_scores, tell_better_student
from tests.tinyrun import SCENES, tiny_baseline, tiny_distillation

SHORT = {"steps": 1, "validate_every": 1, "checkpoint_every": 1, "pictures": 0}


def run(spec: Any, path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.create(spec)
    run_local(spec, directory, [RunLog(directory)])
    return directory


def result_of(directory: RunDirectory) -> dict[str, Any]:
    result = directory.read_result()
    assert result is not None
    return result


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run(tiny_baseline(train=SHORT), tmp_path_factory.mktemp("t") / "teacher")


def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is scored from now on."""
    scored: list[object] = []
    whole = validation.validate

    def validate(run: Any, network: Any, batches: Any, **pictures: Any) -> Any:
        scored.append(network)
        return whole(run, network, batches, **pictures)

    monkeypatch.setattr(validation, "validate", validate)
    return scored


def test_of_the_same_data_the_cards_own_score_is_taken(
    teacher: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = evaluations(monkeypatch)
    directory = run(tiny_distillation(teacher.path, train=SHORT), tmp_path / "x")
    found = result_of(directory)["teacher"]
    assert scored == []
    best = result_of(teacher)["best"]
    assert (found["miou"], found["pixel_accuracy"]) == (best["miou"], best["pixel_accuracy"])
    assert (found["miou_classes"], found["classes"]) == (best["miou_classes"], best["classes"])
    log = (directory.path / "log.txt").read_text()
    assert f"teacher: mIoU {100 * best['miou']:.2f} %" in log
    assert f"over {over_classes(best)}" in log


@pytest.mark.parametrize(
    "change", [{"data": {**SCENES, "seed": 1}}, {"train": {**SHORT, "validate_limit": 3}}]
)
def test_of_other_data_it_is_measured_once(
    change: dict[str, Any], teacher: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = evaluations(monkeypatch)
    spec = tiny_distillation(teacher.path, **{"train": SHORT, **change})
    shared_scores(tmp_path / "sweep")
    first = result_of(run(spec, tmp_path / "sweep/trials/a/g0"))["teacher"]
    assert first["miou"] != result_of(teacher)["best"]["miou"]
    assert first == result_of(run(spec, tmp_path / "sweep/trials/b/g0"))["teacher"]
    assert len(scored) == 1
    assert len(json.loads((tmp_path / "sweep" / SCORES).read_text())) == 1
    alone = run(spec, tmp_path / "alone")
    assert result_of(alone)["teacher"] == first
    assert len(scored) == 2
    alone.result.unlink()
    run_local(spec, alone, [])  # resumed
    assert result_of(alone)["teacher"] == first
    assert len(scored) == 2


def test_scores_kept_by_an_earlier_version_say_over_how_many_classes(
    teacher: RunDirectory, tmp_path: Path
) -> None:
    spec = tiny_distillation(teacher.path, train=SHORT, data={**SCENES, "seed": 1})
    directory = run(spec, tmp_path / "x")
    first, kept = result_of(directory), json.loads((directory.path / SCORES).read_text())
    old = {key: {**scores, "classes": scores.pop("miou_classes")} for key, scores in kept.items()}
    (directory.path / SCORES).write_text(json.dumps(old))
    directory.result.unlink()
    run_local(spec, directory)
    assert result_of(directory)["teacher"] == first["teacher"]


def test_the_terminal_shows_the_score_of_this_data(
    teacher: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run(tiny_distillation(teacher.path, train=SHORT, data={**SCENES, "seed": 1}), tmp_path / "x")
    result = {**result_of(directory), "teacher": {"miou": 0.1234}}
    print_outcome(Outcome(directory, result, teacher), output())
    print_outcome(Outcome(directory, result), output())
    assert capsys.readouterr().out.count("12.34") == 2


def test_a_comparison_takes_what_its_runs_measured(tmp_path: Path) -> None:
    recipe = tiny_baseline().to_dict()
    (tmp_path / "comparison.yaml").write_text(json.dumps({"methods": {"baseline": recipe, "kd": recipe}}))
    (tmp_path / "t").mkdir()
    (tmp_path / "t/result.json").write_text('{"best": {"miou": 0.9}}')  # of whatever it was trained on
    (tmp_path / "teachers.json").write_text('{"kd": "t"}')
    run_folder = tmp_path / "runs/kd-s0"
    run_folder.mkdir(parents=True)
    (run_folder / "run.yaml").write_text("{}")
    (run_folder / "result.json").write_text('{"teacher": {"miou": 0.3}, "last": {"miou": 0.2}}')
    assert read_comparison(tmp_path).teachers == {"kd": 0.3}


@pytest.mark.parametrize("pixels", [[50, 50], [98, 2], [5, 3, 2, 0], [7]])
def test_chance_is_the_better_of_two_blind_guesses(pixels: list[int]) -> None:
    labels = torch.cat([torch.full((count * 1000,), k) for k, count in enumerate(pixels)]).view(1, 1, -1)
    number, counted = len(pixels), sum(count > 0 for count in pixels)
    most = ConfusionMatrix(number)
    most.update(torch.full_like(labels, pixels.index(max(pixels))), labels)
    blind = ConfusionMatrix(number)
    blind.update(torch.randint(0, counted, labels.shape, generator=torch.manual_seed(0)), labels)
    assert chance(pixels) == pytest.approx(max(most.miou(), blind.miou()), abs=0.01)


def test_a_teacher_with_nothing_to_teach_is_told(
    teacher: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert near_chance({"miou": 0.06, "chance": 0.03})
    assert not near_chance({"miou": 0.6, "chance": 0.49})  # two classes, one of them rare
    assert not near_chance({"miou": math.nan, "chance": 0.0})
    monkeypatch.setattr(validation, "near_chance", lambda scores: True)
    directory = run(tiny_distillation(teacher.path, train=SHORT), tmp_path / "x")
    assert "WARNING: teacher: is hardly better than chance" in (directory.path / "log.txt").read_text()
    said: list[str] = []
    tell_better_student({"miou": 0.4}, {"miou": 0.3}, said.append)
    tell_better_student(None, {"miou": 0.3}, said.append)
    assert said == []
    tell_better_student({"miou": 0.4}, {"miou": 0.5, "miou_classes": 7, "classes": 8}, said.append)
    assert "40.00 %" in said[0]
    assert "50.00 % over 7 of 8 classes" in said[0]
