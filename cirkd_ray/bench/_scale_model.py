"""Seconds of a step on so many workers, from the parts of a step on one and the bytes that are exchanged.

The formula is in `docs/scale.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

BLOCK = 5
"""Steps of a turn."""
SAVES = 5
"""Turns from one checkpoint to the next."""
PARTS = ("data", "teacher", "forward", "backward", "communication", "optimiser", "report")
OVERHEAD, STALL, LONG = 0.02, 0.01, 0.1
"""The aims: Ray's part of a step, a checkpoint's part of the time, for steps of so many seconds and more."""


class Link(NamedTuple):
    """What joins two workers: bytes a second in each direction, and seconds that each hop takes besides."""

    bandwidth: float
    latency: float


class Message(NamedTuple):
    """One exchange of a step.

    Attributes:
        kind: what it is for.
        operation: "all_reduce", "all_gather", "reduce_scatter" or "all_to_all".
        size: bytes that a worker gives.
        ranks: workers that take part.
    """

    kind: str
    operation: str
    size: int
    ranks: int


class Bucket(NamedTuple):
    """Gradients that are exchanged while the backward pass goes on.

    Attributes:
        ready: when they are all there, as a part of the backward pass.
        size: bytes that a worker gives.
    """

    ready: float
    size: int


class Prediction(NamedTuple):
    """A step on several workers.

    Attributes:
        seconds: of a step.
        waited: of them, for exchanges that the step stands still for: statistics, counts, keys of queues.
        gradients: seconds that the exchange of gradients takes.
        exposed: of them, those after the backward pass.
        images_per_second: of all workers.
        efficiency: images a second of a worker, beside one that is alone.
    """

    seconds: float
    waited: float
    gradients: float
    exposed: float
    images_per_second: float
    efficiency: float


def traffic(operation: str, size: int, ranks: int) -> float:
    """Bytes that each of `ranks` workers sends where nothing is sent twice (a ring)."""
    share = (ranks - 1) / ranks
    return {"all_reduce": 2 * share, "all_gather": ranks - 1.0}.get(operation, share) * size


def exchange_seconds(operation: str, size: int, ranks: int, link: Link) -> float:
    """Seconds of one exchange: the better of a ring and of a tree, as NCCL chooses.

    A ring sends each byte once and has a hop for every other worker; a tree has few hops and sends whole
    messages, which for reductions is more.
    """
    if ranks < 2:
        return 0.0
    twice = 2 if operation == "all_reduce" else 1
    depth = math.ceil(math.log2(ranks))
    sent = traffic(operation, size, ranks)
    ring = twice * (ranks - 1) * link.latency + sent / link.bandwidth
    whole = max(sent, 2 * size) if operation == "all_reduce" else sent
    tree = twice * depth * link.latency + whole / link.bandwidth
    return min(ring, tree)


def gradient_seconds(
    buckets: Sequence[Bucket], backward: float, ranks: int, link: Link
) -> tuple[float, float]:
    """Seconds that the buckets' exchanges take, one after the other, and those after the backward pass."""
    each = [exchange_seconds("all_reduce", bucket.size, ranks, link) for bucket in buckets]
    end = 0.0
    for bucket, seconds in zip(buckets, each, strict=True):
        end = max(end, bucket.ready * backward) + seconds
    return sum(each), max(0.0, end - backward)


def predict(
    parts: Mapping[str, float],
    messages: Sequence[Message],
    buckets: Sequence[Bucket],
    ranks: int,
    images: int,
    link: Link,
) -> Prediction:
    """A step of `ranks` workers.

    Args:
        parts: seconds of a step of one worker, without exchanges, among them `backward`.
        messages: exchanges that a step of so many workers stands still for.
        buckets: of gradients, in their order.
        ranks: workers.
        images: a worker's in a step.
        link: between workers.
    """
    alone = sum(parts.values())
    waited = sum(exchange_seconds(m.operation, m.size, m.ranks, link) for m in messages)
    gradients, exposed = gradient_seconds(buckets, parts["backward"], ranks, link)
    seconds = alone + waited + exposed
    return Prediction(seconds, waited, gradients, exposed, ranks * images / seconds, alone / seconds)


class Median(NamedTuple):
    """A median, and bounds that hold it in 95 of 100 cases, whatever the distribution."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> Median:
    """Of one value or more; of few, the bounds are the least and the largest."""
    ordered = sorted(values)
    number = len(ordered)
    middle = (ordered[(number - 1) // 2] + ordered[number // 2]) / 2
    first = max(0, math.floor((number - 1.96 * math.sqrt(number)) / 2))
    return Median(middle, ordered[first], ordered[number - 1 - first])
