"""Scores of a segmentation, all from one confusion matrix that stays on the device until it is read."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch import distributed as dist

from cirkd_ray.types import IGNORE_INDEX

Absent = Literal["skip", "zero"]

_SPREAD_BINS = 1 << 16
"""Histogram cells that one update may use on an accelerator to keep threads from adding to the same cell."""


class ConfusionMatrix:
    """Counts of (true class, predicted class) pairs over any number of images.

    The counts are int64, so they are exact for any set and do not depend on batches, order or ranks. `update`
    never waits for the device; every method that returns a number does.

    Args:
        num_classes: K, the number of classes.
        ignore_index: the label of pixels that do not count.
        device: where the counts are kept; by default, the device of the first update.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = IGNORE_INDEX, device: torch.device | str | None = None
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"a confusion matrix needs at least one class, got {num_classes}")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is one of the {num_classes} classes")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._fixed = device is not None
        self._counts = torch.zeros(num_classes * num_classes + 2, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Count a batch.

        Args:
            prediction: N x H x W integers, the predicted classes.
            labels: N x H x W integers, the true classes, or `ignore_index`.

        Returns:
            N x K x K int64, the counts of each image: a view of what was added, for per-image statistics.

        Raises:
            ValueError: the shapes differ or are not N x H x W.
            TypeError: one of them is not of an integer type.
        """
        _check(prediction, labels)
        counts = count_pairs(prediction, labels, self.num_classes, self.ignore_index)
        if not self._fixed:
            self._counts, self._fixed = self._counts.to(counts.device), True
        self._counts += counts.sum(0).to(self._counts.device)
        return counts[:, :-2].view(-1, self.num_classes, self.num_classes)

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add another matrix's counts to this one; returns self."""
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"cannot merge a matrix of {other.num_classes} classes into one of {self.num_classes}"
            )
        self._counts += other._counts.to(self._counts.device)
        return self

    def reduce(self) -> ConfusionMatrix:
        """Sum over all ranks, in place, where `torch.distributed` is initialised; returns self.

        Call it once, when all updates are done. With NCCL the matrix must be on the rank's GPU.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._counts, op=dist.ReduceOp.SUM)
        return self

    def cpu(self) -> ConfusionMatrix:
        """Move the counts to the CPU; returns self."""
        self._counts = self._counts.cpu()
        return self

    def reset(self) -> None:
        """Forget all counts."""
        self._counts.zero_()

    @property
    def matrix(self) -> Tensor:
        """K x K int64 counts on the device: row = true class, column = predicted class."""
        return self._counts[:-2].view(self.num_classes, self.num_classes)

    @property
    def ignored(self) -> int:
        """Number of pixels whose label was `ignore_index`."""
        return int(self._counts[-2])

    @property
    def invalid(self) -> int:
        """Number of pixels whose label or prediction is no class: left out of all scores.

        More than 0 means that the labels, or the number of classes, are wrong.
        """
        return int(self._counts[-1])

    def iou(self) -> Tensor:
        """K float64 intersections over unions, on the CPU; NaN for a class in no label and no prediction."""
        return iou_from_areas(*areas(self.matrix.cpu()))

    def miou(self, absent: Absent = "skip") -> float:
        """Mean intersection over union.

        Args:
            absent: what a class does that is in no label and no prediction: "skip" leaves it out of the mean;
                "zero" counts it as IoU 0, as the reference does (on COCO-Stuff at most 94 % can be reached
                so).

        Returns:
            A number in 0..1, or NaN where nothing was counted (with "skip").
        """
        if absent not in ("skip", "zero"):
            raise ValueError(f"absent must be 'skip' or 'zero', got {absent!r}")
        iou = self.iou()
        return float(iou.nan_to_num(0.0).mean() if absent == "zero" else iou.nanmean())

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class is right; NaN where nothing was counted."""
        matrix = self.matrix.cpu().double()
        return float(matrix.diagonal().sum() / matrix.sum())

    def class_accuracy(self) -> Tensor:
        """K float64 shares of each class's pixels that are right, on the CPU; NaN for unlabelled classes."""
        matrix = self.matrix.cpu().double()
        return matrix.diagonal() / matrix.sum(1)

    def mean_class_accuracy(self) -> float:
        """Mean of `class_accuracy` over the classes that are in the labels."""
        return float(self.class_accuracy().nanmean())

    def frequency_weighted_iou(self) -> float:
        """IoUs weighted by the classes' shares of the labelled pixels (Long et al., CVPR 2015)."""
        frequency = self.matrix.cpu().double().sum(1)
        return float((frequency * self.iou().nan_to_num(0.0)).sum() / frequency.sum())


def areas(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ... x K x K counts: correct, labelled and predicted pixels of each class, ... x K each."""
    return matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)


def iou_from_areas(correct: Tensor, labelled: Tensor, predicted: Tensor) -> Tensor:
    """float64 intersection over union; NaN where a class is in neither."""
    return correct.double() / (labelled + predicted - correct).double()


def count_pairs(prediction: Tensor, labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the (label, prediction) pairs of each image without waiting for the device.

    Args:
        prediction: N x H x W integers.
        labels: N x H x W integers.
        num_classes: K.
        ignore_index: the label that does not count.

    Returns:
        N x (K*K + 2) int64: cell `label * K + prediction`, then the ignored pixels, then those of no class.
    """
    images, cells = labels.shape[0], num_classes * num_classes + 2
    prediction, labels = prediction.to(labels.device).flatten(1).long(), labels.flatten(1).long()
    # `where`, not indexing by a mask, which would need the host.
    classes = (labels >= 0) & (labels < num_classes) & (prediction >= 0) & (prediction < num_classes)
    pair = torch.where(classes, labels * num_classes + prediction, cells - 1)
    pair = torch.where(labels == ignore_index, cells - 2, pair)
    if pair.device.type == "cpu":
        offset = torch.arange(images).unsqueeze(1) * cells
        return torch.bincount((pair + offset).flatten(), minlength=images * cells).view(images, cells)
    return _histogram(pair, cells)


def _histogram(pair: Tensor, cells: int) -> Tensor:
    """Row-wise histogram of N x P values in 0..cells-1 on an accelerator: N x cells int64.

    `torch.bincount` waits for the largest value there, hence atomic additions. A few cells (road on road)
    take most pixels, so each row is counted into several copies of the histogram, chosen by position, and
    these are summed.
    """
    images, pixels = pair.shape
    copies = max(1, min(64, _SPREAD_BINS // (images * cells), pixels))
    copy = torch.arange(pixels, device=pair.device) % copies
    row = torch.arange(images, device=pair.device).unsqueeze(1)
    # One dimension, because only there has scatter_add_ a deterministic form that needs no host.
    index = ((row * copies + copy) * cells + pair).flatten()
    counts = torch.zeros(images * copies * cells, dtype=torch.int32, device=pair.device)
    counts.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))
    return counts.view(images, copies, cells).sum(1)


def _check(prediction: Tensor, labels: Tensor) -> None:
    if prediction.shape != labels.shape or labels.dim() != 3:
        shapes = f"{tuple(prediction.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"prediction and labels must both be N x H x W, got {shapes}")
    for name, value in (("prediction", prediction), ("labels", labels)):
        if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
            raise TypeError(f"{name} must hold integers, got {value.dtype}")
