"""The whole batch of a step on one rank, of which a loss sees one micro-batch at a time.

Means run over the global batch of the step, and queues take the vectors of all its images before keys are
drawn. Both depend on labels and teacher alone, which are there before the student's first micro-batch. So a
step's values do not depend on how many micro-batches its batch is split into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.reduce import global_scale
from cirkd_ray.types import IGNORE_INDEX, SegmentationOutput

Size = tuple[int, int]
Derive = Callable[..., Tensor]


def resize_labels(labels: Tensor, size: Size) -> Tensor:
    """Labels (N x H x W int64) at map size, by nearest neighbour."""
    if labels.shape[-2:] == size:
        return labels
    return (
        F.interpolate(labels.unsqueeze(1).to(torch.float32), size=size, mode="nearest")
        .squeeze(1)
        .to(torch.int64)
    )


class WholeStep:
    """What the losses of a step may know of all its micro-batches on this rank, each made once.

    Args:
        labels: N x H x W of each, by its number; all of one shape.
        taught: gives the teacher's maps of a micro-batch.
        ignore_index: the label of pixels that do not count.
    """

    def __init__(
        self,
        labels: Mapping[int, Tensor],
        taught: Callable[[int], SegmentationOutput] | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        self.labels, self._taught, self.ignore_index = labels, taught, ignore_index
        self._resized: dict[tuple[int, Size], tuple[Tensor, Tensor]] = {}
        self._derived: dict[tuple[object, ...], Tensor] = {}
        self._scales: dict[tuple[object, ...], Tensor] = {}

    @property
    def first(self) -> int:
        """The number of the first micro-batch."""
        return next(iter(self.labels))

    @property
    def sizes(self) -> list[Size]:
        """At which the labels were looked at."""
        return [*dict.fromkeys(size for _, size in self._resized)]

    def taught(self, micro: int) -> SegmentationOutput:
        """The teacher's maps of a micro-batch."""
        assert self._taught is not None
        return self._taught(micro)

    def at(self, micro: int, size: Size) -> tuple[Tensor, Tensor]:
        """A micro-batch's labels at the size of a map, and which of them count."""
        if (micro, size) not in self._resized:
            labels = resize_labels(self.labels[micro], size)
            self._resized[micro, size] = labels, labels != self.ignore_index
        return self._resized[micro, size]

    def mask(self, micro: int, size: Size, *how: object) -> Tensor:
        """Which pixels count, or `derive(mask, *arguments)` of that where `how` is (derive, *arguments).

        Args:
            how: the function is one of a module or an object, not a lambda, which would be another each time.
        """
        if not how:
            return self.at(micro, size)[1]
        key = (micro, size, *how)
        if key not in self._derived:
            derive, *arguments = how
            assert callable(derive)
            self._derived[key] = derive(self.at(micro, size)[1], *arguments)
        return self._derived[key]

    def scale(self, size: Size, *how: object, count: Derive = torch.sum) -> Tensor:
        """`world / counted pixels` of the whole batch, times the micro-batches: it turns a micro-batch's sum
        into its part of the global mean, of which micro-batches and ranks are averaged.

        Args:
            size: of the map whose pixels count.
            how: as of `mask`.
            count: how many terms a mask stands for.
        """
        key = (size, count, *how)
        if key not in self._scales:
            (self._scales[key],) = self._scaled([[count(self.mask(m, size, *how)) for m in self.labels]])
        return self._scales[key]

    def count(self, sizes: Iterable[Size]) -> None:
        """`scale` of the labels at these sizes, in one message."""
        sizes = [*sizes]
        counts = [[self.mask(micro, size).sum() for micro in self.labels] for size in sizes]
        for size, scale in zip(sizes, self._scaled(counts), strict=True):
            self._scales[size, torch.sum] = scale

    def _scaled(self, counts: list[list[Tensor]]) -> list[Tensor]:
        """`scale` from the counts of each micro-batch, of one mask or several."""
        parts = len(self.labels)
        sums = [each[0] if parts == 1 else torch.stack(each).sum(0) for each in counts]
        scales = global_scale(sums[0] if len(sums) == 1 else torch.stack(sums))
        scales = scales if parts == 1 else scales * parts
        return [scales] if len(sums) == 1 else [*scales.unbind()]
