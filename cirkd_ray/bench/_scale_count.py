"""What ranks exchange in a step: every collective's kind and bytes, and the buckets of gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cirkd_ray.bench._scale_model import Message
from cirkd_ray.bench._step_build import build
from cirkd_ray.bench._step_build import ranks as pretended
from cirkd_ray.config import RunSpec
from cirkd_ray.train import distributed
from cirkd_ray.train.batchnorm import synchronise_batchnorm
from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.distributed import Exchange, World
from cirkd_ray.train.progress import Mark, mark

OPERATIONS = {
    "all_reduce": ("all_reduce", 0, "tensor"),
    "all_gather_into_tensor": ("all_gather", 1, "input_tensor"),
    "reduce_scatter_tensor": ("reduce_scatter", 1, "input"),
    "all_to_all_single": ("all_to_all", 1, "input"),
}
"""Function of `torch.distributed` -> operation, and where its input stands among the arguments."""
PLACES = {
    "batchnorm": "BatchNorm",
    "queues": "queues",
    "cirkd_channel": "queues",
    "groups": "maps of a group",
    "distributed": "discriminators",
}
"""What an exchange is for, by the file that asks for it."""
FEW = 64
"""Values of an all-reduce that counts something."""


@dataclass
class Exchanges:
    """What this rank exchanges from the last `begin` on.

    Attributes:
        device: the rank's.
        messages: exchanges that were waited for.
        waits: before and after each of them.
        buckets: when a bucket of gradients was full, and the bytes that are sent of it.
        open: whether it counts.
    """

    device: torch.device
    messages: list[Message] = field(default_factory=list)
    waits: list[tuple[Mark, Mark]] = field(default_factory=list)
    buckets: list[tuple[Mark, int]] = field(default_factory=list)
    open: bool = False

    def begin(self) -> None:
        """Forget what was, and count."""
        self.messages, self.waits, self.buckets, self.open = [], [], [], True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block all exchanges of this process pass here."""
        before = {name: getattr(dist, name) for name in OPERATIONS}
        exchanging = distributed.exchanging
        for name, function in before.items():
            setattr(dist, name, self._counting(name, function))
        distributed.exchanging = self.exchanging
        try:
            yield
        finally:
            distributed.exchanging = exchanging
            for name, function in before.items():
                setattr(dist, name, function)

    def exchanging(
        self, distiller: Distiller, world: World, exchange: Exchange, only_count: bool = False
    ) -> DistributedDataParallel:
        """`distributed.exchanging` whose buckets are counted; `only_count`: and not sent."""
        found = _EXCHANGING(distiller, world, replace(exchange, compression="none"))
        send: Callable[..., Any] = bf16_compress_hook if exchange.compression == "bf16" else allreduce_hook
        part = 2 if exchange.compression == "bf16" else 1

        def hook(state: object, bucket: Any) -> torch.futures.Future[Tensor]:
            if self.open:
                self.buckets.append((mark(self.device), bucket.buffer().nbytes // part))
            if only_count:
                done: torch.futures.Future[Tensor] = torch.futures.Future()
                done.set_result(bucket.buffer())
                return done
            sent: torch.futures.Future[Tensor] = send(None, bucket)
            return sent

        hook.__annotations__ = {}  # DDP would compare them
        found.register_comm_hook(None, hook)
        return found

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        operation, place, keyword = OPERATIONS[name]

        def counted(*args: Any, **kwargs: Any) -> Any:
            if not self.open or kwargs.get("async_op"):
                return function(*args, **kwargs)
            given: Tensor = args[place] if len(args) > place else kwargs[keyword]
            ranks = dist.get_world_size(kwargs.get("group"))
            self.messages.append(Message(_kind(operation, given), operation, given.nbytes, ranks))
            begun = mark(self.device)
            found = function(*args, **kwargs)
            self.waits.append((begun, mark(self.device)))
            return found

        return counted


_EXCHANGING = distributed.exchanging


def _kind(operation: str, given: Tensor) -> str:
    """What the exchange is for that is asked for here."""
    if operation == "all_reduce" and given.numel() <= FEW and not given.is_complex() and given.ndim < 2:
        return "counts"
    frame = sys._getframe(2)
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if "cirkd_ray/" in path:
            file = path.rpartition("/")[2].removesuffix(".py")
            if file == "reduce" and name == "backward":
                return "maps of a group"
            if file not in ("reduce", "_scale_count"):
                return PLACES.get(file, file)
        frame = frame.f_back  # type: ignore[assignment]
    return "others"


def counted(spec: RunSpec, number: int, images: int, device: torch.device) -> tuple[list[Message], list[int]]:
    """The exchanges of one step of the first of so many ranks, and the bytes of its buckets; none is sent.

    BatchNorm is synchronised as on GPUs, also where this is counted on a CPU.

    Args:
        spec: the recipe.
        number: ranks.
        images: of a rank and micro-batch.
        device: where the step is done.
    """
    if number == 1:
        return [], []
    found = Exchanges(device)
    with pretended(number, device) as world, found.watching():
        subject = build(spec, world, images)
        step = subject.step
        if device.type == "cpu" and spec.train.sync_batchnorm:
            synchronise_batchnorm(step.distiller, spec.train.batchnorm_ranks or number, world)
        step.trained = found.exchanging(step.distiller, world, Exchange.of(spec), only_count=True)
        batches = [subject.moved()] * spec.train.accumulate
        for number_of_step in range(2):  # the first one's buckets are in another order
            found.begin()
            step(number_of_step, [subject.shared(batch) for batch in batches])
    grouped = spec.train.batchnorm_ranks or number
    messages = [m._replace(ranks=grouped) if m.kind == "BatchNorm" else m for m in found.messages]
    return messages, [size for _, size in found.buckets]


def measured_link(world: World) -> tuple[float, float]:
    """Bytes a second and seconds a hop between ranks, by an all-reduce of few and of many bytes."""

    def seconds(numbers: int, times: int) -> float:
        values = torch.zeros(numbers, device=world.device)
        work = partial(dist.all_reduce, values)
        work()
        from cirkd_ray.device import quickest

        return quickest(lambda: [work() for _ in range(times)], world.device, 5) / times

    hops = 2 * (world.size - 1)
    small, large = seconds(1, 20), seconds(2**22, 1)
    sent = 2 * (world.size - 1) / world.size * 2**24
    return sent / max(large - small, 1e-9), small / hops
