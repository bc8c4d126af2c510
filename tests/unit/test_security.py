"""What SECURITY.md promises of files: none of them runs code, and no name in them leads out of a folder."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.data.prepared import index_part, read_part
from cirkd_ray.data.storage import LocalStorage
from cirkd_ray.errors import CheckpointError, ConfigError, DataError, WeightsError
from cirkd_ray.files import stays_inside
from cirkd_ray.train.checkpoint import MANIFEST, STATE, read_checkpoint
from cirkd_ray.train.stages import named_folder
from cirkd_ray.weights.files import read_state
from tests.errors import refuses
from tests.paths import REPO
from tests.tinyrun import tiny_baseline
from tests.unit.test_data_prepare import small_set

UNSAFE = {
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads"),
    *("joblib.load", "shelve.open", "marshal.load", "marshal.loads", "pandas.read_pickle", "eval", "exec"),
    *("yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load", "tarfile.extractall", "os.system"),
}
"""Calls that run what a file says."""


def calls() -> list[tuple[str, str, ast.Call]]:
    """(file:line, name of the function as written, call) of every call in the package."""
    found = []
    for path in sorted((REPO / "cirkd_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((f"{path.relative_to(REPO)}:{node.lineno}", ast.unparse(node.func), node))
    return found


def test_nothing_in_the_package_runs_what_a_file_says() -> None:
    wrong = []
    for place, name, call in calls():
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in UNSAFE or name.endswith((".extractall", ".read_pickle")):
            wrong.append(f"{place} {name}")
        if name == "torch.load" and keywords.get("weights_only") != "True":
            wrong.append(f"{place} torch.load without weights_only")
        if name == "yaml.load" and not keywords.get("Loader", "").endswith("_Loader"):
            wrong.append(f"{place} yaml.load with {keywords.get('Loader')}")
        if name.endswith("Unpickler") or keywords.get("shell") == "True":
            wrong.append(f"{place} {name}")
    assert not wrong


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where the bomb leaves it; it is known to go off by itself."""
    path = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.rmdir()
    return path


def test_weights_that_hold_code_are_refused(mark: Path, tmp_path: Path) -> None:
    for name, write in {
        "a.pth": torch.save,
        "b.pth": lambda obj, path: path.write_bytes(pickle.dumps(obj)),
    }.items():
        write({"state_dict": {"w": torch.ones(2), "x": Bomb(mark)}}, tmp_path / name)
        with refuses(tmp_path / name, WeightsError):
            read_state(tmp_path / name)
    assert not mark.exists()


def test_a_checkpoint_that_holds_code_is_refused(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    torch.save({"step": 1, "x": Bomb(mark)}, folder / STATE)
    content = (folder / STATE).read_bytes()
    facts = {"step": 1, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(facts))
    with refuses(folder, CheckpointError):
        read_checkpoint(folder)
    assert not mark.exists()


def test_a_schedulers_state_that_holds_code_is_refused(mark: Path, tmp_path: Path) -> None:
    from cirkd_ray.cluster.scheduler_state import STATE as SCHEDULER
    from cirkd_ray.cluster.scheduler_state import read_records, read_scheduler

    path, bomb = tmp_path / SCHEDULER, pickle.dumps(Bomb(mark))
    for content in (bomb, pickle.dumps((bomb, b"")), b"half"):
        path.write_bytes(content)
        with refuses(path, ConfigError):
            read_records(tmp_path)
    with refuses(path, ConfigError):
        read_scheduler(None, pickle.dumps({"_brackets": Bomb(mark)}), tmp_path, {})  # type: ignore[arg-type]
    assert not mark.exists()


def test_reading_a_folder_of_runs_runs_nothing_of_it(
    mark: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file of a run, replaced by a bomb, is refused or not looked at."""
    bomb = pickle.dumps(Bomb(mark))
    for number, file in enumerate(sorted(path for path in teacher.rglob("*") if path.is_file())):
        run = tmp_path / str(number) / "run"
        shutil.copytree(teacher, run)
        (run / file.relative_to(teacher)).write_bytes(bomb)
        for words in (
            ["status", str(run)],
            ["runs", "--out", str(run.parent)],
            ["weights", "inspect", str(run)],
        ):
            assert main(words) in (0, 2), words
        capsys.readouterr()
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\0b"])
def test_a_name_that_leads_out_of_a_folder_is_known(name: str) -> None:
    assert not stays_inside(name)
    assert stays_inside("a/..b/c..")


@pytest.mark.parametrize("row", [{"name": "../../x"}, {"name": "a", "file": "/etc/x"}, {"name": 3}])
def test_an_index_names_no_file_elsewhere(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / index_part("val", 0)
    path.parent.mkdir()
    path.write_text(json.dumps(row))
    with refuses(path, DataError):
        read_part(LocalStorage(tmp_path), "val", 0)


def test_a_list_of_images_names_no_file_elsewhere(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    (tmp_path / "dataset.yaml").write_text("classes: [a, b]\n")
    (tmp_path / "val.txt").write_text("../../x\n")
    with pytest.raises(DataError, match=r"'\.\./\.\./x' leads out of the folder"):
        build_dataset("folder", split="val", root=tmp_path)


@pytest.mark.parametrize("name", ["..", "../x", "/x", "a/b", ""])
def test_a_runs_name_is_one_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        named_folder(tmp_path, name)


SECRET = "5ecret-of-a-test"


def test_secrets_of_the_environment_are_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "HF_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        tiny_baseline(train={"steps": 2, "validate_every": 2}, cluster={"workers": 1}).to_yaml()
    )
    assert main(["train", str(recipe), "--local", "--out", str(tmp_path), "--name", "run"]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.yaml", "log.txt", "result.json"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())


URLS = [f"s3://me:{SECRET}@bucket/x", f"https://host/x?X-Amz-Signature={SECRET}"]


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_a_setting_is_neither_told_nor_written(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"--set=data.root={url}", "--out", str(tmp_path), "--name", "x"]
    assert main(["train", "quickstart", *words]) == 2  # drawn scenes take no root
    assert SECRET not in "".join(capfd.readouterr())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def test_a_secret_in_the_place_of_data_is_not_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = f"memory://me:{SECRET}@prepared/x"
    assert main(["data", "prepare", "folder", str(small_set(tmp_path)), place]) == 0
    assert "data.root=memory://prepared/x" in capfd.readouterr().out
    assert main(["data", "check", "folder", place]) == 0
    assert SECRET not in "".join(capfd.readouterr())
    assert SECRET not in build_dataset("folder", split="train", root=place).check_command
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
