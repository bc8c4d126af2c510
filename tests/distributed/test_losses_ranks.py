"""Two gloo ranks compute what one process with the joined batch computes: gradients, queues, every loss."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cirkd_ray.losses import LossInputs
from cirkd_ray.losses.task import TaskLoss
from cirkd_ray.types import SegmentationOutput
from tests.contract.loss_cases import (
    KINDS,
    make_inputs,
    own_module,
    small_loss,
    student_maps,
    total,
)

WORLD, STEPS, IMAGES = 2, 3, 4
GROUPED = {
    "cirkd_minibatch": {"minibatch_pixel"},
    "cirkd_channel": {"minibatch_channel"},
    "cirkd_v2": {"minibatch_pixel", "minibatch_channel"},
}
"""Terms that compare images of a group."""
GROUPS: tuple[int | str, ...] = (1, 2, 3, 4, "batch", "rank")
"""Of two ranks with two images each: 3 and 4 span them, the second of 3 is smaller."""


def joined_inputs(step: int) -> LossInputs:
    """Four images; the two ranks' halves have unlike numbers of ignored pixels."""
    inputs = make_inputs(images=IMAGES, step=step)
    labels = inputs.labels.clone()
    labels[0, 4:] = -1
    return replace(inputs, labels=labels)


def part_of(inputs: LossInputs, rank: int, world: int) -> LossInputs:
    """The rank's images, with leaves of its own for the student's maps."""
    rows = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    student = SegmentationOutput(*(t.detach()[rows].clone().requires_grad_() for t in student_maps(inputs)))
    teacher = SegmentationOutput(*(t[rows] for t in inputs.teacher[:3]))
    return replace(inputs, student=student, teacher=teacher, labels=inputs.labels[rows])


def run(kind: str, rank: int, world: int, **settings: Any) -> dict[str, Any]:
    """Some steps of one loss as the engine runs it; what is left of them, averaged over ranks as DDP does."""
    if kind == "task":
        loss: Any = TaskLoss()
    else:
        loss = small_loss(kind, **(settings or getattr(own_module(kind), "JOINED", {})))
    discriminator = getattr(loss, "discriminator", None)
    if discriminator is not None:
        discriminator.requires_grad_(False)
    maps: list[Tensor] = []
    values = []
    for step in range(STEPS):
        inputs = part_of(joined_inputs(step), rank, world)
        terms = loss(inputs.student, inputs.labels) if kind == "task" else loss(inputs)
        total(terms).backward()
        maps += [torch.zeros_like(t) if t.grad is None else t.grad for t in student_maps(inputs)]
        values.append(torch.stack([terms[name].detach() for name in sorted(terms)]))
    trained = [p for p in loss.parameters() if p.requires_grad]
    if discriminator is not None:
        discriminator.requires_grad_(True)
        (loss.discriminator_loss(inputs) / 1.0).backward()
        trained += list(discriminator.parameters())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    for t in [*grads, *values]:
        if world > 1:
            dist.all_reduce(t)
        t /= world
    return {
        "maps": [t / world for t in maps],
        "parameters": grads,
        "values": values,
        "buffers": [b.clone() for b in loss.buffers()],
    }


def grouped(kind: str, group: int | str) -> dict[str, Any]:
    """Settings of a loss that compares the images of groups alone."""
    return {"active": frozenset(GROUPED[kind]), "group": group}


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=120),
    )
    found = {kind: run(kind, rank, WORLD) for kind in ["task", *KINDS]}
    for kind in GROUPED:
        found |= {f"{kind} {group}": run(kind, rank, WORLD, **grouped(kind, group)) for group in GROUPS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found, for all losses: they are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=WORLD, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_equal(one: dict[str, Any], two: dict[str, Any], alone: dict[str, Any]) -> None:
    """Values and gradients of two ranks are those of one process."""
    for key in ("values", "parameters"):
        for mine, theirs, expected in zip(one[key], two[key], alone[key], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)
    for first, second, expected in zip(one["maps"], two["maps"], alone["maps"], strict=True):
        torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["task", *KINDS])
def test_two_ranks_are_one_process_with_the_joined_batch(kind: str, ranks: list[dict[str, Any]]) -> None:
    alone = run(kind, 0, 1)
    one, two = (found[kind] for found in ranks)
    assert_equal(one, two, alone)
    for first, second, expected in zip(one["buffers"], two["buffers"], alone["buffers"], strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("kind", GROUPED)
def test_groups_do_not_depend_on_the_number_of_ranks(
    kind: str, group: int | str, ranks: list[dict[str, Any]]
) -> None:
    one, two = (found[f"{kind} {group}"] for found in ranks)
    alone = run(kind, 0, 1, **grouped(kind, IMAGES // WORLD if group == "rank" else group))
    assert_equal(one, two, alone)


@pytest.mark.parametrize("kind", GROUPED)
def test_groups_of_other_sizes_are_other_losses(kind: str) -> None:
    found = [run(kind, 0, 1, **grouped(kind, group))["values"][0] for group in (1, 2, 3, 4)]
    assert all(not torch.allclose(one, two) for one in found for two in found if one is not two)
    whole = run(kind, 0, 1, **grouped(kind, "batch"))["values"][0]
    torch.testing.assert_close(whole, found[3], rtol=0, atol=0)
