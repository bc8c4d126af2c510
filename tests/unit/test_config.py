"""Recipes: composition, overrides, and errors that say where."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cirkd_ray.config import WeightSchedule, from_tree, load_run, load_tree, parse
from cirkd_ray.config.composition import apply_overrides, flatten, merge, parse_override, recipe_names
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.space_file import find_space, load_space
from tests.errors import refuses

SMALL = {"model": {"name": "deeplabv3:resnet10t"}, "data": {"name": "shapes"}}


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_resolves_and_resolving_again_changes_nothing(name: str) -> None:
    spec = load_run(name)
    assert spec.name == name
    assert from_tree(spec.to_dict()) == spec
    assert from_tree(yaml.safe_load(spec.to_yaml())) == spec


def test_resolved_recipe_has_the_defaults_of_the_classes_it_names() -> None:
    spec = from_tree(
        {**SMALL, "teacher": {"weights": "t"}, "distill": {"losses": {"m": {"kind": "cirkd_memory"}}}}
    )
    leaves = flatten(spec.to_dict())
    assert leaves["distill.losses.m.temperature"] == 0.1
    assert leaves["distill.losses.m.weights.memory_pixel"] == 0.1
    assert leaves["data.crop"] == [128, 256]
    assert leaves["data.height"] == 128
    assert "model.output_stride" in leaves


@pytest.mark.parametrize(
    ("override", "subject", "hint"),
    [
        ("optim.lrr=1", "optim.lrr", "'lr'"),
        ("optim.lr=fast", "optim.lr", ""),
        ("optim.lr=-1", "optim.lr", ""),
        ("distill.losses.kd.temperature=.inf", "distill.losses.kd.temperature", "finite"),
        ("model.dropout=.nan", "model.dropout", ""),
        ("train.lr=1", "train.lr", "'optim.lr'"),
        ("trian.steps=5", "trian", "'train'"),
        ("train.steps=0", "train.steps", ""),
        ("model.name=deeplabv3_resnet81", "model", "'deeplabv3_resnet18'"),
        ("model.output_strid=8", "model.output_strid", "'output_stride'"),
        ("data.name=camvit", "data.name", "'camvid'"),
        ("data.hight=64", "data.hight", "'height'"),
        ("data.val_split=vall", "data.val_split", "'val'"),
        ("distill.losses.kd.kind=kdd", "distill.losses.kd.kind", "'kd'"),
        ("distill.losses.kd.temprature=2", "distill.losses.kd.temprature", "'temperature'"),
        ("distill.losses.kd.temperature=-2", "distill.losses.kd.temperature", ""),
        (
            "distill.losses.cirkd_memory.weights.memory_pixl=1",
            "distill.losses.cirkd_memory.weights.memory_pixl",
            "'memory_pixel'",
        ),
        ("distill.losses.kd.weights={kd: 1}", "distill.losses.kd", "not both"),
        ("teacher=null", "distill", "teacher"),
        ("data.rot=ds", "data.rot", "'root'"),  # of all data sets, beside the set's own
        ("model.wights=w", "model.wights", "'weights'"),
        ("distill.losses.kd.wight=2", "distill.losses.kd.wight", "'weight'"),
        ("teacher.weights={train: camvid/x}", "teacher.weights", "`teacher: {train: ...}`"),
    ],
)
def test_wrong_settings_are_named_with_the_nearest_right_one(override: str, subject: str, hint: str) -> None:
    with refuses(subject, ConfigError) as error:
        load_run("quickstart", [override])
    assert hint in str(error.value)


def test_one_override_function_sets_what_the_command_line_says() -> None:
    tree = apply_overrides({"a": {"b": 1}, "c": None}, {"a.b": 2, "c.d.e": [1], "f": "x"})
    assert tree == {"a": {"b": 2}, "c": {"d": {"e": [1]}}, "f": "x"}
    assert parse_override("optim.lr=1e-2") == ("optim.lr", "1e-2")  # YAML 1.1 reads a text; pydantic a number
    assert load_run("quickstart", ["optim.lr=1e-2"]).optim.lr == 0.01
    assert load_run("quickstart", {"optim.lr": 0.01}) == load_run("quickstart", ["optim.lr=0.01"])
    assert load_run("quickstart", ["distill=null"]).distill is None


@pytest.mark.parametrize("text", ["optim.lr", "=1", "a=[1"])
def test_overrides_that_cannot_be_read(text: str) -> None:
    with refuses(f"--set {text!r}", ConfigError):
        parse_override(text)


def test_an_override_through_a_value_that_is_no_mapping() -> None:
    with refuses("seed.x", ConfigError):
        apply_overrides({"seed": 0}, {"seed.x": 1})


def test_own_recipe_extends_a_shipped_one_and_drops_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: quickstart\ndistill: {losses: {kd: null}}\noptim: {lr: 0.5}\n")
    spec = load_run(str(path))
    assert spec.name == "mine"
    assert spec.distill is not None
    assert list(spec.distill.losses) == ["cirkd_minibatch", "cirkd_memory"]
    assert (spec.optim.lr, spec.optim.name) == (0.5, load_run("quickstart").optim.name)
    other = tmp_path / "other.yaml"
    other.write_text("extends: mine.yaml\n")  # beside the file that names it
    assert load_run(str(other)).optim.lr == 0.5


def test_published_figures_are_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: camvid/teacher_deeplabv3_resnet101\n")
    assert load_run(str(path)).published is None
    assert load_run("camvid/teacher_deeplabv3_resnet101").published is not None


@pytest.mark.parametrize(
    ("text", "mark", "message"),
    [
        ("a: [1\n", ":2:1", ""),
        ("- 1\n", "", "mapping"),
        ("seed: 1\nseed: 2\n", ":2:1", "'seed' given twice"),
        ("extends: quickstrat\n", "", "did you mean 'quickstart'?"),
        ("extends: r.yaml\n", "", "extends itself"),
        ("extends: {a: 1}\n", "", "a recipe's name"),
    ],
)
def test_recipe_files_that_cannot_be_read(tmp_path: Path, text: str, mark: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with refuses(f"{path}{mark}", ConfigError) as error:
        load_tree(str(path))
    assert message in str(error.value)


def test_merge_replaces_lists_and_lays_mappings_over_each_other() -> None:
    assert merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}, "d": 1}) == {"a": {"b": 1, "c": [3]}, "d": 1}


def test_removing_every_loss_is_an_error() -> None:
    gone = {f"distill.losses.{name}": None for name in ("kd", "cirkd_minibatch", "cirkd_memory")}
    with refuses("distill.losses", ConfigError):
        load_run("quickstart", gone)


def test_weight_schedule() -> None:
    schedule = WeightSchedule(warmup=0.1, decay_from=0.5, decay_to=0.2)
    values = [schedule.factor(step, 100) for step in (0, 4, 9, 50, 75, 100)]
    assert values == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.6, 0.2])
    assert WeightSchedule().factor(100, 100) == 1.0


def test_a_spec_needs_no_torch_to_be_parsed() -> None:
    assert parse({"model": {"name": "anything", "extra": 1}}).model.settings == {"extra": 1}


def test_relative_places_are_fixed_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's workers run in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    changes = ["data.root=data/camvid", "teacher={weights: runs/teacher}", "model.weights=s3://bucket/w.pth"]
    spec = load_run("camvid/cirkd_deeplabv3_resnet18", changes)
    monkeypatch.chdir("/")
    assert spec.data.root == str(tmp_path / "data" / "camvid")
    assert spec.teacher is not None
    assert spec.teacher.weights == str(tmp_path / "runs" / "teacher")
    assert spec.model.weights == "s3://bucket/w.pth"
    assert from_tree(spec.to_dict()) == spec


def test_relative_weights_of_a_teachers_factory_are_fixed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    factory = "cirkd_ray.weights.external:torchvision_model"
    for given, fixed in (
        ("?name=fcn_resnet50&weights=w.pth", f"?name=fcn_resnet50&weights={tmp_path / 'w.pth'}"),
        ("?weights=s3://bucket/w.pth", "?weights=s3://bucket/w.pth"),
        ("?weights=null&name=fcn_resnet50", "?weights=null&name=fcn_resnet50"),
        ("", ""),
    ):
        change = f'teacher={{module: "{factory}{given}"}}'
        teacher = load_run("voc/cirkd_deeplabv3_resnet18", [change]).teacher
        assert teacher is not None
        assert teacher.module == factory + fixed
    with refuses("teacher.module", ConfigError):
        load_run("voc/cirkd_deeplabv3_resnet18", [f'teacher={{module: "{factory}?weights=["}}'])


def test_a_teacher_that_is_given_displaces_an_inherited_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: quickstart\nteacher: {weights: /models/teacher}\n")
    for spec in (load_run(str(recipe)), load_run("quickstart", ["teacher.weights=/models/teacher"])):
        assert spec.teacher is not None
        assert (spec.teacher.weights, spec.teacher.train) == ("/models/teacher", None)
    trained = load_run(str(recipe), ["teacher.train=quickstart/teacher", "teacher.set=[train.steps=3]"])
    assert trained.teacher is not None
    assert (trained.teacher.weights, trained.teacher.set) == (None, ("train.steps=3",))
    with refuses("teacher", ConfigError):
        load_run("quickstart", ["teacher.weights=/models/teacher", "teacher.train=quickstart/teacher"])


def test_another_data_set_takes_none_of_the_inherited_ones_settings(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: quickstart\ndata: {name: camvid, root: /data, flip: 0.25}\n")
    before = load_run("quickstart").data
    for spec in (
        load_run(str(own)),
        load_run("quickstart", ["data.name=camvid", "data.root=/data", "data.flip=0.25"]),
    ):
        assert (spec.data.name, spec.data.root, spec.data.flip) == ("camvid", "/data", 0.25)
        assert (spec.data.crop, spec.data.workers) == (before.crop, before.workers)
        assert set(spec.data.settings) == {"form", "subset"}
    same = load_run("quickstart", ["data.name=shapes"]).data
    assert same.settings == before.settings


def test_a_root_in_a_file_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    base = "model: {name: deeplabv3:resnet10t}\ndata: {name: folder, root: %s}\n"
    (tmp_path / "deep/mine.yaml").write_text(base % "set")
    (tmp_path / "child.yaml").write_text("extends: deep/mine.yaml\n")
    for recipe in ("deep/mine.yaml", "child.yaml"):
        assert load_run(recipe).data.root == str(tmp_path / "deep" / "set")
    assert load_run("deep/mine.yaml", ["data.root=set"]).data.root == str(tmp_path / "set")
    for place in ("s3://bucket/set", "/data/set"):
        (tmp_path / "deep/mine.yaml").write_text(base % place)
        assert load_run("deep/mine.yaml").data.root == place


def test_a_root_in_a_search_space_is_relative_to_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(find_space("cirkd_core"))).read_text(encoding="utf-8")
    (tmp_path / "deep").mkdir()
    tree = {**yaml.safe_load(text), "set": {"data.root": "set"}}
    (tmp_path / "deep/space.yaml").write_text(yaml.safe_dump(tree))
    assert load_space("deep/space.yaml").spec.set["data.root"] == str(tmp_path / "deep" / "set")
    assert load_space("deep/space.yaml", ["data.root=set"]).spec.set["data.root"] == "set"
