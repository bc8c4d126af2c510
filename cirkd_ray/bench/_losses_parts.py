"""What `cirkd bench losses` measures beside the table of losses: tokens, enqueue, bytes between ranks."""

from __future__ import annotations

import copy
import multiprocessing
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.bench import _losses_naive as naive
from cirkd_ray.bench._losses_measure import (
    SHAPES,
    Clock,
    Shape,
    best_seconds,
    forward_backward,
    make_inputs,
    make_loss,
    peak_bytes,
)
from cirkd_ray.losses.maps import resize_labels, tokens
from cirkd_ray.losses.symmetric import relational_kl_symmetric


def token_rows(counts: list[int], clock: Clock, largest_naive: int) -> list[tuple[Any, ...]]:
    """(tokens, seconds, peak bytes, naive seconds, naive bytes) of the relation of one image to itself."""
    rows: list[tuple[Any, ...]] = []
    device = clock.device
    for count in counts:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(count, c, generator=generator).to(device) for c in (128, 256))

        def ours(student: Tensor = student, teacher: Tensor = teacher, count: int = count) -> None:
            leaf = student.clone().requires_grad_()
            s, t = F.normalize(leaf), F.normalize(teacher)
            weights = torch.full((count,), 1.0 / count, device=device)
            relational_kl_symmetric(s.unsqueeze(0), t.unsqueeze(0), weights, temperature=0.1).backward()  # type: ignore[no-untyped-call]

        def plain(student: Tensor = student, teacher: Tensor = teacher) -> None:
            leaf = student.clone().requires_grad_()
            naive._pairs([leaf], [teacher], 0.1).backward()  # type: ignore[no-untyped-call]

        if count <= largest_naive:
            seconds = best_seconds([ours, plain], clock)
            rows.append((count, seconds[0], peak_bytes(ours, device), seconds[1], peak_bytes(plain, device)))
        else:
            seconds = best_seconds([ours], clock)
            rows.append((count, seconds[0], peak_bytes(ours, device), None, None))
    return rows


def enqueue_seconds(shape: Shape, clock: Clock) -> tuple[float, float]:
    """Seconds to enqueue a batch: vectorised, and by loops over images and classes."""
    inputs = make_inputs(shape, clock.device)
    ours = make_loss("cirkd_memory", shape, clock.device)
    other = copy.deepcopy(ours)
    labels = resize_labels(inputs.labels, (shape.height, shape.width)).flatten(1)
    teacher = F.normalize(inputs.teacher.feature, dim=1)

    def vectorised() -> None:
        ours._enqueue(tokens(teacher), labels, inputs)  # type: ignore[operator]

    def by_loops() -> None:
        naive.enqueue(other, teacher.flatten(2), labels, inputs)

    vectorised()
    first, second = best_seconds([vectorised, by_loops], clock)
    return first, second


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the bytes that this rank receives from others through the collectives that losses use."""
    received: dict[str, int] = {}
    world = dist.get_world_size()
    saved = {
        name: getattr(dist, name)
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce")
    }

    def counting(name: str) -> Any:
        def call(*args: Tensor, **kwargs: Any) -> Any:
            share = {"all_gather_into_tensor": args[0].nbytes * (world - 1) // world}.get(
                name, args[0].nbytes
            )
            received[name] = received.get(name, 0) + share
            return saved[name](*args, **kwargs)

        return call

    for name in saved:
        setattr(dist, name, counting(name))
    try:
        yield received
    finally:
        for name, function in saved.items():
            setattr(dist, name, function)


def _exchange_worker(rank: int, port: int, shape_name: str, folder: str) -> None:
    torch.set_num_threads(1)
    shape = SHAPES[shape_name]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    loss = make_loss("cirkd_memory", shape._replace(slots=2_000), torch.device("cpu"))
    with counted() as received:
        forward_backward(loss, make_inputs(shape, torch.device("cpu"), step=rank))
    if rank == 0:
        torch.save(received, Path(folder) / "received.pt")
    dist.barrier()
    dist.destroy_process_group()


def exchanged_bytes(shape_name: str) -> tuple[int, int, int]:
    """Bytes that a rank of two receives a step: `cirkd_memory`, counted; whole maps; broadcast queues."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_exchange_worker, args=(r, port, shape_name, folder)) for r in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        received = torch.load(Path(folder) / "received.pt", weights_only=True)
    shape = SHAPES[shape_name]
    pixels = shape.images * shape.height * shape.width
    maps = pixels * (shape.teacher * 4 + 8)  # float32 features and int64 labels of the other rank
    queues = shape.classes * (20_000 + 2_000) * shape.teacher * 4
    return sum(received.values()), maps, queues
