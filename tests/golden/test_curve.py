"""The losses of 50 steps of one small run, as they were recorded: a refactoring must not move them.

To record them anew after a change that is meant to move them: `python -m tests.golden.test_curve`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cirkd_ray.config import from_tree
from cirkd_ray.data import build_dataset
from cirkd_ray.models import build_model
from cirkd_ray.train import loop
from cirkd_ray.train.build import Run, build_cohort
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.weights import save_model
from tests.tinyrun import tiny_tree

RECORDED = Path(__file__).with_name("curve.json")
STEPS = 50
# Without the pooled branch of an ASPP, whose batch norm sees one value an image: it multiplies rounding by
# ten in each step, and another make of CPU ends elsewhere.
WELL_CONDITIONED = {"name": "fcn:mobilenetv3_small_050", "output_stride": 8, "head_channels": 16}
LOSSES: dict[str, dict[str, Any]] = {
    "kd": {"kind": "kd"},
    "cwd": {"kind": "cwd", "weight": 3},
    "ifvd": {"kind": "ifvd", "weight": 5},
    "adversarial": {"kind": "adversarial", "weight": 0.1},
    "minibatch": {"kind": "cirkd_minibatch", "group": "rank"},
    "memory": {
        "kind": "cirkd_memory",
        "pixel_memory": 40,
        "region_memory": 20,
        "pixel_keys": 120,
        "region_keys": 60,
    },
}


def float64(build: Callable[..., Any]) -> Callable[..., Any]:
    """What builds networks, with initial values and power iterations in float64."""

    def built(*args: Any, **kwargs: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        try:
            return build(*args, **kwargs)
        finally:
            torch.set_default_dtype(torch.float32)

    return built


def in_float64(run: Run) -> Run:
    """The same run with networks and losses in float64; images come to them in float32."""

    def cast(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    assert run.teacher is not None
    assert run.step.average is not None
    for module in (run.step.distiller, run.teacher, run.step.average):
        module.double()
    for network in (run.student, run.teacher, run.evaluated):
        network.register_forward_pre_hook(cast)
    return run


def curve(folder: Path) -> dict[str, list[float]]:
    """Loss term -> its value at each step, computed in float64.

    In float32 the rounding of another machine's kernels grows to whole percents within these steps.
    """
    cohort = float64(build_cohort)
    torch.manual_seed(3)
    classes = build_dataset("shapes", split="val").classes
    network = float64(build_model)(num_classes=len(classes), **WELL_CONDITIONED)
    save_model(network, folder / "teacher", classes=classes)
    every = dict.fromkeys(("steps", "validate_every", "checkpoint_every"), STEPS)
    train = {**every, "log_every": 1, "batch_size": 4, "pictures": 0, "ema": 0.9}
    spec = from_tree(
        tiny_tree(
            model=WELL_CONDITIONED,
            teacher={"weights": str(folder / "teacher")},
            distill={"losses": LOSSES},
            optim={"warmup_steps": 5, "weight_decay": 1e-3},
            train=train,
        )
    )
    directory = RunDirectory(folder / "run")
    directory.create(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_cohort", lambda *args: [in_float64(run) for run in cohort(*args)])
        result = run_local(spec, directory)
    rows = directory.read_metrics()
    names = [name for name in rows[0] if name.startswith("loss/")]
    return {**{name: [row[name] for row in rows] for name in names}, "miou": [result["last"]["miou"]]}


def test_a_run_of_fifty_steps_is_as_it_was_recorded(tmp_path: Path) -> None:
    recorded, now = json.loads(RECORDED.read_text()), curve(tmp_path)
    assert now.keys() == recorded.keys()
    # Other kernels (MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default) differ by 1e-8 at most.
    for name, values in recorded.items():
        assert now[name] == pytest.approx(values, rel=1e-6), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        RECORDED.write_text(json.dumps(curve(Path(made)), indent=0) + "\n")
