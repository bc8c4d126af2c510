"""Runs a function in several gloo processes on this machine and hands back what each returned."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], ranks: int, tmp_path: Path, *args: Any) -> list[Any]:
    """`function(*args)` in `ranks` processes of one gloo group; results by rank."""
    meeting = (tmp_path / f"meeting-{uuid.uuid4().hex}").as_uri()  # a free port may be taken until it is used
    mp.start_processes(
        _rank, (function, ranks, meeting, str(tmp_path), args), nprocs=ranks, start_method="spawn"
    )
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def _rank(
    rank: int, function: Callable[..., Any], ranks: int, meeting: str, folder: str, args: tuple[Any, ...]
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    try:
        torch.save(function(*args), Path(folder) / f"rank{rank}.pt")
    finally:
        dist.destroy_process_group()
