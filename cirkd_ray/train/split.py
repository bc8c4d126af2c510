"""How a step's batch is split where the number of workers may change while a run goes on.

The global batch stays, and with it the order of the images, the queues and the learning rate. Fewer workers
take it in more micro-batches. A worker's share of one is never larger than with the most workers, so that
its memory does not grow. A number of workers for which there is no such split is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from cirkd_ray.config import RunSpec
from cirkd_ray.config.workers import ElasticSpec, fewest
from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import LOSSES
from cirkd_ray.losses.groups import Group
from cirkd_ray.losses.tasks.base import TASK_LOSSES
from cirkd_ray.train.distiller import term_weight


class Split(NamedTuple):
    """The batch over so many workers: micro-batches a step, and images of a worker in each."""

    workers: int
    accumulate: int
    share: int


@dataclass(frozen=True)
class Splits:
    """Of a run whose workers come and go: the splits that are used, and why other numbers are not.

    Attributes:
        used: by the number of workers, the smallest first.
        unused: reasons by the number of workers.
    """

    batch: int
    used: dict[int, Split]
    unused: dict[int, str]

    def text(self) -> str:
        """The arithmetic."""
        told = "; ".join(
            f"{n} x {split.accumulate} x {split.share}" for n, split in reversed(self.used.items())
        )
        without = "".join(f"; {n} not used: {reason}" for n, reason in self.unused.items())
        return f"{self.batch} images a step as workers x micro-batches x images: {told}{without}"


def splits(spec: RunSpec, *companions: RunSpec) -> Splits:
    """How the batch is split over each number of workers of the range `cluster.workers`.

    The largest number that divides the batch takes the recipe's `train.accumulate`, and its share is the
    largest that any other number may have.

    Args:
        spec: the recipe.
        companions: of a cohort, whose members share batches.

    Raises:
        ConfigError: no number divides the batch.
    """
    wanted, batch, accumulate = spec.cluster.workers, spec.train.batch_size, spec.train.accumulate
    assert isinstance(wanted, ElasticSpec)
    numbers = range(wanted.min, wanted.max + 1)
    most = next((n for n in reversed(numbers) if batch % (n * accumulate) == 0), None)
    if most is None:
        micro = f" in train.accumulate={accumulate} micro-batches" if accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size: {batch} images{micro} divide over none of cluster.workers={wanted.min} to "
            f"{wanted.max}; the batch is global, choose a multiple of {wanted.max * accumulate}"
        )
    largest = Split(most, accumulate, batch // (most * accumulate))
    groups = dict(pair for each in (spec, *companions) for pair in _grouped(each))
    used, unused = {}, {}
    for workers in numbers:
        found = _split(batch, workers, largest, groups)
        if isinstance(found, Split):
            used[workers] = found
        else:
            unused[workers] = found
    return Splits(batch, used, unused)


def for_world(spec: RunSpec, workers: int, *companions: RunSpec) -> RunSpec:
    """The recipe as so many workers train it: where their number may change, with its own micro-batches."""
    if not isinstance(spec.cluster.workers, ElasticSpec):
        return spec
    split = splits(spec, *companions).used.get(workers)
    if split is None:  # a plain process, or torchrun with another number: a run of its own
        return spec
    train = spec.train.model_copy(update={"accumulate": split.accumulate})
    return spec.model_copy(update={"train": train})


def smallest_share(spec: RunSpec) -> int:
    """Images of a worker in a micro-batch, by the recipe alone: at least that many."""
    parts = spec.train.accumulate
    if isinstance(spec.cluster.workers, ElasticSpec):
        return min(split.share for split in splits(spec).used.values())
    return max(1, spec.train.batch_size // parts // fewest(spec.cluster.workers))


def _split(batch: int, workers: int, largest: Split, groups: dict[str, Group]) -> Split | str:
    """The split over so many workers with the largest share that is allowed, or why there is none."""
    if batch % workers:
        return f"{batch} / {workers} is no whole number"
    mine = batch // workers
    reason = f"{mine} images a worker divide into no shares of 2 to {largest.share}"
    for share in range(min(largest.share, mine), 0, -1):
        if mine % share or (share == 1 and largest.share > 1):  # one image leaves BatchNorm too little
            continue
        split = Split(workers, mine // share, share)
        apart = next((name for name, group in groups.items() if not _holds(split, largest, group)), None)
        if apart is None:
            return split
        reason = f"micro-batches of {workers} x {share} would part what {apart} compares ({groups[apart]})"
    return reason


def _holds(split: Split, largest: Split, group: Group) -> bool:
    """Whether images that are compared stay the same as with the most workers."""
    if group == "rank":
        return split.share == largest.share
    if group == "batch" or split.accumulate == largest.accumulate:
        return split.accumulate == largest.accumulate
    return all(each.workers * each.share % int(group) == 0 for each in (split, largest))


def _grouped(spec: RunSpec) -> Iterator[tuple[str, Group]]:
    """Which images the losses compare, by the path of the loss."""
    for name, item in spec.distill.losses.items() if spec.distill else ():
        if item is None:
            continue
        cls = LOSSES.get(item.kind)
        active = frozenset(term for term in cls.terms if term_weight(item, term) > 0)
        group = cls.together(active, item.settings) if active else 1
        if group != 1:
            yield f"distill.losses.{name}", group
    for name, task in spec.task.losses.items():
        if task is not None and task.weight > 0 and TASK_LOSSES.get(task.kind).of_micro_batch:
            yield f"task.losses.{name}", "batch"
