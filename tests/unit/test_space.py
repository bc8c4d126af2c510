"""Search spaces: domains, conditions, and errors that name the line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cirkd_ray.config import load_run
from cirkd_ray.config.applied import differences
from cirkd_ray.config.composition import flatten
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.parameters import Parameter
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.sweep.space_check import check_space
from cirkd_ray.sweep.space_file import load_space

GOOD = """\
recipe: quickstart
parameters:
  optim.name: {choice: [sgd, adamw]}
  optim.momentum: {uniform: [0.5, 0.95], when: {optim.name: sgd}}
  distill.losses.kd.weight: {loguniform: [0.1, 10.0]}
budget: {trials: 4, steps: 40, report_every: 10}
scheduler: {name: asha}
"""


def refused(tmp_path: Path, text: str) -> str:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        check_space(load_space(str(file)))
    return str(error.value).removeprefix(str(file))


def test_a_good_space_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(GOOD)
    space = load_space(str(file), ["budget.trials=9", "data.val_images=7"])
    assert space.spec.trials == 9
    spec = check_space(space)
    assert (spec.train.steps, spec.train.validate_every, spec.train.checkpoint_every) == (40, 10, 10)
    assert spec.data.settings["val_images"] == 7


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "kd.weight:",
            "kd.wieght:",
            5,
            "no such setting in 'quickstart'; did you mean 'distill.losses.kd.weight'?",
        ),
        ("optim.name: {", "optim.nam: {", 3, "did you mean 'optim.name'?"),
        ("[0.5, 0.95]", "[0.5, 1.5]", 4, "1.5 cannot be used: optim.momentum"),
        ("[0.5, 0.95]", "[0.95, 0.5]", 4, "uniform takes low < high"),
        ("loguniform: [0.1, 10.0]", "loguniform: [0.0, 10.0]", 5, "bounds above 0"),
        ("loguniform: [0.1, 10.0]", "logunifrom: [0.1, 10.0]", 5, "did you mean 'loguniform'?"),
        ("loguniform: [0.1, 10.0]", "loguniform: [0.1, 10.0], choice: [1]", 5, "exactly one of"),
        ("loguniform: [0.1, 10.0]", "loguniform: [low, high]", 5, "valid number"),
        ("[sgd, adamw]", "[sgd, adam]", 3, "'adam' cannot be used"),
        ("optim.name: sgd}", "optim.name: rmsprop}", 4, "optim.name is never 'rmsprop'"),
        (
            "when: {optim.name: sgd}",
            "when: {optim.schedule: poly}",
            4,
            "names no parameter that stands before it",
        ),
        ("report_every: 10", "report_every: 50", 6, "50 steps, but a trial has only 40"),
        ("{name: asha}", "{name: asha, grace_steps: 15}", 7, "15 is no multiple of the 10 steps"),
        ("{name: asha}", "{name: ahsa}", 7, "'asha'"),
        (
            "{name: asha}",
            "{name: bohb}",
            7,
            "name: bohb is no longer there; use asha with searcher tpe",
        ),
        ("{name: asha}", "{name: pb2}", 7, "scheduler.name: pb2 is no longer there; use pbt"),
        ("budget:", "searcher: {name: hyperopt}\nbudget:", 6, "hyperopt is no longer there; use tpe"),
        (
            "budget:",
            "searcher: {name: bohb}\nbudget:",
            6,
            "bohb is no longer there; use tpe with",
        ),
        ("{name: asha}", "{name: pbt}\nsearcher: {name: tpe}", 7, "use searcher random, not tpe"),
        ("{name: asha}", "{name: pbt}", 3, "pbt changes settings of a network that trains on"),
        ("{name: asha}", "{name: asha}\nsearcher: {name: grid}", 3, "searcher grid takes grids only"),
        ("{name: asha}", "{name: asha}\nmetric: {mious: max}", 8, "did you mean 'miou'?"),
        (
            "{name: asha}",
            "{name: asha}\nmetric: {miou: max, latency_ms: min}",
            7,
            "judges trials by one metric",
        ),
        ("{choice: [sgd, adamw]}", "{grid: [sgd, adamw]}", 3, "make the grid a choice"),
        ("quickstart", "quikstart", None, "no recipe 'quikstart'; did you mean 'quickstart'?"),
        ("budget:", "bugdet:", 6, "did you mean 'budget'?"),
        ("budget:", "set: {seed: 7}\nbudget:", 6, "set.seed: is set by the sweep itself"),
        ("budget:", "set: {train.steps: 70}\nbudget:", 6, "set.train.steps: is set by the sweep itself"),
        ("budget:", "set: {train: {validate_every: 3}}\nbudget:", 6, "set.train: is set by the sweep itself"),
        ("budget:", "  train.steps: {choice: [40, 80]}\nbudget:", 6, "and budget.steps set the same"),
        ("budget:", "  train: {choice: {a: {pictures: 1}}}\nbudget:", 6, "is set by the sweep itself"),
        ("budget:", "  optim: {choice: {a: {lr: 0.1}}}\nbudget:", 6, "would undo optim.name, which stands"),
        ("budget:", "  train.batch_size: {uniform: [8, 16]}\nbudget:", 6, "cannot be used: train.batch_size"),
        ("budget:", "set: {cluster.workers: {min: 1, max: 2}}\nbudget:", 1, "give resources: {workers: N}"),
        ("budget:", "seeds: [0, -1]\nbudget:", 6, "greater than or equal to 0"),
        ("budget:", "seeds: [3, 3]\nbudget:", 6, "a seed comes twice"),
        ("budget:", "metric: {images_per_second: max}\nbudget:", 6, "trials cannot be judged by it"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, line: int | None, message: str
) -> None:
    assert old in GOOD
    found = refused(tmp_path, GOOD.replace(old, new))
    assert message in found
    assert line is None or found.startswith(f":{line}: ")


MEMORY = """\
recipe: quickstart
parameters:
  distill.losses.cirkd_memory.pixel_memory: {choice: [300, 20000]}
  distill.losses.cirkd_memory.pixel_keys: {choice: {few: 512, many: 2048}}
"""
BRANCHES = """\
recipe: quickstart
parameters:
  distill.losses: {choice: {kd: {loss: {kind: kd}}, af_dcd: {loss: {kind: af_dcd}}}}
  distill.losses.loss.groups: {choice: [4, 8], when: {distill.losses: af_dcd}}
"""


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (MEMORY, "[300, 20000]", "[10, 20000]", ":3: .*: 10 cannot be used: .*pixel_memory: 10 is smaller"),
        (MEMORY, "2048", "4096", r":4: .*: 'many' cannot be used with \S+pixel_memory=300: .*=4096 draws"),
        (MEMORY, "quickstart", "quickstart\nset: {distill.losses.cirkd_memory.region_memory: 3}",
         ":1: recipe: cannot be built: .*region_memory: 3 is smaller"),
        (BRANCHES, "[4, 8]", "[4, 7]", ":4: .*: 7 cannot be used: .*groups=7 does not divide .* 64 channels"),
    ],
)  # fmt: skip
def test_losses_are_built_at_the_ends_of_their_settings(
    tmp_path: Path, text: str, old: str, new: str, message: str
) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(text)
    check_space(load_space(str(file)))
    assert old in text
    assert re.match(message, refused(tmp_path, text.replace(old, new)))


def test_long_queues_are_looked_at_without_their_memory(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(MEMORY.replace("20000", "200000000"))  # 8 x 2e8 x 64 numbers
    check_space(load_space(str(file)))


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("distill.losses.kd.weight", "{uniform: [0, 1]}"),
        ("distill.losses.cirkd_memory.weights.memory_pixel", "{choice: [0.0, 1.0]}"),
        ("distill.losses.kd.weight", "{choice: {off: 0, on: 1}}"),
    ],
)
def test_a_population_takes_no_weight_of_zero(tmp_path: Path, path: str, domain: str) -> None:
    text = f"recipe: quickstart\nparameters:\n  {path}: {domain}\nscheduler: {{name: pbt}}\n"
    found = refused(tmp_path, text)
    assert found.startswith(":3: ")
    assert "pbt cannot take 0" in found
    file = tmp_path / "space.yaml"
    file.write_text(text.replace("pbt", "asha"))
    check_space(load_space(str(file)))
    file.write_text(text.replace(path, "task.aux_weight"))  # its head is there without a weight
    check_space(load_space(str(file)))


def test_a_key_given_twice_and_broken_yaml_name_the_line(tmp_path: Path) -> None:
    assert "given twice" in refused(tmp_path, GOOD + "recipe: quickstart\n")
    assert refused(tmp_path, "recipe: [quickstart\n").startswith(":2:")


def test_one_teacher_serves_all_trials(tmp_path: Path) -> None:
    text = GOOD.replace("optim.name: {choice: [sgd, adamw]}", "teacher.set: {choice: {a: [train.steps=2]}}")
    assert "one teacher for all" in refused(tmp_path, text.replace("when: {optim.name: sgd}", ""))


@pytest.mark.parametrize(
    ("domain", "low", "high", "whole"),
    [
        ({"uniform": [2.0, 5.0]}, 2, 5, False),
        ({"loguniform": [0.01, 10.0]}, 0.01, 10, False),
        ({"quniform": [10, 60, 25]}, 10, 60, True),
        ({"quniform": [0.0, 1.0, 0.1]}, 0, 1, False),
        ({"quniform": [10, 50, 25]}, 10, 35, True),
        ({"randint": [3, 5]}, 3, 5, True),
    ],
)
def test_draws_stay_in_bounds_and_reach_both_ends(
    domain: dict[str, list[float]], low: float, high: float, whole: bool
) -> None:
    parameter = Parameter.model_validate(domain)
    random = np.random.default_rng(0)
    values = [parameter.draw(random) for _ in range(2000)]
    assert low <= min(values) <= low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) <= max(values) <= high
    if parameter.quniform:
        assert (min(values), max(values)) == (low, high)
        assert parameter.round_to(parameter.bounds[1]) == high
        assert set(values) == set(parameter.values())
    assert all(isinstance(value, int) == whole for value in values)
    assert {parameter.round_to(value) for value in values} == set(values)


def test_a_loguniform_spreads_over_the_decades() -> None:
    random = np.random.default_rng(0)
    values = [Parameter(loguniform=(1e-3, 1e1)).draw(random) for _ in range(4000)]
    counts = np.histogram(np.log10(values), bins=4)[0]
    assert counts.min() > 900


def test_conditions_follow_the_values_drawn() -> None:
    sweep = SweepSpec.model_validate(
        {
            "recipe": "quickstart",
            "parameters": {
                "a": {"choice": {"x": 1, "y": 2}},
                "b": {"choice": [1, 2], "when": {"a": "x"}},
                "c": {"uniform": [0, 1], "when": {"b": [2]}},
            },
        }
    )
    assert sweep.active({"a": "y", "b": 2, "c": 0.5}) == {"a": "y"}
    assert sweep.active({"a": "x", "b": 2, "c": 0.5}) == {"a": "x", "b": 2, "c": 0.5}
    assert sweep.settings({"a": "y"}) == {"a": 2}
    points = sweep.random_points(300)
    assert all(("b" in p) == (p["a"] == "x") and ("c" in p) == (p.get("b") == 2) for p in points)
    assert {len(p) for p in points} == {1, 2, 3}
    assert sweep.random_points(300) == points


def test_a_grid_has_every_combination_once() -> None:
    sweep = SweepSpec.model_validate(
        {
            "recipe": "quickstart",
            "searcher": {"name": "grid"},
            "parameters": {
                "a": {"grid": ["x", "y"]},
                "b": {"grid": [1, 2, 3], "when": {"a": "x"}},
            },
        }
    )
    assert sweep.grid_points() == [{"a": "x", "b": 1}, {"a": "x", "b": 2}, {"a": "x", "b": 3}, {"a": "y"}]
    assert sweep.trials == 4


def test_a_loss_that_may_be_left_out_wants_conditions_on_its_settings(tmp_path: Path) -> None:
    text = "recipe: quickstart\nparameters:\n"
    text += "  distill.losses.kd: {choice: {without: null, with: {kind: kd}}}\n"
    text += "  distill.losses.kd.weight: {uniform: [0.1, 1.0]%s}\n"
    assert "`when:` lets a parameter count under one choice only" in refused(tmp_path, text % "")
    (tmp_path / "good.yaml").write_text(text % ", when: {distill.losses.kd: with}")
    assert check_space(load_space(str(tmp_path / "good.yaml")))
    spec = load_run("quickstart")
    assert differences(spec, {"distill.losses.kd": None}) == ["something at distill.losses.kd, not null"]


def test_what_draws_do_together_is_looked_at_before_they_are_trained(tmp_path: Path) -> None:
    options = "{choice: {plain: {kd: {kind: kd, weight: 2.0}}, soft: {kd: {kind: kd}}}}"
    text = f"recipe: quickstart\nparameters:\n  distill.losses: {options}\n"
    text += "  distill.losses.kd.weight: {uniform: [0.1, 1.0]}\n"
    assert "cannot be used: recipe: resolved to distill.losses.kd.weight" in refused(tmp_path, text)


def test_a_value_that_is_not_in_effect_is_found() -> None:
    spec = load_run("quickstart")
    assert (
        differences(spec, {"optim.lr": spec.optim.lr, "data.crop": [64, 128], "train.validate_limit": None})
        == []
    )
    assert differences(spec, {"optim.lr": 0.1}) == [f"optim.lr={spec.optim.lr}, not 0.1"]
    assert differences(spec, {"optim.rl": 0.1}) == ["optim.rl=nothing, not 0.1"]
    losses = {"kd": {"kind": "kd", "temperature": 2.0}}
    assert differences(spec, {"distill.losses": losses}) == ["distill.losses.kd.temperature=1.0, not 2.0"]


@pytest.mark.parametrize("root", ["data.root: mydata", "data: {root: mydata}"])
def test_the_data_root_of_a_space_is_relative_to_its_file(root: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "recipe: quickstart/baseline\nparameters:\n  optim.lr: {loguniform: [0.001, 0.1]}\n"
        f"budget: {{trials: 2, steps: 4}}\nset: {{{root}}}\n"
    )
    assert flatten(load_space(str(path)).spec.set)["data.root"] == str(tmp_path / "mydata")
