"""Two gloo processes are one process with the joined batch: gradients, queues, and whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cirkd_ray.config import RunSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.train.build import Run, build_run
from cirkd_ray.train.distributed import World, average_batchnorm_statistics
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from tests.distributed.gloo import run_ranks
from tests.tinyrun import figures, tiny_distillation

BATCH = 4


def whole_batch() -> DeviceBatch:
    """A batch with another share of ignored pixels in each image, and padding."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (BATCH, 3, 32, 64), dtype=torch.uint8, generator=generator)
    labels = (
        torch.randint(0, 8, (BATCH, 4, 8), generator=generator)
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2)
    )
    for image in range(BATCH):
        labels[image, : 8 * image] = -1
    padding = torch.zeros(BATCH, 32, 64, dtype=torch.bool)
    padding[1, :, 48:] = True
    return DeviceBatch(images, labels, padding, torch.arange(BATCH))


def two_steps(tree: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients after the second of two steps, weights and queues; BatchNorm with fixed statistics."""
    from cirkd_ray.config import from_tree

    world = World.current()
    run = build_run(from_tree(tree), world)
    share = BATCH // world.size
    local = DeviceBatch(*(part[world.rank * share : (world.rank + 1) * share] for part in whole_batch()))
    run.step.distiller.train()
    for module in run.step.distiller.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
            module.eval()  # batch statistics and dropout masks are each rank's own on CPUs
    for step in range(2):
        terms = run.step(step, [run.shared(local)])
    distiller = run.step.distiller
    found = {f"grad.{n}": p.grad for n, p in distiller.named_parameters() if p.grad is not None}
    found |= {f"state.{n}": v for n, v in distiller.state_dict().items()}
    return {**found, "total": terms["total"]}


@pytest.fixture(scope="module")
def tree(teacher: Path) -> dict[str, Any]:
    spec = tiny_distillation(teacher, task={"weight": 1.0, "aux_weight": 0.4}, train={"batch_size": BATCH})
    return spec.to_dict()


def test_gradients_weights_and_queues_equal_one_process(tree: dict[str, Any], tmp_path: Path) -> None:
    one = two_steps(tree)
    first, second = run_ranks(two_steps, 2, tmp_path, tree)
    queues = [name for name in one if "queue" in name or "pointer" in name]
    assert queues
    for name, expected in one.items():
        if name == "total":
            continue
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=f"ranks differ in {name}")
        torch.testing.assert_close(
            first[name], expected, rtol=1e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    mean = (first["total"] + second["total"]) / 2
    torch.testing.assert_close(mean, one["total"], rtol=1e-5, atol=1e-6)


def statistics() -> tuple[torch.Tensor, torch.Tensor]:
    """Averaged statistics of two BatchNorms that each rank fed differently."""
    world = World.current()
    norms = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(2))
    for index, norm in enumerate(norms):
        assert isinstance(norm, nn.BatchNorm1d)
        norm.running_mean.fill_(world.rank + index)
        norm.running_var.fill_(10 * world.rank + 1)
    average_batchnorm_statistics(norms, world)
    return norms[1].running_mean, norms[1].running_var


def test_batchnorm_statistics_are_averaged(tmp_path: Path) -> None:
    for mean, var in run_ranks(statistics, 2, tmp_path):
        assert mean.tolist() == [1.5, 1.5]
        assert var.tolist() == [6.0, 6.0]


def interrupted_run(spec: RunSpec, path: str, stop_at: int | None) -> None:
    """A run of two ranks; the second leaves at a step, as a killed process would."""
    from cirkd_ray.train.member import Member

    directory = RunDirectory(path)
    if stop_at is not None and World.current().rank == 1:
        real = Member._report

        def leave(self: Any, done: int, *args: Any) -> None:
            if done == stop_at:
                raise SystemExit(9)
            real(self, done, *args)

        Member._report = leave  # type: ignore[method-assign]
    run_local(spec, directory)


def test_two_ranks_resume_bit_for_bit(teacher: Path, tmp_path: Path) -> None:
    # Averaged weights have BatchNorm statistics of their own, which differ between ranks on CPUs, too.
    spec = tiny_distillation(teacher, train={"ema": 0.5})
    runs = [RunDirectory(tmp_path / name) for name in ("undisturbed", "interrupted")]
    for run in runs:
        run.create(spec)
    run_ranks(interrupted_run, 2, tmp_path, spec, str(runs[0].path), None)
    with pytest.raises(Exception, match=r"exit|Connection|closed|terminated"):
        run_ranks(interrupted_run, 2, tmp_path, spec, str(runs[1].path), 4)
    assert runs[1].read_result() is None
    run_ranks(interrupted_run, 2, tmp_path, spec, str(runs[1].path), None)
    assert figures(runs[0]) == figures(runs[1])
    assert [row["step"] for row in figures(runs[0])] == [2, 3, 4, 6]


def some_steps(tree: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The terms of the last of three steps."""
    from cirkd_ray.config import from_tree

    return steps_of(build_run(from_tree(tree), World.current()), 3)


def steps_of(run: Run, number: int) -> dict[str, torch.Tensor]:
    """The terms of the last of so many steps of this rank's share of the batch."""
    world = run.world
    share = BATCH // world.size
    local = DeviceBatch(*(part[world.rank * share : (world.rank + 1) * share] for part in whole_batch()))
    run.step.distiller.train()
    terms: dict[str, torch.Tensor] = {}
    for step in range(number):
        terms = run.step(step, [run.shared(local)])
    return terms


def test_parts_of_the_student_that_no_loss_looks_at_hold_nobody_up(teacher: Path, tmp_path: Path) -> None:
    losses = {"minibatch": {"kind": "cirkd_minibatch"}, "adversarial": {"kind": "adversarial"}}
    losses["adversarial"] |= {"student_tap": "feature", "teacher_tap": "feature"}
    tree = tiny_distillation(
        teacher, task={"weight": 0.0}, model={"aux": True}, distill={"losses": losses}
    ).to_dict()
    for terms in run_ranks(some_steps, 2, tmp_path, tree):  # neither classifier has a gradient
        assert set(terms) == {"minibatch", "adversarial", "total"}
        assert torch.isfinite(terms["total"])
