"""A loss, a head and a torch data set of the user's own, by import path."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cirkd_ray.config import from_tree
from cirkd_ray.data import build_dataset
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.train.local import run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.weights import load_model
from tests.errors import refuses
from tests.tinyrun import tiny_tree

OWN = '''
import numpy as np
import torch
from torch.utils.data import Dataset

from cirkd_ray.losses.base import DistillationLoss
from cirkd_ray.losses.tasks.base import TaskTerm
from cirkd_ray.models.heads.fcn import FCNHead


class Scenes(Dataset):
    classes = ["left", "right"]

    def __init__(self, root, split, *, count: int = 12, bad: str = ""):
        if bad == "init":
            raise FileNotFoundError("no such folder")
        self.count, self.bad, self.seed = count, bad, len(split)

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        rng = np.random.default_rng((self.seed, n))
        label = np.zeros((32, 64), np.int64)
        label[:, 32:] = 2 if self.bad == "label" else 1
        image = (100 * label[..., None] + rng.integers(0, 50, (32, 64, 3))).astype(np.uint8)
        return (image.astype(float) if self.bad == "image" else image), torch.from_numpy(label)


class Wide(FCNHead):
    def __init__(self, *, gain: float = 1.0, **common):
        super().__init__(**common)
        self.gain = gain


class Margin(TaskTerm):
    """Of the right class."""

    def __init__(self, *, margin: float = 1.0, **common):
        super().__init__(**common)
        self.margin = margin

    def forward(self, logits, labels, scale):
        right = logits.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        return ((self.margin - right).relu() * (labels >= 0)).sum() * scale


class Mean(DistillationLoss):
    terms = ("mean",)

    def __init__(self, *, power: float = 2.0, **common):
        super().__init__(**common)
        self.power = power

    def forward(self, inputs):
        gap = inputs.student.logits.mean() - inputs.teacher.logits.mean()
        return {"mean": gap.abs() ** self.power}
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{abs(hash(tmp_path)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_run_of_parts_of_ones_own(own: str, tmp_path: Path) -> None:
    data = {"name": f"{own}:Scenes", "crop": [32, 64], "count": 8}
    model = {"name": f"{own}.Wide:mobilenetv3_small_050", "head_channels": 8, "gain": 2.0}
    shared = {"model": model, "optim": {"lr": 0.05}, "train": {"steps": 4, "batch_size": 4, "log_every": 1}}
    tree = {"name": "own", "data": data, **shared}
    tree["task"] = {"losses": {"margin": {"kind": f"{own}:Margin", "margin": 0.5}}}
    teacher = RunDirectory(tmp_path / "teacher")
    open_directory(teacher, from_tree(tree), resume=False)
    run_local(from_tree(tree), teacher)
    tree["teacher"] = {"weights": str(teacher.path)}
    tree["distill"] = {"losses": {"mean": {"kind": f"{own}:Mean", "power": 1.0}}}
    spec = from_tree(tree)
    assert spec.to_dict()["distill"]["losses"]["mean"]["power"] == 1.0
    directory = RunDirectory(tmp_path / "run")
    open_directory(directory, spec, resume=False)
    run_local(spec, directory)
    assert {"loss/margin", "loss/mean"} <= directory.read_metrics()[0].keys()
    assert load_model(directory.path).classes.names == ("left", "right")


def test_a_data_set_reaches_loader_processes(own: str) -> None:
    data = build_dataset(f"{own}:Scenes", split="train", count=3)
    again = pickle.loads(pickle.dumps(data))
    assert len(again) == 3
    assert again.load(2).image.tobytes() == data.load(2).image.tobytes()


def test_what_is_wrong_with_them_is_said(own: str) -> None:
    def tree(**changes: object) -> dict[str, object]:
        return tiny_tree(**changes)

    with refuses("data.name", ConfigError, "Scene", "'Scenes'"):
        from_tree(tree(data={"name": f"{own}:Scene"}))
    with refuses("data.name", ConfigError, "cannot import", "PYTHONPATH"):
        from_tree(tree(data={"name": "no_such_module:Scenes"}))
    with refuses("data.cuont", ConfigError, "'count'"):
        from_tree({"model": {"name": "pspnet_resnet18"}, "data": {"name": f"{own}:Scenes", "cuont": 3}})
    with refuses("task.losses.a.kind", ConfigError, "is no task loss", "TaskTerm"):
        from_tree(tree(task={"losses": {"a": {"kind": f"{own}:Mean"}}}))
    with refuses("model", ConfigError, "is no segmentation head"):
        from_tree(tree(model={"name": f"{own}.Mean:resnet18"}))
    for bad, subject in (("init", "data.name"), ("label", "data"), ("image", "data")):
        with refuses(subject, DataError):
            build_dataset(f"{own}:Scenes", split="train", bad=bad).load(0)
