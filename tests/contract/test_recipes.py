"""Every row of the published tables is a recipe, with its figure and the published settings."""

from __future__ import annotations

import pytest

from cirkd_ray.cli import main
from cirkd_ray.compare.plan import methods_of
from cirkd_ray.config import load_run, load_tree, parse
from cirkd_ray.train.cohort import cohorts_of

PUBLISHED = {
    "cityscapes/teacher_deeplabv3_resnet101": 78.07,
    "cityscapes/teacher_segformer_b4": 81.23,
    "cityscapes/baseline_pspnet_resnet18": 72.55,
    "cityscapes/cirkd_pspnet_resnet18": 74.73,
    "voc/teacher_deeplabv3_resnet101": 77.67,
    "voc/baseline_deeplabv3_resnet18": 73.21,
    "voc/cirkd_deeplabv3_resnet18": 74.50,
    "voc/baseline_pspnet_resnet18": 73.33,
    "voc/cirkd_pspnet_resnet18": 74.78,
    "camvid/teacher_deeplabv3_resnet101": 69.84,
    "camvid/baseline_deeplabv3_resnet18": 66.92,
    "camvid/cirkd_deeplabv3_resnet18": 68.21,
    "camvid/baseline_pspnet_resnet18": 66.73,
    "camvid/cirkd_pspnet_resnet18": 68.65,
    "ade20k/teacher_deeplabv3_resnet101": 42.70,
    "ade20k/baseline_deeplabv3_resnet18": 33.91,
    "ade20k/cirkd_deeplabv3_resnet18": 35.41,
    "coco_stuff_164k/teacher_deeplabv3_resnet101": 38.71,
    "coco_stuff_164k/baseline_deeplabv3_resnet18": 32.60,
    "coco_stuff_164k/cirkd_deeplabv3_resnet18": 33.11,
}
METHODS = ("baseline", "skd", "ifvd", "cwd", "dsd", "cirkd")
STUDENTS = {
    "deeplabv3_resnet18": (74.21, 75.42, 75.59, 75.55, 74.81, 76.38),
    "deeplabv3_mobilenetv2": (73.12, 73.82, 73.50, 74.66, 74.11, 75.42),
    "segformer_b0": (75.58, 76.43, 76.30, 74.80, 76.62, 76.92),
}
PUBLISHED |= {
    f"cityscapes/{method}_{student}": figure
    for student, figures in STUDENTS.items()
    for method, figure in zip(METHODS, figures, strict=True)
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_row_states_its_figure_and_names_its_networks(name: str) -> None:
    spec = parse(load_tree(name), name)
    assert spec.published is not None
    assert spec.published.miou == PUBLISHED[name]
    method, student = name.split("/")[1].split("_", 1)
    assert spec.model.name == student
    assert (spec.distill is None) == (method in ("teacher", "baseline"))
    if spec.distill is not None:
        assert spec.teacher is not None
        assert spec.teacher.train in PUBLISHED


def test_published_settings() -> None:
    cnn = load_run("cityscapes/cirkd_deeplabv3_resnet18")
    assert (cnn.train.steps, cnn.train.batch_size, cnn.optim.lr) == (40_000, 16, 0.02)
    assert (cnn.optim.name, cnn.optim.momentum, cnn.optim.weight_decay) == ("sgd", 0.9, 1e-4)
    assert cnn.data.crop == (512, 1024)
    transformer = load_run("cityscapes/cwd_segformer_b0")
    assert (transformer.train.steps, transformer.train.batch_size) == (160_000, 8)
    assert (transformer.optim.name, transformer.optim.lr) == ("adamw", 2e-4)
    assert (transformer.optim.weight_decay, transformer.data.crop) == (1e-4, (1024, 1024))
    assert transformer.distill is not None
    weights = {name: loss.weight for name, loss in transformer.distill.losses.items() if loss}
    assert weights == {"kd": 1, "adversarial": 0.001, "cwd_feature": 5, "cwd_logit": 0.3}
    voc = load_run("voc/cirkd_pspnet_resnet18").distill
    assert voc is not None
    assert voc.losses["cirkd_memory"].weights == {"memory_pixel": 0.01, "memory_region": 0.01}
    assert load_run("coco_stuff_164k/baseline_deeplabv3_resnet18").train.steps == 80_000


def test_the_small_pair_is_compared_in_one_cohort_a_seed() -> None:
    names = ("baseline", "kd", "cwd", "dist", "cirkd", "cirkd_reference")
    methods = methods_of([(name, load_run(f"camvid/small/{name}")) for name in names])
    assert tuple(methods) == names
    assert cohorts_of(methods) == [list(names)]
    teacher = load_run("camvid/small/teacher")
    for name, spec in methods.items():
        assert spec.data == teacher.data
        if name != "baseline":
            assert spec.teacher is not None
            assert spec.teacher.train == "camvid/small/teacher"


def test_the_commands_print_figures_and_their_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "cityscapes/cirkd_deeplabv3_resnet18"]) == 0
    assert "# published: 76.38 mIoU (val), CIRKD, CVPR 2022" in capsys.readouterr().out
    assert main(["recipes", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name, figure in PUBLISHED.items():
        assert f"{figure:.2f} (val)" in rows[name]
