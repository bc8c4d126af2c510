"""The smallest real runs: drawn scenes of 32 x 64, networks of under a million weights, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory

SCENES = {"name": "shapes", "height": 32, "width": 64, "crop": [32, 64], "train_images": 40, "val_images": 6}
NETWORK = {"name": "deeplabv3:mobilenetv3_small_050", "output_stride": 16, "head_channels": 16}
TIMES = ("images_per_second", "data_wait", "seconds")
"""Figures that no two runs share."""


def tiny_tree(**changes: Any) -> dict[str, Any]:
    """A recipe of a tiny baseline; sections are updated by keyword."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "model": dict(NETWORK),
        "data": dict(SCENES),
        "optim": {"lr": 0.02, "warmup_steps": 2},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "log_every": 2,
            "validate_every": 3,
            "checkpoint_every": 2,
            "pictures": 1,
        },
        "cluster": {"workers": 2, "max_failures": 2, "device": "cpu"},
    }
    for key, value in changes.items():
        tree[key] = (
            {**tree[key], **value} if isinstance(tree.get(key), dict) and isinstance(value, dict) else value
        )
    return tree


def tiny_baseline(**changes: Any) -> RunSpec:
    """A tiny run without a teacher."""
    return from_tree(tiny_tree(**changes))


def tiny_distillation(teacher: Path, **changes: Any) -> RunSpec:
    """A tiny CIRKD run from the teacher exported in a run's folder."""
    losses = {
        "kd": {"kind": "kd"},
        "minibatch": {"kind": "cirkd_minibatch"},
        "memory": {
            "kind": "cirkd_memory",
            "pixel_memory": 40,
            "region_memory": 20,
            "pixel_keys": 120,
            "region_keys": 60,
        },
    }
    return from_tree(
        tiny_tree(**{"teacher": {"weights": str(teacher)}, "distill": {"losses": losses}, **changes})
    )


def figures(directory: RunDirectory) -> list[dict[str, Any]]:
    """The lines of metrics without what depends on the machine's speed."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in directory.read_metrics()]


class Killed(Exception):
    """Stands for a process that ends."""


class KillAt(Listener):
    """Ends the run when it reports a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def metrics(self, step: int, metrics: Any) -> None:
        if step == self.step:
            raise Killed
