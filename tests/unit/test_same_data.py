"""What was trained on data that changed since is not reused without a word."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cirkd_ray.cli import main
from cirkd_ray.config import RunSpec, TeacherSpec, from_tree, load_run
from cirkd_ray.data import build_dataset, storage
from cirkd_ray.data import shapes as scenes
from cirkd_ray.data.identity import DATA, LISTING, DataIdentity, identity
from cirkd_ray.data.storage import open_storage
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.same_data import DataGuard
from cirkd_ray.train.stages import run_recipe
from tests.errors import refuses
from tests.tinyrun import tiny_baseline, tiny_tree
from tests.unit.test_data_prepare import convert, small_set
from tests.unit.test_stages import stub_runner

Change = Callable[[Path], object]


@pytest.fixture(autouse=True)
def _no_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cirkd_ray.train.stages._check", lambda *arguments: ())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_set(tmp_path)


def describe(text: str) -> Change:
    return lambda root: (root / "dataset.yaml").write_text(text)


def take_away(root: Path) -> None:
    for folder in ("images", "labels"):
        (root / folder / "train/c.png").unlink()


def add(root: Path) -> None:
    for folder in ("images", "labels"):
        shutil.copy(root / folder / "train/c.png", root / folder / "train/c2.png")


def rewrite(root: Path) -> None:
    """Other content of as many bytes."""
    os.utime(root / "labels/train/c.png", ns=(1, 1))


def nothing(root: Path) -> None:
    (root / "images/train/note.txt").write_text("no part of the split")


CHANGES: list[tuple[Change, str]] = [
    (describe("classes: [y, x]"), "classes x, y are in another order"),
    (describe("classes: [x, z]"), "class y gone"),
    (describe("classes: [x, y]\nids: {0: y, 1: x}"), "label value 0 is y, was x"),
    (describe("classes: [x, y]\nignore: [7, 255]"), "label value 7 is ignored, was impossible"),
    (describe("classes: [x, y]\nrange: [0, 4095]"), "range of image values is 0..4095, was not given"),
    (take_away, "2 files (images/train/c.png, labels/train/c.png) removed in train"),
    (add, "2 files (images/train/c2.png, labels/train/c2.png) added in train"),
    (rewrite, "labels/train/c.png changed in train"),
]
UNCHANGED = [nothing, describe("classes: [x, y]\npalette: [[1, 2, 3], [4, 5, 6]]")]


def own_data(root: Path, **settings: Any) -> RunSpec:
    data = {"name": "folder", "root": str(root), "crop": [32, 32], **settings}
    return from_tree({**tiny_tree(), "data": data})


def distilled(root: Path) -> RunSpec:
    """The quick start on one's own data."""
    sets = ["data.name=folder", f"data.root={root}", "data.crop=[32, 32]", "teacher.train=quickstart/teacher"]
    return load_run("quickstart", [*sets, "teacher.set=[train.steps=3]", "train.steps=3", "baseline=false"])


def look(root: Path | str) -> DataIdentity:
    return identity({split: build_dataset("folder", split=split, root=root) for split in ("train", "val")})


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_what_changed_is_told(change: Change, text: str, root: Path, tmp_path: Path) -> None:
    look(root).write(tmp_path)
    before = DataIdentity.read(tmp_path)
    assert before is not None
    assert before.changes(look(root)) == []
    change(root)
    assert text in "; ".join(before.changes(look(root)))
    assert before.digest != look(root).digest
    (tmp_path / LISTING).write_bytes(b"damaged")
    blind = DataIdentity.read(tmp_path)
    assert blind is not None
    assert blind.changes(look(root))  # without names


@pytest.mark.parametrize("change", UNCHANGED)
def test_what_decides_nothing_is_no_change(change: Change, root: Path) -> None:
    before = look(root)
    change(root)
    assert before.changes(look(root)) == []


def test_colours_that_were_swapped_are_told(root: Path) -> None:
    describe("classes: [x, y]\npalette: [[1, 2, 3], [4, 5, 6]]")(root)
    before = look(root)
    describe("classes: [x, y]\npalette: [[4, 5, 6], [1, 2, 3]]")(root)
    assert before.changes(look(root)) == ["colour 1,2,3 is y, was x", "colour 4,5,6 is x, was y"]


def test_times_of_a_copy_count_where_the_copy_kept_some(root: Path, tmp_path: Path) -> None:
    before, kept, new = look(root), tmp_path / "kept", tmp_path / "new"
    shutil.copytree(root, kept)
    shutil.copytree(root, new, copy_function=shutil.copyfile)
    assert before.changes(look(kept)) == before.changes(look(new)) == []
    rewrite(kept)
    assert before.changes(look(kept)) == ["labels/train/c.png changed in train"]
    assert before.same_set(look(new))
    (new / "labels/train/c.png").write_bytes(b"of another size")
    assert before.changes(look(new)) == ["labels/train/c.png changed in train"]


def bend(path: Path) -> None:
    """Other content of as many bytes, as another set of the same names and sizes has."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("file", ["images/train/c.png", "labels/train/c.png", "labels/val/d.png"])
def test_a_set_of_the_same_names_and_sizes_is_no_copy(file: str, root: Path, tmp_path: Path) -> None:
    before, other = look(root), tmp_path / "other"
    before.write(tmp_path)
    shutil.copytree(root, other, copy_function=shutil.copyfile)
    assert before.changes(look(other)) == []
    bend(other / file)
    split = file.split("/")[1]
    kept = DataIdentity.read(tmp_path)
    assert kept is not None
    for one in (before, kept):
        assert one.changes(look(other)) == [f"{file} changed in {split}"]
        assert not one.same_set(look(other))
    facts = json.loads((tmp_path / DATA).read_text())
    del facts["contents"]  # as an earlier version wrote it
    (tmp_path / DATA).write_text(json.dumps(facts))
    earlier = DataIdentity.read(tmp_path)
    assert earlier is not None
    assert earlier.changes(look(other)) == []


def test_of_large_sets_and_files_a_few_and_their_ends_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(60):
        for folder in ("images", "labels"):
            shutil.copy(root / folder / "train/c.png", root / folder / f"train/more{n}.png")
    before = look(root)
    assert len(before.contents["train"]) == 32
    assert sum(name.startswith("labels") for name in before.contents["train"]) == 16
    assert before.contents == look(root).contents
    (root / "labels/train/c.png").write_bytes(bytes(3000))
    store = open_storage(root)
    whole = store.digest("labels/train/c.png", 3000)
    monkeypatch.setattr(storage, "_END", 1000)
    ends = store.digest("labels/train/c.png", 3000)
    for place, seen in ((10, True), (1500, False), (2990, True)):
        content = bytearray(3000)
        content[place] = 1
        (root / "labels/train/c.png").write_bytes(content)
        assert (store.digest("labels/train/c.png", 3000) != ends) == seen
        monkeypatch.setattr(storage, "_END", 2**21)
        assert store.digest("labels/train/c.png", 3000) != whole
        monkeypatch.setattr(storage, "_END", 1000)


def test_behind_a_url_names_and_sizes_count(root: Path) -> None:
    url = "memory://same-data"
    fsspec.filesystem("memory").put(str(root), "/same-data", recursive=True)
    before = look(url)
    assert before.files is not None
    assert before.files["train"]["images/train/c.png"] == [(root / "images/train/c.png").stat().st_size, None]
    fsspec.filesystem("memory").pipe("/same-data/labels/train/c.png", b"other")
    assert before.changes(look(url)) == ["labels/train/c.png changed in train"]
    fsspec.filesystem("memory").put(str(root), "/same-data2", recursive=True)
    size = (root / "images/train/c.png").stat().st_size
    fsspec.filesystem("memory").pipe("/same-data2/images/train/c.png", bytes(size))
    assert look(root).changes(look(f"{url}2")) == ["images/train/c.png changed in train"]


def test_drawn_scenes_are_those_of_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = DataGuard.of(tiny_baseline()).now
    assert before.changes(DataGuard.of(tiny_baseline()).now) == []
    monkeypatch.setattr(scenes, "DRAWING", scenes.DRAWING + 1)
    assert before.changes(DataGuard.of(tiny_baseline()).now) == [
        "drawing changed in train",
        "drawing changed in val",
    ]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_a_run_is_not_resumed_on_other_data(change: Change, text: str, root: Path, tmp_path: Path) -> None:
    spec, directory = own_data(root), RunDirectory(tmp_path / "out/x")
    run_recipe(spec, directory, tmp_path / "out", stub_runner)
    run_recipe(spec, directory, tmp_path / "out", stub_runner, resume=True)
    change(root)
    with refuses(directory.path, ConfigError) as error:
        run_recipe(spec, directory, tmp_path / "out", stub_runner, resume=True)
    assert all(part in str(error.value) for part in (text, "another --name", "--accept-data"))
    said: list[str] = []
    run_recipe(spec, directory, tmp_path / "out", stub_runner, resume=True, accept_data=True, say=said.append)
    assert any(text in line for line in said)
    run_recipe(spec, directory, tmp_path / "out", stub_runner, resume=True)  # accepted once


def test_a_run_may_go_on_where_its_data_moved(root: Path, tmp_path: Path) -> None:
    spec, directory = own_data(root), RunDirectory(tmp_path / "out/x")
    run_recipe(spec, directory, tmp_path / "out", stub_runner)
    shutil.copytree(root, tmp_path / "moved", copy_function=shutil.copyfile)
    moved = own_data(tmp_path / "moved")
    run_recipe(moved, directory, tmp_path / "out", stub_runner, resume=True)
    rewrite(tmp_path / "moved")  # its times are known by now
    with refuses(directory.path):
        run_recipe(moved, directory, tmp_path / "out", stub_runner, resume=True)


def test_a_folder_of_an_earlier_version_is_taken_with_a_note(root: Path, tmp_path: Path) -> None:
    spec, directory = distilled(root), RunDirectory(tmp_path / "out/x")
    outcome = run_recipe(spec, directory, tmp_path / "out", stub_runner)
    assert outcome.teacher is not None
    for folder in (directory.path, outcome.teacher.path):
        (folder / DATA).unlink()
    said: list[str] = []
    again = run_recipe(spec, directory, tmp_path / "out", stub_runner, resume=True, say=said.append)
    assert again.teacher in again.reused
    assert sum("does not say what its data were" in line for line in said) == 2
    assert (directory.path / DATA).is_file()


def test_a_teacher_of_other_labels_is_trained_anew_under_another_name(root: Path, tmp_path: Path) -> None:
    out, spec = tmp_path / "out", distilled(root)
    first = run_recipe(spec, RunDirectory(out / "x1"), out, stub_runner)
    second = run_recipe(spec, RunDirectory(out / "x2"), out, stub_runner)
    assert second.teacher in second.reused
    original = (root / "dataset.yaml").read_text()
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    said: list[str] = []
    other = run_recipe(spec, RunDirectory(out / "x3"), out, stub_runner, say=said.append)
    assert first.teacher is not None
    assert other.teacher is not None
    assert other.teacher not in other.reused
    assert other.teacher.path != first.teacher.path
    assert any("label value 0 is y, was x" in line and str(first.teacher.path) in line for line in said)
    again = run_recipe(spec, RunDirectory(out / "x4"), out, stub_runner)
    assert again.teacher in again.reused
    assert again.teacher is not None
    assert again.teacher.path == other.teacher.path
    kept = run_recipe(spec, RunDirectory(out / "x5"), out, stub_runner, accept_data=True).teacher
    assert kept is not None
    assert kept.path == first.teacher.path
    resumed = run_recipe(spec, RunDirectory(out / "x3"), out, stub_runner, resume=True, accept_data=True)
    assert resumed.teacher is not None
    assert resumed.teacher.path == other.teacher.path  # a run stays with its own
    (root / "dataset.yaml").write_text(original)
    back = run_recipe(spec, RunDirectory(out / "x6"), out, stub_runner).teacher
    assert back is not None
    assert back.path == first.teacher.path


def test_teacher_and_baseline_are_those_of_the_data_wherever_they_lie(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def trained(name: str, root: Path) -> tuple[list[Path], list[Path], list[str]]:
        said: list[str] = []
        spec = distilled(root)
        spec = from_tree({**spec.to_dict(), "baseline": True})
        found = run_recipe(spec, RunDirectory(out / name), out, stub_runner, say=said.append)
        assert found.teacher is not None
        assert found.baseline is not None
        return [found.teacher.path, found.baseline.path], [item.path for item in found.reused], said

    first, reused, _ = trained("x1", root)
    assert reused == []
    moved = root.rename(tmp_path / "moved")
    assert trained("x2", moved)[:2] == (first, first)
    shutil.copytree(moved, tmp_path / "copied", copy_function=shutil.copyfile)
    assert trained("x3", tmp_path / "copied")[:2] == (first, first)
    shutil.copytree(moved, tmp_path / "other")
    take_away(tmp_path / "other")
    others, reused, said = trained("x4", tmp_path / "other")
    assert reused == []
    assert not set(others) & set(first)
    assert sum("is of other data" in line for line in said) == 2
    (tmp_path / "other").rename(tmp_path / "other2")
    again, reused, said = trained("x5", tmp_path / "other2")
    assert again == reused == others
    assert not any("is of other data" in line for line in said)
    shutil.copytree(tmp_path / "other2", tmp_path / "other3", copy_function=shutil.copyfile)
    assert trained("x6", tmp_path / "other3")[1] == others


def test_a_sweep_does_not_go_on_with_other_data(root: Path, tmp_path: Path) -> None:
    from cirkd_ray.cluster.sweep import Sweep, _open

    space = SweepSpec.model_validate(
        {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.001, 0.1]}}}
    )
    spec, folder, said = own_data(root), tmp_path / "s", []

    def sweep(accept: bool = False) -> Sweep:
        data = DataGuard.of(spec, accept, said.append)
        return Sweep(space, spec, folder, tmp_path, said.append, data)

    _open(sweep(), fresh=False)
    rewrite(root)
    _open(sweep(), fresh=False)  # nothing was trained yet
    (folder / "tune").mkdir()
    add(root)
    with refuses(folder, ConfigError) as error:
        _open(sweep(), fresh=False)
    assert all(part in str(error.value) for part in ("c2.png", "--fresh", "--accept-data"))
    _open(sweep(accept=True), fresh=False)
    take_away(root)
    _open(sweep(), fresh=True)


def test_a_comparison_does_not_go_on_with_other_data(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cirkd_ray.cluster import compare

    monkeypatch.setattr(compare, "ray_session", lambda **options: nullcontext())
    monkeypatch.setattr(compare, "_run", lambda *arguments: None)
    more = own_data(root, subset=True)  # as --differ allows
    methods, folder = {"baseline": own_data(root), "more": more}, tmp_path / "c"

    def compared(accept: bool = False) -> None:
        compare.run_comparison(methods, 1, folder, tmp_path, lambda text: None, accept_data=accept)

    compared()
    rewrite(root)
    compared()  # nothing was trained yet
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "metrics.jsonl").touch()
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    with refuses(folder, ConfigError) as error:
        compared()
    assert "label value 0 is y, was x" in str(error.value)
    compared(accept=True)
    compared()


def test_a_prepared_set_of_labels_that_mean_something_else_now(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    convert(root, target)
    said: list[str] = []
    spec = own_data(target)
    before = DataGuard.of(spec, say=said.append).now
    assert (before.values["1"], said) == ("y", [])
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    with refuses(target, DataError) as error:
        run_recipe(spec, RunDirectory(tmp_path / "x"), tmp_path, stub_runner)
    assert all(part in str(error.value) for part in ("label value 0 is y, was x", str(root), "--accept-data"))
    DataGuard.of(spec, accept=True, say=said.append)
    assert "label value 0 is y" in said[-1]
    describe("classes: [x, y]")(root)
    rewrite(root)
    DataGuard.of(spec, say=said.append)
    assert "images/train/c.png changed in train" in said[-1]
    shutil.rmtree(root)  # a prepared set does without what it was made of
    assert DataGuard.of(spec, say=said.append).now.digest == before.digest
    assert len(said) == 2


def test_a_prepared_set_that_was_made_again_is_other_data(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "prepared"
    convert(root, target)
    before = DataGuard.of(own_data(target)).now
    assert before.changes(DataGuard.of(own_data(target)).now) == []
    add(root)
    convert(root, target)
    assert "c2.png added in train" in "; ".join(before.changes(DataGuard.of(own_data(target)).now))


def test_mended_data_do_not_block_the_name_of_a_start_that_failed(root: Path, tmp_path: Path) -> None:
    def fails(*args: object) -> dict[str, Any]:
        raise DataError("labels/train/c.png: impossible label values")

    run = RunDirectory(tmp_path / "out" / "run")
    with pytest.raises(DataError):
        run_recipe(own_data(root), run, tmp_path / "out", fails)
    rewrite(root)
    outcome = run_recipe(own_data(root), run, tmp_path / "out", stub_runner, resume=True)
    assert outcome.result["steps"] > 0
    describe("classes: [y, x]")(root)
    run.result.unlink()
    run.metrics.touch()
    with refuses(run.path, ConfigError, "begun with other data"):
        run_recipe(own_data(root), run, tmp_path / "out", stub_runner, resume=True)


def test_a_teacher_of_labels_that_mean_something_else_now(root: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    look(root).write(teacher)
    spec = own_data(root)
    said: list[str] = []
    taught = spec.model_copy(update={"teacher": TeacherSpec(weights=str(teacher))})
    DataGuard.of(taught)
    rewrite(root)
    DataGuard.of(taught)  # other files are what a teacher is for
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    with refuses("teacher.weights", ConfigError, "label value 0 is y, was x", "--accept-data"):
        DataGuard.of(taught)
    DataGuard.of(taught, True, said.append)
    assert "label value 0" in said[-1]
    with refuses("teacher.weights", ConfigError, "label value 0 is y, was x"):
        DataGuard.of(spec).on(taught)  # in a comparison, whose first method has no teacher


def test_a_prepared_set_whose_source_lacks_files_still_knows_what_labels_meant(
    root: Path, tmp_path: Path
) -> None:
    for label in root.glob("labels/*/*.png"):
        label.rename(label.with_name(f"{label.stem}_m.png"))
    line = ["data", "prepare", "folder", str(root), str(tmp_path / "p"), "--set", "label_suffix=_m"]
    assert main(line) == 0
    spec = own_data(tmp_path / "p")
    DataGuard.of(spec)
    (root / "labels/train/c_m.png").unlink()
    DataGuard.of(spec)
    describe("classes: [x, y]\nids: {0: y, 1: x}")(root)
    with refuses(tmp_path / "p", DataError, "prepared when labels meant something else"):
        DataGuard.of(spec)
    said: list[str] = []
    describe("classes: [x")(root)
    DataGuard.of(spec, say=said.append)
    assert "cannot be read any more" in said[0]


def test_another_order_is_other_data(root: Path, tmp_path: Path) -> None:
    (root / "train.txt").write_text("train/ä\ntrain/b b\ntrain/c\n")
    before = look(root)
    (root / "train.txt").write_text("train/c\ntrain/b b\ntrain/ä\n")
    assert before.changes(look(root)) == ["the files of train are in another order"]
    assert before.digest != look(root).digest
