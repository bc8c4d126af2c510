"""A recipe's baseline: trained beside it, kept and shared, told in the result, the table and the picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cirkd_ray.config import RunSpec, load_run
from cirkd_ray.errors import TrainingError
from cirkd_ray.report.comparison import PICTURE
from cirkd_ray.report.summary import gap_closed, outcome_rows, print_outcome
from cirkd_ray.train.baseline import baseline_directory, baseline_recipe
from cirkd_ray.train.local import run_local, run_together
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import each_alone
from cirkd_ray.train.stages import Outcome, run_recipe
from tests.tinyrun import figures, tiny_baseline, tiny_distillation

STEPS = {"steps": 2, "validate_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = RunDirectory(tmp_path_factory.mktemp("teacher") / "run")
    spec = tiny_baseline(train=STEPS)
    directory.create(spec)
    run_local(spec, directory)
    return directory.path


@pytest.fixture(scope="module")
def pair(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome, list[str]]:
    """Two runs of one recipe with a baseline, and what was trained for them."""
    out, trained = tmp_path_factory.mktemp("out"), []
    spec = tiny_distillation(teacher, baseline=True, train=STEPS)

    def runner(plan: RunSpec, directory: RunDirectory) -> dict[str, Any]:
        trained.append(plan.name)
        return run_local(plan, directory)

    runs = [run_recipe(spec, RunDirectory(out / name), out, runner) for name in ("a", "b")]
    return runs[0], runs[1], trained


def test_the_baseline_is_the_same_run_without_distillation(teacher: Path) -> None:
    spec = tiny_distillation(teacher, baseline=True)
    plan = baseline_recipe(spec)
    assert (plan.teacher, plan.distill, plan.baseline) == (None, None, False)
    for field in ("seed", "model", "task", "data", "optim", "train", "cluster"):
        assert getattr(plan, field) == getattr(spec, field)


def test_the_baseline_is_trained_once_for_all_recipes_of_its_student(
    pair: tuple[Outcome, Outcome, list[str]], teacher: Path, tmp_path: Path
) -> None:
    first, second, trained = pair
    assert trained == ["tiny/baseline", "tiny", "tiny"]
    assert first.baseline is not None
    assert first.baseline.path == second.baseline.path  # type: ignore[union-attr]
    assert (first.reused, second.reused) == ((), (second.baseline,))

    def place(spec: RunSpec) -> Path:
        return baseline_directory(baseline_recipe(spec), tmp_path).path

    spec = tiny_distillation(teacher)
    other = tiny_distillation(teacher, name="other", distill={"losses": {"kd": {"kind": "kd"}}})
    assert place(spec) == place(other) == place(tiny_distillation(teacher, cluster={"workers": 1}))
    assert place(spec).parent == tmp_path / "baselines"
    for change in ({"seed": 1}, {"optim": {"lr": 0.5}}, {"data": {"coarse": 1}}):
        assert place(spec) != place(tiny_distillation(teacher, **change))


Runs = Sequence[tuple[RunSpec, RunDirectory]]


def test_a_run_and_its_baseline_train_together_as_they_do_apart(
    pair: tuple[Outcome, Outcome, list[str]], teacher: Path, tmp_path: Path
) -> None:
    calls: list[list[str]] = []

    def together(runs: Runs, folder: Path) -> list[dict[str, Any] | Exception]:
        calls.append([spec.name for spec, _ in runs])
        assert folder == runs[0][1].path
        return run_together(runs, [()] * len(runs))

    spec, said = tiny_distillation(teacher, baseline=True, train=STEPS), []

    def run(name: str) -> Outcome:
        directory = RunDirectory(tmp_path / name)
        return run_recipe(
            spec, directory, tmp_path, each_alone(together), say=said.append, together=together, resume=True
        )

    found = run("a")
    assert calls == [["tiny", "tiny/baseline"]]
    assert any("together with the student alone" in text for text in said)
    apart = pair[0]
    assert found.baseline is not None
    assert apart.baseline is not None
    for one, other in ((found.directory, apart.directory), (found.baseline, apart.baseline)):
        assert figures(one) == figures(other)
        weights, others = (load_file(run.path / "student.safetensors") for run in (one, other))
        assert all(torch.equal(weights[name], others[name]) for name in others)
    assert found.result["baseline"]["best"]["miou"] == apart.result["baseline"]["best"]["miou"]
    run("a")  # nothing is left to be done
    found.directory.result.unlink()
    assert [run.path for run in run("a").reused] == [found.baseline.path]
    assert calls[1:] == [["tiny"]]


@pytest.mark.parametrize("place", [0, 1])
def test_a_pair_that_lacks_memory_is_trained_apart(place: int, teacher: Path, tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def together(runs: Runs, folder: Path) -> list[dict[str, Any] | Exception]:
        calls.append([spec.name for spec, _ in runs])
        found: list[dict[str, Any] | Exception] = [{"steps": 2} for _ in runs]
        if len(runs) == 2:
            found[place] = torch.OutOfMemoryError("CUDA out of memory")
        return found

    spec, said = tiny_distillation(teacher, baseline=True), []
    directory = RunDirectory(tmp_path / "run")
    run_recipe(spec, directory, tmp_path, each_alone(together), say=said.append, together=together)
    assert calls == [["tiny", "tiny/baseline"], [["tiny", "tiny/baseline"][place]]]
    assert any("too little memory beside the other run" in text for text in said)


def test_a_baseline_that_fails_is_told_when_its_run_is_finished(teacher: Path, tmp_path: Path) -> None:
    def together(runs: Runs, folder: Path) -> list[dict[str, Any] | Exception]:
        return [run_local(*runs[0]), TrainingError("optim.lr: the loss is not finite")]

    spec, directory = tiny_distillation(teacher, baseline=True, train=STEPS), RunDirectory(tmp_path / "run")
    with pytest.raises(TrainingError, match="not finite"):
        run_recipe(spec, directory, tmp_path, each_alone(together), together=together)
    assert directory.result.exists()


def test_the_result_tells_the_baselines_scores(pair: tuple[Outcome, Outcome, list[str]]) -> None:
    for outcome in pair[:2]:
        assert outcome.baseline is not None
        stored = json.loads(outcome.directory.result.read_text())
        alone = json.loads(outcome.baseline.result.read_text())
        assert stored == outcome.result
        path = stored["baseline"]["path"]  # both may be moved
        assert not Path(path).is_absolute()
        assert (outcome.directory.path / path).resolve() == outcome.baseline.path.resolve()
        assert stored["baseline"]["best"]["miou"] == alone["best"]["miou"]
        assert "baseline" not in alone


def test_a_recipe_without_the_setting_or_without_distillation_has_no_baseline(
    teacher: Path, tmp_path: Path
) -> None:
    for name, spec in {
        "a": tiny_distillation(teacher, train=STEPS),
        "b": tiny_baseline(baseline=True, train=STEPS),
    }.items():
        outcome = run_recipe(spec, RunDirectory(tmp_path / name), tmp_path, run_local)
        assert outcome.baseline is None
        assert "baseline" not in outcome.result
    assert not (tmp_path / "baselines").exists()


def test_a_run_with_another_value_of_the_setting_may_be_resumed(
    pair: tuple[Outcome, Outcome, list[str]], teacher: Path
) -> None:
    directory = pair[0].directory
    spec = tiny_distillation(teacher, train=STEPS)
    assert run_recipe(spec, directory, directory.path.parent, run_local, resume=True).baseline is None


def test_teacher_student_alone_and_distilled_stand_in_one_table_and_one_picture(
    pair: tuple[Outcome, Outcome, list[str]],
) -> None:
    outcome = pair[1]
    text = io.StringIO()
    print_outcome(outcome, Console(file=text, width=300, soft_wrap=True))
    assert [row[0] for row in outcome_rows(outcome)] == ["teacher", "student alone", "student distilled"]
    assert all(row[2] != "-" and row[3] != "-" for row in outcome_rows(outcome))
    picture = outcome.directory.path / PICTURE
    assert f"picture      {picture}" in text.getvalue()
    assert "(trained before)" in text.getvalue()
    height, width = cv2.imread(str(picture)).shape[:2]
    assert width > 5 * 384
    assert height > 5 * 192


@pytest.mark.parametrize(
    ("distilled", "told"),
    [(0.5, "+10.00 points of mIoU: 50 % of the gap"), (0.35, "-5.00 points of mIoU: -25 % of the gap")],
)
def test_the_share_of_the_gap_is_told(teacher: Path, tmp_path: Path, distilled: float, told: str) -> None:
    runs = {name: RunDirectory(tmp_path / name) for name in ("run", "alone", "teacher")}
    runs["run"].create(tiny_distillation(teacher))
    for name, miou in (("alone", 0.4), ("teacher", 0.6)):
        runs[name].path.mkdir()
        runs[name].write_result({"best": {"miou": miou}})
    outcome = Outcome(runs["run"], {"best": {"miou": distilled}}, runs["teacher"], runs["alone"])
    assert told in str(gap_closed(outcome))
    runs["teacher"].write_result({"best": {"miou": 0.4}})
    assert "%" not in str(gap_closed(outcome))  # there is no gap
    runs["teacher"].write_result({"best": {"miou": 0.415}})
    assert "points of mIoU; the teacher is only 1.50 ahead" in str(gap_closed(outcome))  # noise


def test_classes_that_are_never_right_are_told_beside_the_gap(teacher: Path, tmp_path: Path) -> None:
    runs = {name: RunDirectory(tmp_path / name) for name in ("run", "alone")}
    runs["run"].create(tiny_distillation(teacher))
    runs["alone"].path.mkdir()
    runs["alone"].write_result({"best": {"miou": 0.2}})
    best = {"miou": 0.3, "iou/sky": 0.6, "iou/pole": 0.0, "iou/sign": 0.0}
    assert "IoU of pole, sign is 0" in str(
        gap_closed(Outcome(runs["run"], {"best": best}, None, runs["alone"]))
    )


def test_the_quick_start_compares_and_its_teacher_comes_with_the_package() -> None:
    spec = load_run("quickstart")
    assert spec.baseline
    assert spec.teacher is not None
    assert spec.teacher.weights == "package://quickstart/teacher"
    teacher, alone = load_run("quickstart/teacher"), load_run("quickstart/baseline")
    assert teacher.train.export == "fp16"
    assert baseline_recipe(spec).model == alone.model
    assert (alone.data, alone.distill) == (spec.data, None)
