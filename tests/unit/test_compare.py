"""Comparisons: statistics against independent computation, what may be compared, the tables."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from cirkd_ray.cli import main
from cirkd_ray.cluster import compare
from cirkd_ray.compare.budget import share_of_time
from cirkd_ray.compare.folder import CompareData, read_comparison
from cirkd_ray.compare.plan import begun_comparison, methods_of, open_comparison, seeds_of
from cirkd_ray.compare.statistics import compare_to_baseline, holm, paired_p, t_interval
from cirkd_ray.config import load_run
from cirkd_ray.errors import ConfigError
from cirkd_ray.report.compare import comparison_figure, csv_text, markdown, methods_table
from cirkd_ray.train.outcome import write_outcome
from cirkd_ray.train.same_data import DataGuard
from tests.errors import refuses, require_error


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    draws = random.normal(3.0, 2.0, (2000, 4))
    inside = [interval.low <= 3.0 <= interval.high for interval in map(t_interval, draws.tolist())]
    assert 0.935 < np.mean(inside) < 0.965


def test_one_run_has_a_mean_and_no_interval() -> None:
    interval = t_interval([0.4])
    assert interval.mean == 0.4
    assert math.isnan(interval.low)
    assert math.isnan(paired_p([0.1]))


def test_the_paired_test_is_scipys_and_uses_common_seeds_only() -> None:
    method, baseline = {0: 0.5, 1: 0.55, 2: 0.52, 3: 0.9}, {0: 0.48, 1: 0.5, 2: 0.51, 4: 0.1}
    found = compare_to_baseline({"a": method}, baseline)["a"]
    expected = stats.ttest_rel([0.5, 0.55, 0.52], [0.48, 0.5, 0.51])
    assert found.seeds == 3
    assert found.p == pytest.approx(expected.pvalue)
    assert found.p_holm == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
    assert found["a"] == pytest.approx(0.03)
    assert found["c"] == pytest.approx(0.06)
    assert found["b"] == pytest.approx(0.06)  # never below a smaller p's
    assert math.isnan(found["d"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_equal_differences_are_certain_and_no_difference_is_none() -> None:
    assert paired_p([0.01, 0.01, 0.01]) == 0.0
    assert paired_p([0.0, 0.0]) == 1.0


def test_a_baseline_is_made_where_none_is_given() -> None:
    spec = load_run("quickstart")
    methods = methods_of([("quickstart", spec)])
    assert list(methods) == ["baseline", "quickstart"]
    assert methods["baseline"].distill is None
    assert methods["baseline"].model == spec.model
    given = methods_of([("quickstart", spec), ("quickstart/baseline", load_run("quickstart/baseline"))])
    assert list(given) == ["baseline", "quickstart"]


def test_a_recipe_that_distils_does_not_take_the_controls_name() -> None:
    distils, plain = load_run("quickstart"), load_run("quickstart/baseline")
    for others in ([], [("plain", plain)]):
        with refuses("RECIPE", ConfigError, "'baseline'"):
            methods_of([("mine/baseline.yaml", distils), *others])


def test_a_teacher_whose_recipe_has_changed_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []
    monkeypatch.setattr(
        compare, "train_once", lambda name, spec, directory, fit, say, data: trained.append(directory.path)
    )
    trains = "teacher.train=quickstart/teacher"
    spec = load_run("quickstart", [trains])
    first = methods_of([("a/kd", spec), ("a/cwd", spec)])
    data = DataGuard.of(spec)
    found = compare._with_teachers(first, tmp_path, tmp_path, print, data)
    assert len(trained) == 1  # one for both
    assert found["kd"].teacher is not None
    assert found["kd"].teacher.weights == str(trained[0])
    assert found["baseline"].teacher is None
    changed = load_run("quickstart", [trains, "teacher.set=[train.steps=3]"])
    compare._with_teachers(
        methods_of([("a/new", changed)]), tmp_path, tmp_path, print, data
    )  # another method
    known = json.loads((tmp_path / "teachers.json").read_text())
    assert [tmp_path / known[name] for name in ("kd", "new")] == trained
    assert not any(Path(place).is_absolute() for place in known.values())
    with refuses(tmp_path, ConfigError, trained[0].name):
        compare._with_teachers(methods_of([("a/kd", changed)]), tmp_path, tmp_path, print, data)
    assert len(trained) == 2


def test_the_refusal_names_a_setting_that_counts(tmp_path: Path) -> None:
    spec = load_run("quickstart")
    open_comparison({"kd": spec}, tmp_path)
    (tmp_path / "runs" / "kd-s0").mkdir(parents=True)
    (tmp_path / "runs" / "kd-s0" / "metrics.jsonl").touch()  # it has begun
    free = ["cluster.workers=1", "data.workers=2", "description=new"]
    open_comparison({"kd": load_run("quickstart", free)}, tmp_path)
    with refuses(tmp_path, ConfigError, "kd", "optim.lr=0.01", 1.0):
        open_comparison({"kd": load_run("quickstart", ["cluster.workers=2", "optim.lr=1"])}, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [("train.steps=7", "train.steps"), ("data.val_images=7", "data.val_images"), ("optim.lr=1", "optim.lr")],
)
def test_methods_that_differ_in_more_than_the_method_are_refused(change: str, message: str) -> None:
    pair = [("a/kd", load_run("quickstart")), ("a/other", load_run("quickstart", [change]))]
    with refuses(message, ConfigError, "kd", "other", f"--differ {message}"):
        methods_of(pair)
    assert list(methods_of(pair, [message])) == ["baseline", "kd", "other"]


@pytest.mark.parametrize(("seconds", "steps"), [(0.5, 400), (1.0, 200), (0.3, 667), (900.0, 1)])
def test_at_equal_time_a_method_that_costs_twice_trains_half(seconds: float, steps: int) -> None:
    assert share_of_time(400, 0.5, seconds) == (seconds, steps)


def test_a_comparison_goes_on_with_its_own_budget(tmp_path: Path) -> None:
    spec = load_run("quickstart")
    open_comparison({"kd": spec}, tmp_path)
    open_comparison({"kd": spec}, tmp_path, "time")  # nothing has begun
    (tmp_path / "runs" / "kd-s0").mkdir(parents=True)
    (tmp_path / "runs" / "kd-s0" / "metrics.jsonl").touch()
    with refuses(tmp_path, ConfigError, "--budget time", "steps", "--name"):
        open_comparison({"kd": spec}, tmp_path)
    open_comparison({"kd": spec}, tmp_path, "time")


def write_comparison_folder(folder: Path) -> None:
    base = load_run("quickstart").to_dict()
    methods = {"baseline": {**base, "distill": None, "teacher": None}, "kd": base, "cwd": base}
    (folder / "teacher").mkdir(parents=True)
    (folder / "teacher" / "result.json").write_text(json.dumps({"best": {"miou": 0.6}}))
    (folder / "comparison.yaml").write_text(yaml.safe_dump({"methods": methods}, sort_keys=False))
    (folder / "teachers.json").write_text(json.dumps({"kd": str(folder / "teacher")}))
    write_outcome(folder, failures={"cwd-s2": "a loss is not finite"})
    shift = {"baseline": 0.0, "kd": 0.05, "cwd": 0.001}
    for method in methods:
        for seed in range(2 if method == "cwd" else 3):
            run = folder / "runs" / f"{method}-s{seed}"
            run.mkdir(parents=True)
            (run / "run.yaml").write_text("{}")
            last = 0.4 + shift[method] + 0.01 * seed + (0.001 * seed if method == "kd" else 0.0)
            rows = [{"step": step, "miou": last * step / 20} for step in (10, 20)]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            result = {
                "last": {"miou": last},
                "best": {"miou": last + 0.01},
                "seconds": 60,
                "images_per_second": 5,
            }
            (run / "result.json").write_text(json.dumps({**result, "steps": 20}))


@pytest.fixture
def comparison(tmp_path: Path) -> CompareData:
    write_comparison_folder(tmp_path / "c")
    return read_comparison(tmp_path / "c")


def test_the_table_holds_the_figures(comparison: CompareData) -> None:
    sheet = methods_table(comparison)
    rows = {row[0]: dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows}
    assert list(rows) == ["baseline", "kd", "cwd"]
    assert rows["baseline"]["mIoU % (last)"] == "41.00"
    assert rows["baseline"]["difference"] == ""
    assert rows["kd"]["difference"] == "+5.10"
    assert rows["kd"]["gap closed %"] == f"{100 * 0.051 / 0.19:.2f}"
    assert rows["cwd"]["gap closed %"] == "-"
    assert rows["cwd"]["seeds"] == "2"
    assert float(rows["kd"]["p (Holm)"].removeprefix("< ")) < 0.01
    assert "cwd-s2: a loss is not finite" in markdown(comparison)


def test_the_table_tells_both_costs_and_what_was_equal(comparison: CompareData) -> None:
    def told() -> tuple[dict[str, tuple[str, str]], str]:
        data = read_comparison(comparison.folder)
        sheet = methods_table(data)
        rows = [dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows]
        return {row["method"]: (row["steps"], row["minutes"]) for row in rows}, markdown(data)

    costs, text = told()
    assert costs["kd"] == ("20", "1.00")
    assert "Equal steps" in text
    timing = {"baseline": {"seconds": 0.5, "steps": 20}, "kd": {"seconds": 1.0, "steps": 10}}
    (comparison.folder / "timing.json").write_text(json.dumps(timing))
    result = comparison.folder / "runs" / "kd-s2" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "steps": 10}))
    costs, text = told()
    assert costs["kd"] == ("10 or 20", "1.00")
    assert "Equal time" in text
    assert "baseline 0.500, kd 1.000" in text


def test_the_gap_is_closed_over_common_seeds() -> None:
    def runs(figures: dict[int, float]) -> dict[int, dict[str, Any]]:
        return {seed: {"last": {"miou": figure}} for seed, figure in figures.items()}

    results = {"baseline": runs({0: 0.40, 1: 0.42, 2: 0.50}), "kd": runs({0: 0.41, 1: 0.43}), "at": {}}
    data = CompareData(Path(), {}, results, {}, {}, {"kd": 0.61, "at": 0.61}, {})
    assert data.gap_closed("kd") == pytest.approx(0.01 / 0.20)
    assert math.isnan(data.gap_closed("at"))


def test_the_csv_has_a_line_a_run(comparison: CompareData) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert [(row["method"], row["seed"]) for row in rows][:3] == [
        ("baseline", "0"),
        ("baseline", "1"),
        ("baseline", "2"),
    ]
    assert len(rows) == 8
    assert float(rows[0]["best_miou"]) == pytest.approx(0.41)


def test_the_report_is_a_page_without_network_and_a_picture(comparison: CompareData) -> None:
    assert main(["report", str(comparison.folder)]) == 0
    page = (comparison.folder / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page.split("<pre>")[0].replace("data:image", "")
    assert (comparison.folder / "report" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (comparison.folder / "report" / "comparison.md").read_text().startswith("| method |")


def test_a_run_without_a_validation_leaves_the_curve_of_the_others(comparison: CompareData) -> None:
    run = comparison.folder / "runs" / "kd-s3"
    run.mkdir()
    (run / "run.yaml").write_text("{}")  # it has just begun
    before, after = (comparison_figure(data) for data in (comparison, read_comparison(comparison.folder)))
    for figures in (before, after):
        curves = {line.get_label(): line.get_xydata() for line in figures.axes[1].lines}
        kd = next(points for name, points in curves.items() if str(name).startswith("kd"))
        assert kd.tolist() == [[10, pytest.approx(23.05)], [20, pytest.approx(46.1)]]


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    require_error(capsys.readouterr().err, tmp_path, "run", "sweep", "comparison")


def test_seeds_count_from_the_recipes_own(tmp_path: Path) -> None:
    spec = load_run("quickstart", ["seed=101"])
    methods = methods_of([("a/kd", spec)])
    assert seeds_of(methods, 3) == range(101, 104)
    open_comparison(methods, tmp_path)
    for seed in seeds_of(methods, 2):
        (tmp_path / "runs" / f"kd-s{seed}").mkdir(parents=True)
    assert begun_comparison(tmp_path)[1] == 2
    with refuses("seed", ConfigError, 101, "cwd", 0):
        seeds_of(methods_of([("a/kd", spec), ("a/cwd", load_run("quickstart"))]), 3)
