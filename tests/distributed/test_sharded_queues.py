"""Queues that ranks keep in parts: the same losses, gradients and checkpoints as whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.losses.queues import ClassQueue
from cirkd_ray.train.checkpoint import newest_checkpoint, read_checkpoint
from cirkd_ray.train.distributed import World
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from tests.contract.loss_cases import small_loss, student_maps, total
from tests.distributed.gloo import run_ranks
from tests.distributed.test_losses_ranks import joined_inputs, part_of
from tests.tinyrun import figures, tiny_distillation

KIND, STEPS = "cirkd_memory", 3


def some_steps(**settings: Any) -> tuple[Any, list[Tensor]]:
    """The loss after some steps, and its values and all gradients."""
    world, found = World.current(), []
    loss = small_loss(KIND, **settings)
    for step in range(STEPS):
        inputs = part_of(joined_inputs(step), world.rank, world.size)
        terms = loss(inputs)
        total(terms).backward()
        found += [terms[name].detach() for name in sorted(terms)]
        found += [t.grad for t in student_maps(inputs) if t.grad is not None]
    return loss, found + [p.grad for p in loss.parameters() if p.grad is not None]


def both_ways(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A loss with whole queues and one with parts of them, and what the queues end as."""
    world, found = World.current(), []
    for each in settings:
        (replicated, expected), (sharded, values) = some_steps(**each), some_steps(**each, shard=True)
        assert len(expected) == len(values) > STEPS * 3
        assert all(torch.equal(one, other) for one, other in zip(expected, values, strict=True))
        queues = [m for m in sharded.modules() if isinstance(m, ClassQueue)]
        assert len(queues) == 2
        for queue in queues:
            assert len(queue.queue) == len(range(queue.num_classes)[world.rank :: world.size])
        whole = {f"{n}.{k}": v for n in ("pixel", "region") for k, v in getattr(sharded, n).whole().items()}
        again = small_loss(KIND, **each, shard=True)  # each rank takes its own classes of a whole queue
        again.load_state_dict(replicated.state_dict())
        for name, value in again.named_buffers():
            assert torch.equal(value, sharded.get_buffer(name))
        state = {k: v for k, v in replicated.state_dict().items() if k.startswith(("pixel.", "region."))}
        found.append({"whole": whole, "state": state, "bytes": sum(q.queue.nbytes for q in queues)})
    return found


def test_losses_gradients_and_queues_are_those_of_whole_queues(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"mode": "reference", "storage": "bfloat16"}]
    for first, second in zip(*run_ranks(both_ways, 2, tmp_path, settings), strict=True):
        assert first["whole"].keys() == first["state"].keys()
        for name, expected in first["state"].items():
            assert torch.equal(first["whole"][name], expected), name
        assert second["whole"] == {}
        complete = sum(v.nbytes for k, v in first["state"].items() if k.endswith("queue"))
        assert first["bytes"] == second["bytes"] == complete / 2


def queues_of_three(counts: list[int]) -> list[dict[str, Tensor]]:
    """Queues of so many classes after two steps, whose ranks have other vectors."""
    world, found = World.current(), []
    for classes in counts:
        whole, parts = (ClassQueue("test", classes, 4, 3, torch.float32, shard) for shard in (False, True))
        for step in range(2):
            generator = torch.Generator().manual_seed(10 * step + world.rank)
            vectors = torch.randn(2, classes, 3, 3, generator=generator)
            vectors[0, world.rank % classes] = 0.0  # fewer than there is room for
            for queue in (whole, parts):
                queue.push(queue.gather_candidates(vectors).transpose(0, 1).flatten(1, 2))
            assert torch.equal(whole.draw(2, "x", step), parts.draw(2, "x", step))
        made = parts.whole()
        assert bool(made) == world.is_main
        assert all(torch.equal(value, whole.get_buffer(name)) for name, value in made.items())
        found.append(made)
    return found


def test_classes_that_do_not_divide_over_ranks_or_are_fewer(tmp_path: Path) -> None:
    first, *_ = run_ranks(queues_of_three, 3, tmp_path, [5, 2])
    assert [len(each["queue"]) for each in first] == [5, 2]


def with_shard(spec: RunSpec, shard: bool, steps: int) -> RunSpec:
    tree = spec.to_dict()
    tree["distill"]["losses"]["memory"]["shard"] = shard
    tree["train"]["steps"] = steps
    return from_tree(tree)


def runs(spec: RunSpec, folder: str) -> None:
    for shard in (False, True):
        directory = RunDirectory(Path(folder) / str(shard))
        run_local(with_shard(spec, shard, 4), directory)


def losses_of(directory: RunDirectory) -> dict[str, Tensor]:
    newest = newest_checkpoint(directory.checkpoints, lambda text: None)
    assert newest is not None
    found: dict[str, Tensor] = read_checkpoint(newest)["losses"]
    return found


def test_checkpoints_are_those_of_whole_queues_and_fit_one_rank(teacher: Path, tmp_path: Path) -> None:
    spec = tiny_distillation(
        teacher, train={"steps": 4, "validate_every": 4, "checkpoint_every": 2, "log_every": 2}
    )
    made = [RunDirectory(tmp_path / str(shard)) for shard in (False, True)]
    for shard, directory in zip((False, True), made, strict=True):
        directory.create(with_shard(spec, shard, 4))
    run_ranks(runs, 2, tmp_path, spec, str(tmp_path))
    whole, parts = (losses_of(directory) for directory in made)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert figures(made[0]) == figures(made[1])
    made[1].result.unlink()
    for shard in (True, False):  # one rank goes on, with and without
        steps = 5 if shard else 6
        made[1].result.unlink(missing_ok=True)
        assert run_local(with_shard(spec, shard, steps), made[1])["steps"] == steps
