"""A sweep's folder read back, and its report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cirkd_ray.errors import ConfigError
from cirkd_ray.report.page import Page
from cirkd_ray.report.sweep import fair_comparison, ranking, short_names, summary
from cirkd_ray.report.sweep_figures import Scale, _short, learning_curves, parallel_coordinates, pareto_figure
from cirkd_ray.report.sweep_page import curves_caption, write_sweep
from cirkd_ray.report.sweep_study import importance, pareto_front
from cirkd_ray.report.tables import TextTable
from cirkd_ray.sweep.folder import SweepData, is_expired, read_sweep
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.outcome import write_outcome
from tests.errors import refuses

PARAMETERS = {
    "optim.lr": {"loguniform": [1e-3, 1e-1]},
    "task.aux_weight": {"uniform": [0.0, 1.0]},
    "optim.name": {"choice": ["sgd", "adamw"]},
    "optim.momentum": {"uniform": [0.1, 0.9], "when": {"optim.name": "sgd"}},
}


def write_generation(
    trial: Path, number: int, values: dict[str, Any], rows: list[dict[str, Any]], parent: Any = None
) -> Path:
    run = trial / f"g{number}"
    run.mkdir(parents=True)
    about = {"trial": trial.name, "values": values, "settings": values, "parent": parent}
    (run / "trial.json").write_text(json.dumps(about))
    (run / "run.yaml").write_text(yaml.safe_dump({"model": {"name": "m"}, "train": {"steps": 40}}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def write_trial(folder: Path, name: str, values: dict[str, Any], curve: list[float], status: str) -> None:
    rows = [{"step": 10 * (i + 1), "miou": value} for i, value in enumerate(curve)]
    run = write_generation(folder / "trials" / name, 0, values, rows)
    (run.parent / "outcome.json").write_text(
        json.dumps({"status": status, "reason": "out of memory" if status == "failed" else ""})
    )


@pytest.fixture
def sweep(tmp_path: Path) -> SweepData:
    folder = tmp_path / "sweep"
    spec = SweepSpec.model_validate({"recipe": "quickstart", "parameters": PARAMETERS, "seeds": [0, 1]})
    for index, values in enumerate(spec.random_points(48)):
        score = 0.5 - 0.2 * abs(math.log10(values["optim.lr"]) + 2)  # nothing but lr matters
        whole = index % 4 != 3
        curve = [score * k / 4 for k in range(1, 5 if whole else 2)]
        write_trial(folder, f"t_{index:02d}", values, curve, "finished" if whole else "stopped")
    write_trial(folder, "t_48", {}, [], "failed")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    for seed in (0, 1):
        run = folder / "controls" / f"baseline-s{seed}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"last": {"miou": 0.3 + 0.02 * seed}}))
    return read_sweep(folder)


def test_trials_that_ran_whole_rank_before_those_that_were_stopped(sweep: SweepData) -> None:
    order = [trial.status for trial in sweep.ranked]
    assert order == ["finished"] * 36 + ["stopped"] * 12
    scores = [trial.figure("miou") for trial in sweep.ranked[:36]]
    assert scores == sorted(scores, reverse=True)
    assert ranking(sweep).rows[-1][:4] == ("t_48", "-", "0/40", "failed")


def test_the_budget_counts_the_steps_that_were_not_trained(sweep: SweepData) -> None:
    assert (sweep.steps_spent, sweep.steps_planned) == (36 * 40 + 12 * 10, 49 * 40)
    assert "(18 % saved by early stopping, 2 % not trained by failed trials)" in summary(sweep)
    assert "t_48 failed: out of memory" in summary(sweep)


def test_values_and_figures_are_of_one_generation(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"metric": {"miou": "max"}}))
    parent = {"path": "donor/g0/checkpoints/step_40", "trial": "donor", "step": 40}
    for name in ("heir", "killed"):
        write_generation(tmp_path / "trials" / name, 0, {"lr": 1.0}, [{"step": 20, "miou": 0.1}])
        write_generation(tmp_path / "trials" / name, 1, {"lr": 2.0}, [], parent)
    result = {"last": {"step": 40, "miou": 0.7}}
    (tmp_path / "trials" / "heir" / "g1" / "result.json").write_text(json.dumps(result))
    heir, killed = read_sweep(tmp_path).trials
    assert (heir.values, heir.figure("miou"), heir.step) == ({"lr": 2.0}, 0.7, 40)  # the donor's, at its end
    assert (heir.generations, heir.parents, heir.trained_steps) == (2, ((40, "donor"),), 20)
    assert (killed.values, killed.figure("miou"), killed.step) == ({"lr": 1.0}, 0.1, 20)
    assert (killed.settings, killed.generations, killed.parents) == ({"lr": 1.0}, 1, ())


def test_a_control_that_failed_is_told_of(sweep: SweepData) -> None:
    failures = {"controls/defaults-s1": "a loss is not finite\nat step 3"}
    write_outcome(sweep.folder, failures=failures)
    assert "controls/defaults-s1 failed: a loss is not finite" in summary(read_sweep(sweep.folder)).split(
        "\n"
    )


def test_options_that_are_subtrees_have_their_places(tmp_path: Path) -> None:
    options = {
        "distill.losses": {"choice": [{"kd": {"kind": "kd"}}, {"at": {"kind": "at"}}]},
        "teacher.set": {"choice": [["train.steps=1"], ["train.steps=2"]]},
        "optim.name": {"choice": {"plain": "sgd", "adaptive": "adamw"}},
        "model.aux": {"grid": [True, False]},
    }
    spec = SweepSpec.model_validate({"recipe": "quickstart", "parameters": options})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
    for index, values in enumerate(spec.random_points(8)):
        write_trial(tmp_path, f"t_{index}", values, [0.1 * index], "finished")
    data = read_sweep(tmp_path)
    assert write_sweep(data).is_file()
    for path, parameter in data.space["parameters"].items():
        labels = list(spec.parameters[path].options)
        assert [Scale(parameter, labels).height(label) for label in labels] == [0.0, 1.0]


def test_many_failures_of_one_reason_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"metric": {"miou": "max"}}))
    for index in range(6):
        write_trial(tmp_path, f"t{index}", {"lr": 1.0}, [], "failed")
    assert "trials t0, t1, t2, t3 and 2 more failed: out of memory" in summary(read_sweep(tmp_path)).split(
        "\n"
    )


def test_lines_go_on_over_settings_that_do_not_count(sweep: SweepData) -> None:
    lines = parallel_coordinates(sweep).axes[0].lines
    assert {len(line.get_xydata()) for line in lines} == {4, 5}  # adamw has no momentum
    assert not any(np.isnan(np.asarray(line.get_ydata())).any() for line in lines)


def test_long_names_stay_different_where_they_are_cut() -> None:
    names = ["deeplabv3:mobilenetv3_small_050", "deeplabv3:mobilenetv3_large_100"]
    short = [_short(name) for name in names]
    assert len(set(short)) == 2
    assert [len(name) for name in short] == [22, 22]
    assert _short("kd") == "kd"


def test_controls_stand_beside_the_best(sweep: SweepData) -> None:
    rows = {row[0]: row[1:] for row in fair_comparison(sweep).rows}
    best = sweep.ranked[0]
    assert rows["control: no distillation"] == ("30.00", "-", "30.00", "1")
    assert rows[f"trial {best.id}"][0] == f"{100 * best.figure('miou'):.2f}"
    assert "flatters" in fair_comparison(sweep).title


def write_control(folder: Path, name: str, miou: float) -> None:
    (folder / "controls" / name).mkdir(parents=True)
    (folder / "controls" / name / "result.json").write_text(
        json.dumps({"last": {"miou": miou, "miou_classes": 7, "classes": 8}})
    )


@pytest.mark.parametrize(("better", "said"), [(0.01, True), (0.0, True), (-0.01, False)])
def test_a_sweep_that_did_not_beat_the_recipe_says_so(sweep: SweepData, better: float, said: bool) -> None:
    best = sweep.ranked[0].figure("miou")
    assert "no trial beat" not in summary(sweep)  # no control of the recipe's own values has finished
    write_control(sweep.folder, "defaults-s0", best + better)
    figures = f"(mIoU % {100 * best:.2f} against {100 * (best + better):.2f})"
    line = f"no trial beat the recipe's own values {figures}"
    after = read_sweep(sweep.folder)
    assert "over 7 of 8 classes" in summary(after)
    assert "mIoU over 7 of 8 classes" in fair_comparison(after).title
    assert (line in summary(after).splitlines()) == said
    assert (line.replace("'", "&#39;") in write_sweep(after).read_text()) == said


def test_a_finalist_is_judged_by_the_seeds_that_did_not_choose_it(sweep: SweepData) -> None:
    best = sweep.ranked[0]
    run = sweep.folder / "finalists" / f"{best.id}-s1"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"last": {"miou": 0.25}}))
    sheet = fair_comparison(read_sweep(sweep.folder))
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["control: no distillation"] == ("32.00", "-", "32.00", "1")
    assert rows[f"trial {best.id}"] == ("25.00", "-", "25.00", "1")
    assert "without seed 0" in sheet.title


def test_importance_finds_the_parameter_that_matters(sweep: SweepData) -> None:
    shares, how = importance(sweep)
    assert next(iter(shares)) == "optim.lr"
    assert shares["optim.lr"] > 0.6
    assert set(shares) == set(PARAMETERS)
    assert how == "fANOVA over 36 of 49 trials"


def test_importance_is_a_share_of_the_variance_and_of_the_whole_way(tmp_path: Path) -> None:
    parameters = {"train.steps": {"choice": [120, 480]}, "task.weight": {"uniform": [0.0, 1.0]}}
    spec = SweepSpec.model_validate({"recipe": "quickstart", "parameters": parameters})
    random = np.random.default_rng(0)
    for index, values in enumerate(spec.random_points(32)):
        steps = values["train.steps"]
        row = {"step": steps, "miou": steps / 1000 + 0.2 * float(random.random())}
        run = write_generation(tmp_path / "trials" / f"t{index}", 0, values, [row])
        (run / "run.yaml").write_text(yaml.safe_dump({"model": {}, "train": {"steps": steps}}))
        (run.parent / "outcome.json").write_text(json.dumps({"status": "finished", "reason": ""}))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    shares, how = importance(read_sweep(tmp_path))
    assert how.startswith("fANOVA over 32 of 32 trials")
    assert next(iter(shares)) == "train.steps"
    assert 0.6 < shares["train.steps"] < 1.0
    assert sum(shares.values()) < 0.99  # the noise is nobody's


def test_short_names_are_unique() -> None:
    names = short_names(["a.kd.weight", "a.mem.weight", "optim.lr"])
    assert list(names.values()) == ["kd.weight", "mem.weight", "lr"]


def test_the_front_holds_what_nothing_beats(sweep: SweepData, tmp_path: Path) -> None:
    space = {**sweep.space, "metric": {"miou": "max", "step": "min"}}
    data = SweepData(sweep.folder, space, sweep.trials, {}, {})
    assert pareto_front(data) == [sweep.ranked[0]]


def test_the_axes_of_the_front_show_shares_in_percent(sweep: SweepData) -> None:
    space = {**sweep.space, "metric": {"step": "min", "miou": "max"}}
    (axes,) = pareto_figure(SweepData(sweep.folder, space, sweep.trials, {}, {})).axes
    scores = sorted(100 * trial.figure("miou") for trial in sweep.ranked)
    assert axes.get_xlabel() == "mIoU %"
    assert sorted(axes.lines[0].get_xdata()) == pytest.approx(scores)


def test_captions_and_legends_name_only_what_is_there(sweep: SweepData) -> None:
    assert curves_caption(sweep) == "Red: the best; grey with a cross: stopped early"
    legend = [text.get_text() for text in learning_curves(sweep).axes[0].get_legend().get_texts()]
    assert legend == [f"best: {sweep.ranked[0].id}", "control: no distillation"]
    silent = SweepData(sweep.folder, sweep.space, sweep.trials, {"baseline": {0: {"last": {}}}}, {})
    legend = [text.get_text() for text in learning_curves(silent).axes[0].get_legend().get_texts()]
    assert legend == [f"best: {sweep.ranked[0].id}"]


def test_the_report_has_its_pictures_and_needs_no_network(sweep: SweepData) -> None:
    page = write_sweep(sweep)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4
    assert 'src="http' not in text
    assert "<link" not in text
    assert "<script" not in text
    pictures = {path.name for path in page.parent.glob("*.png")}
    assert pictures == {"learning_curves.png", "importance.png", "slices.png", "parallel_coordinates.png"}


def test_tensorboard_shows_every_trial_with_its_values_and_metrics(sweep: SweepData) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    write_sweep(sweep)
    write_sweep(sweep)  # again: nothing stands twice
    for trial in sweep.ranked:
        (folder,) = (sweep.folder / "tensorboard").glob(trial.id)
        events = EventAccumulator(str(folder)).Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        assert start.hparams["lr"].number_value == pytest.approx(trial.values["optim.lr"])
        assert start.hparams["name"].string_value == trial.values["optim.name"]
        assert events.Scalars("hparam/miou")[-1].value == pytest.approx(trial.figure("miou"))
        assert [event.step for event in events.Scalars("val/miou")] == [row["step"] for row in trial.rows]
    assert len(list((sweep.folder / "tensorboard").iterdir())) == len(sweep.ranked)


def test_pages_show_text_as_it_is(tmp_path: Path) -> None:
    page = Page(tmp_path, "a < b", "1 & 2")
    page.table(TextTable(("<i>",), (("<script>",),), "<b>"))
    page.code("x: '<y>'", "<file>")
    text = page.write().read_text()
    assert not {"<i>", "<script>", "<b>", "<y>", "<file>"} & set(re.findall(r"<\w+>", text))
    for shown in ("a &lt; b", "1 &amp; 2", "&lt;script&gt;", "&lt;b&gt;", "&lt;y&gt;", "&lt;file&gt;"):
        assert shown in text


@pytest.mark.parametrize("metric", [{"miou": "max"}, {"miou": "max", "latency_ms": "min"}])
def test_a_sweep_without_a_result_can_be_looked_at(tmp_path: Path, metric: dict[str, str]) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    spec = SweepSpec.model_validate({"recipe": "quickstart", "parameters": PARAMETERS, "metric": metric})
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    assert "too few comparable trials" in write_sweep(read_sweep(folder)).read_text()


@pytest.mark.parametrize("file", ["outcome.json", "g0/trial.json"])
def test_a_damaged_file_of_a_trial_is_named(sweep: SweepData, file: str) -> None:
    path = next((sweep.folder / "trials").iterdir()) / file
    path.write_text("")
    with refuses(path, ConfigError, "damaged"):
        read_sweep(sweep.folder)


def test_folders_of_other_names_are_passed_over(sweep: SweepData) -> None:
    trial = next((sweep.folder / "trials").iterdir())
    for folder in (trial / "gold", sweep.folder / "controls" / "foo-sbar"):
        folder.mkdir(parents=True)
        (folder / "trial.json").write_text("{}")
        (folder / "result.json").write_text("{}")
    again = read_sweep(sweep.folder)
    assert [t.id for t in again.ranked] == [t.id for t in sweep.ranked]


def test_a_sweep_of_an_earlier_version_tells_its_failures_and_its_end(sweep: SweepData) -> None:
    (sweep.folder / "failures.json").write_text(json.dumps({"controls/defaults-s1": "not finite"}))
    (sweep.folder / "expired.txt").write_text("budget.hours is spent")
    assert read_sweep(sweep.folder).failures == {"controls/defaults-s1": "not finite"}
    assert is_expired(sweep.folder)
    write_outcome(sweep.folder, failures={})  # resumed: what had failed was done again
    assert read_sweep(sweep.folder).failures == {}
    assert is_expired(sweep.folder)
