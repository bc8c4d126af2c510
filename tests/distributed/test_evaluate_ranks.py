"""Evaluation over real process groups: exactly the counts of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cirkd_ray.evaluate.evaluation import evaluate
from cirkd_ray.evaluate.metrics import ConfusionMatrix
from tests.tiny import RandomSet, TinyNet

SIZES = ((16, 20), (20, 16), (16, 20))


def everything(rank: int = 0, world_size: int = 1):
    data = RandomSet(count=101, sizes=SIZES)
    return evaluate(
        TinyNet(),
        data,
        device="cpu",
        rank=rank,
        world_size=world_size,
        boundary=True,
        per_image=True,
        pictures=(0, 5),
    )


def one_rank(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        own = ConfusionMatrix(3)
        own.update(torch.full((1, 1, rank + 1), rank % 3), torch.full((1, 1, rank + 1), 1))
        assert own.reduce() is own
        result = everything(rank, world_size)
        saved = {
            "reduced": own.matrix,
            "matrix": result.confusion.matrix,
            "boundary": result.boundary.iou(),
            "per_image": torch.from_numpy(result.per_image),
            "seconds": result.seconds,
            "images": result.images,
            "pictures": len(result.pictures),
        }
        torch.save(saved, f"{folder}/rank{rank}.pt")
        few = evaluate(TinyNet(), RandomSet(count=1), device="cpu", rank=rank, world_size=world_size)
        assert few.images == 1  # ranks without a single image take part as well
        assert few.confusion.matrix.sum() > 0
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8))])
def test_ranks_give_exactly_the_counts_of_one_process(world_size, tmp_path):
    expected = everything()
    mp.spawn(one_rank, args=(world_size, str(tmp_path)), nprocs=world_size)
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]
    row = torch.zeros(3, 3, dtype=torch.int64)
    for rank in range(world_size):
        row[1, rank % 3] += rank + 1
    for rank, saved in enumerate(found):
        assert torch.equal(saved["reduced"], row)
        assert torch.equal(saved["matrix"], expected.confusion.matrix)
        assert torch.equal(saved["boundary"], expected.boundary.iou())
        assert (saved["per_image"].numpy() == expected.per_image).all()
        assert saved["images"] == 101
        assert saved["pictures"] == (2 if rank == 0 else 0)
    assert len({saved["seconds"] for saved in found}) == 1
