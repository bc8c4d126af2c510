"""`cirkd eval`: the report's files, the data of a run, and what is refused."""

from __future__ import annotations

import json
import shutil

import cv2
import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.evaluation import evaluate, merge_results
from cirkd_ray.evaluate.inference import SlidingWindow, Views
from cirkd_ray.evaluate.job import EvaluationJob, Evaluator, worst_images
from cirkd_ray.models import build_model
from cirkd_ray.report.evaluation import usual_folder
from cirkd_ray.train.trained_on import run_data
from cirkd_ray.types import ClassSet
from cirkd_ray.weights import load_model, save_model
from tests.errors import refuses, require_error
from tests.unit.test_data_sets import make_folder

SIZE = {"height": 32, "width": 48, "val_images": 5}
SET = [text for key, value in SIZE.items() for text in ("--set", f"data.{key}={value}")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    data = build_dataset("shapes", split="val", **SIZE)
    folder = tmp_path_factory.mktemp("model")
    network = build_model("deeplabv3_mobilenetv2", num_classes=len(data.classes))
    save_model(network, folder, classes=data.classes, data="shapes")
    return folder


def job(model, **changes) -> EvaluationJob:
    return EvaluationJob(model=str(model), data="shapes", settings=SIZE, device="cpu", **changes)


def test_report_holds_what_the_evaluator_counted(model, tmp_path, capsys):
    out = tmp_path / "report"
    assert (
        main(["eval", str(model), *SET, "--boundary", "--worst", "2", "--out", str(out), "--device", "cpu"])
        == 0
    )
    printed = capsys.readouterr().out
    report = json.loads((out / "evaluation.json").read_text())
    data = build_dataset("shapes", split="val", **SIZE)
    expected = evaluate(load_model(model).model, data, device="cpu", boundary=True, per_image=True)
    scores = expected.metrics()
    assert report["confusion"] == expected.confusion.matrix.tolist()
    assert report["metrics"] == {k: v for k, v in scores.items() if not k.startswith("iou/")}
    for row in report["classes"]:
        assert row["iou"] == scores.get(f"iou/{row['name']}")
    low, high = (report["miou_interval"][key] for key in ("low", "high"))
    assert low <= high
    assert [row["name"] for row in report["worst_images"]] == [
        data.name(i) for i, _ in worst_images(expected, 2)
    ]
    assert (report["data"]["images"], report["model"]["name"]) == (5, "deeplabv3_mobilenetv2")
    assert f"{scores['miou'] * 100:.2f}" in printed
    classes = f"{scores['miou_classes']} of {scores['classes']} classes"
    assert f"| mIoU ({classes}) | {scores['miou'] * 100:.2f} |" in (out / "evaluation.md").read_text()
    for name in ("confusion.png", "worst.png"):
        assert cv2.imread(str(out / name)).std() > 5


def test_a_report_in_the_models_folder_may_be_moved_with_it(model, tmp_path, capsys):
    moved = shutil.copytree(model, tmp_path / "before")
    assert (
        main(["eval", str(moved), *SET, "--worst", "0", "--out", str(moved / "eval/x"), "--device", "cpu"])
        == 0
    )
    moved = moved.rename(tmp_path / "after")
    report = json.loads((moved / "eval/x/evaluation.json").read_text())
    assert (moved / "eval/x" / report["model"]["path"]).resolve() == moved
    assert str(tmp_path) not in (moved / "eval/x/evaluation.md").read_text()


def unlabelled_set(root) -> list[str]:
    """Arguments that name a `folder` data set of the model's classes in which no pixel is labelled."""
    names = build_dataset("shapes", split="val", **SIZE).classes.names
    make_folder(root, {"classes": names}, {"val/a": 255, "val/b": 255})
    return ["--data", "folder", "--root", str(root), "--device", "cpu"]


def test_an_evaluation_without_any_labelled_pixel_is_written_all_the_same(model, tmp_path, capsys):
    data, out = unlabelled_set(tmp_path / "raw"), tmp_path / "out"
    assert main(["eval", str(model), *data, "--out", str(out)]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    assert (report["metrics"]["miou"], report["miou_interval"], report["worst_images"]) == (None, None, [])
    assert report["ignored_pixels"] == 2 * 5 * 7
    assert (out / "confusion.png").exists()
    capsys.readouterr()
    assert main(["predict", str(model), *data, "--worst", "2", "--out", str(out)]) == 2
    require_error(capsys.readouterr().err, "--worst", "'val' of folder", "pixel")


def test_json_on_standard_output_and_no_interval(model, tmp_path, capsys):
    command = ["eval", str(model), *SET, "--json", "--bootstrap", "0", "--worst", "0", "--limit", "2"]
    assert (
        main([*command, "--out", str(tmp_path), "--flip", "--scales", "0.5", "1", "--window", "24x32"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["miou_interval"] is None
    assert report["data"]["images"] == 2
    assert report["settings"]["window"] == "24x32"
    assert report["settings"]["stride"] == "16x21"
    assert not (tmp_path / "worst.png").exists()


def test_a_runs_own_data_is_the_default(model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    for file in model.iterdir():
        (run / file.name).write_bytes(file.read_bytes())
    (run / "run.yaml").write_text(
        "model: {name: deeplabv3_mobilenetv2}\n"
        "data: {name: shapes, height: 32, width: 48, val_images: 3, crop: [32, 32], workers: 2}\n"
    )
    assert main(["eval", str(run), "--worst", "0", "--bootstrap", "0"]) == 0
    report = json.loads((run / "eval" / "shapes-val" / "evaluation.json").read_text())
    assert report["data"]["images"] == 3
    assert main(["eval", str(run), "--worst", "0", "--bootstrap", "0", "--flip", "--limit", "1"]) == 0
    assert sorted(p.name for p in (run / "eval").iterdir()) == ["shapes-val", "shapes-val-flip-first-1"]
    known = run_data(str(run))
    assert (known["name"], known["height"], known["val_split"]) == ("shapes", 32, "val")
    assert "workers" not in known


def test_reports_of_other_models_and_views_lie_in_other_folders(model):
    views = [Views(window=SlidingWindow((24, 32))), Views(window=SlidingWindow((24, 32), (8, 8)))]
    jobs = [job(model), job(model, precision="bf16"), *(job(model, views=view) for view in views)]
    models = ["a/student.safetensors", "b/student.safetensors", "c/model.json", "v1.0/model.json", "best.pth"]
    folders = [str(usual_folder(name, job(model))) for name in models]
    assert folders == [f"runs/eval-{name}-shapes-val" for name in ("a", "b", "c", "v1.0", "best")]
    assert [usual_folder("a/model.json", one).name for one in jobs] == [
        "eval-a-shapes-val",
        "eval-a-shapes-val-bf16",
        "eval-a-shapes-val-window-24x32",
        "eval-a-shapes-val-window-24x32-stride-8x8",
    ]
    assert usual_folder(str(model), job(model)).name == f"eval-{model.name}-shapes-val"


@pytest.mark.parametrize(
    ("arguments", "subject", "fact"),
    [
        (["--set", "train.steps=3"], "--set train.steps", "data.NAME"),
        (["--set", "data.heigth=3"], "data.heigth", "'height'"),
        (["--stride", "8"], "--stride", "--window"),
        (["--window", "8", "--stride", "9"], "window", "9"),
        (["--scales", "0"], "--scales", "0"),
        (["--split", "tset"], "data", "'tset'"),
        (["--data", "camvid"], "data.root", "'camvid'"),
        (["--limit", "0"], "--limit", "1"),
        (["--workers", "-1"], "--workers", "0"),
    ],
)
def test_mistakes_are_named_in_one_line(model, arguments, subject, fact, capsys, tmp_path):
    assert main(["eval", str(model), "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    require_error(error, subject, fact)
    assert len(error.splitlines()) <= 2


def test_a_folder_without_a_model_and_unknown_data(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--data", "shapes"]) == 2
    require_error(capsys.readouterr().err, tmp_path, "run's folder", "no weights")
    assert main(["eval", str(tmp_path)]) == 2
    require_error(capsys.readouterr().err, tmp_path, "--data NAME")


def test_out_that_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "below")
    assert main(["eval", str(model), *SET, "--limit", "1", "--worst", "0", "--out", out]) == 2
    require_error(capsys.readouterr().err, out, tmp_path / "file", "is a file")


def test_another_number_of_classes_and_other_names(model, tmp_path):
    few = ClassSet(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    save_model(build_model("deeplabv3_mobilenetv2", num_classes=2), tmp_path / "few", classes=few)
    with refuses(tmp_path / "few", ConfigError, "2 classes"):
        Evaluator(job(tmp_path / "few"))
    known = build_dataset("shapes", split="val", **SIZE).classes
    renamed = ClassSet(("other", *known.names[1:]), known.palette)
    save_model(load_model(model).model, tmp_path / "renamed", classes=renamed)
    assert "other / " in Evaluator(job(tmp_path / "renamed")).subject().warnings[0]
    assert Evaluator(job(model)).subject().warnings == ()
    turned = ClassSet(known.names[::-1], known.palette)
    save_model(load_model(model).model, tmp_path / "turned", classes=turned)
    with refuses(tmp_path / "turned", ConfigError, "order", "class 0"):
        Evaluator(job(tmp_path / "turned"))


def test_warnings_are_in_the_report_and_beside_the_json(model, tmp_path, capsys):
    known = build_dataset("shapes", split="val", **SIZE).classes
    renamed = ClassSet(("other", *known.names[1:]), known.palette)
    save_model(load_model(model).model, tmp_path / "renamed", classes=renamed, data="shapes")
    words = [str(tmp_path / "renamed"), *SET, "--limit", "1", "--device", "cpu", "--out"]
    assert main(["eval", *words, str(tmp_path / "r"), "--json", "--worst", "0", "--bootstrap", "0"]) == 0
    printed = capsys.readouterr()
    expected = f"class names of the model and of the data set differ: other / {known.names[0]}"
    (warning,) = json.loads(printed.out)["warnings"]
    assert warning.endswith(expected)
    assert f"cirkd: warning: {warning}" in printed.err
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["warnings"] == [warning]
    assert f"**Warning: {warning}.**" in (tmp_path / "r" / "evaluation.md").read_text()
    assert main(["predict", *words, str(tmp_path / "p"), "--write", "ids"]) == 0
    assert f"cirkd: warning: {warning}" in capsys.readouterr().err


def test_a_bare_weights_file_with_the_networks_name(model):
    file = str(model / "student.safetensors")
    named = Evaluator(job(file, network="deeplabv3_mobilenetv2")).evaluate()
    assert torch.equal(named.confusion.matrix, Evaluator(job(model)).evaluate().confusion.matrix)


def test_merged_shares_are_the_whole(model):
    evaluator = Evaluator(job(model, boundary=True))
    whole = evaluator.evaluate()
    merged = merge_results((evaluator.evaluate(rank, 3) for rank in range(3)), seconds=2.0)
    assert torch.equal(merged.confusion.matrix, whole.confusion.matrix)
    assert torch.equal(merged.boundary.iou(), whole.boundary.iou())
    assert (merged.per_image == whole.per_image).all()
    assert (merged.seconds, merged.images_per_second) == (2.0, 2.5)


def test_worst_images_come_worst_first_and_are_labelled(model):
    result = Evaluator(job(model)).evaluate()
    result.per_image[1, 1] = 0  # an image without a labelled pixel
    chosen = worst_images(result, 10)
    assert sorted(index for index, _ in chosen) == [0, 2, 3, 4]
    assert [score for _, score in chosen] == sorted(score for _, score in chosen)
