"""Scores of a network on a data set, over any number of ranks, without padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.loader import Batch, DeviceBatch, eval_loader, to_device
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.evaluate.boundary import BoundaryMatrix
from cirkd_ray.evaluate.inference import ONE_VIEW, Views, inference
from cirkd_ray.evaluate.metrics import ConfusionMatrix, areas
from cirkd_ray.evaluate.pictures import Picture, preprocessing_of, take_pictures
from cirkd_ray.evaluate.scores import PixelScores
from cirkd_ray.types import IGNORE_INDEX, ClassSet, Preprocess, Preprocessing

COUNTS = ("miou_classes", "classes")
"""Scores that are numbers of classes."""


def over_classes(scores: Mapping[str, float]) -> str:
    """`11 of 12 classes`: over how many of the classes the mean IoU of these scores is; empty if unknown."""
    if not all(key in scores for key in COUNTS):
        return ""
    return f"{scores['miou_classes']:.0f} of {scores['classes']:.0f} classes"


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` found.

    Attributes:
        confusion: the counts of all ranks.
        classes: names and palette.
        images: how many images were counted.
        seconds: wall-clock time of the slowest rank, reading the images included.
        pictures: the asked images; empty on ranks other than 0.
        names: the counted images' names, where `per_image` was asked for.
        per_image: images x 3 x K int64, each image's correct, labelled and predicted pixels of each class:
            what all IoUs need of its confusion matrix (see `bootstrap`); None unless asked for.
        boundary: boundary IoU; None unless asked for.
    """

    confusion: ConfusionMatrix
    classes: ClassSet
    images: int
    seconds: float
    pictures: tuple[Picture, ...] = ()
    names: tuple[str, ...] = ()
    per_image: NDArray[np.int64] | None = None
    boundary: BoundaryMatrix | None = None

    @property
    def images_per_second(self) -> float:
        """Of all ranks together."""
        return self.images / max(self.seconds, 1e-9)

    def metrics(self) -> dict[str, float]:
        """All scores as plain numbers in 0..1, per class under `iou/NAME`; absent classes are left out.

        `miou` is the mean over `miou_classes` of the `classes`.
        """
        confusion = self.confusion
        scores = {
            "miou": confusion.miou(),
            "miou_classes": int((~confusion.iou().isnan()).sum()),
            "classes": confusion.num_classes,
            "pixel_accuracy": confusion.pixel_accuracy(),
            "mean_class_accuracy": confusion.mean_class_accuracy(),
            "frequency_weighted_iou": confusion.frequency_weighted_iou(),
        }
        if self.boundary is not None:
            scores["boundary_iou"] = self.boundary.miou()
        per_class = zip(self.classes.names, confusion.iou().tolist(), strict=True)
        return scores | {f"iou/{name}": value for name, value in per_class if value == value}

    def classes_of_image(self, index: int) -> str:
        """`3 of 12 classes`: over how many an image's mean IoU is; only with `per_image`."""
        assert self.per_image is not None
        occurs = self.per_image[index, 1:].sum(0) > 0
        return f"{int(occurs.sum())} of {len(occurs)} classes"

    def cpu(self) -> EvaluationResult:
        """Its counts on the CPU, so that it can be sent to another process; returns self."""
        self.confusion.cpu()
        if self.boundary is not None:
            self.boundary.cpu()
        return self


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    device: torch.device | str,
    preprocessing: Preprocessing | None = None,
    precision: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    batch_size: int = 1,
    limit: int | None = None,
    batches: Iterable[Batch] | None = None,
    pictures: Sequence[int] = (),
    teacher: nn.Module | None = None,
    views: Views = ONE_VIEW,
    boundary: bool = False,
    per_image: bool = False,
    on_images: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Evaluate `model` on the data set; every rank calls it and gets the same scores.

    Rank r takes images r, r + world_size, ...: nothing is padded or counted twice. Where `world_size` is
    above 1 and `torch.distributed` is not initialised, the result is the rank's share (see `merge_results`).

    Args:
        model: returns a `SegmentationOutput`; its modules' modes are the same afterwards.
        preprocessing, precision: how it wants its pixels (default: its attribute); "bf16" or "fp16".
        workers: processes that read images; 0 reads in this one.
        batch_size: images of one size that are run together. Networks round a little differently in batches:
            counts that are equal on any number of ranks to the last pixel need 1.
        limit: only the first so many images of the set.
        batches: a loader by `eval_loader` for the same share, whose processes live on; else one is made.
        pictures: indices of images that rank 0 hands back with their predictions, `teacher`'s as well.
        views, boundary, per_image: how images are seen; also boundary IoU; also keep each image's areas.
        on_images: called after each batch with the number of its images.

    Raises:
        ConfigError: the network scores another number of classes than the data set has, or a bad setting.
        DataError: an unreadable sample, or labels that are no class (found at the end).
    """
    device, total = torch.device(device), _images(dataset, rank, world_size, limit)
    indices = range(total)
    if batches is None:
        batches = eval_loader(dataset, rank, world_size, workers, batch_size=batch_size, indices=indices)
    prepare = Preprocess(preprocessing or preprocessing_of(model)).to(device)
    counts = _Counts(dataset.classes, total, device, boundary, per_image)
    there = joined((to_device(batch, device) for batch in batches), batch_size)
    with inference(model, device=device, precision=precision):
        score = partial(PixelScores, model, prepare)
        seconds = counts.add_all(there, dataset, score, views, on_images)
    if world_size > 1:
        seconds = counts.reduce(seconds)
    same: dict[str, Any] = {"device": device, "precision": precision, "views": views, "teacher": teacher}
    taken = take_pictures(dataset, pictures if rank == 0 else (), model, prepare, **same)
    return counts.result(dataset, total, seconds, taken)


def _images(dataset: SegmentationDataset, rank: int, world_size: int, limit: int | None) -> int:
    """How many images all ranks together evaluate."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: at least one image must be evaluated, got {limit}")
    return min(limit or len(dataset), len(dataset))


def joined(batches: Iterable[DeviceBatch], size: int) -> Iterator[DeviceBatch]:
    """Batches of up to `size` images of one height and width, whatever their order in the set.

    Images wait on the device, as bytes, until enough of their size are there; at most `8 * size` do.
    """
    waiting: dict[torch.Size, list[DeviceBatch]] = {}

    def taken(shape: torch.Size) -> DeviceBatch:
        group = waiting.pop(shape)
        if len(group) == 1:
            return group[0]
        images, labels = torch.cat([b.images for b in group]), torch.cat([b.labels for b in group])
        return DeviceBatch(images, labels, None, torch.cat([b.indices for b in group]))

    def images(shape: torch.Size) -> int:
        return sum(len(batch.indices) for batch in waiting.get(shape, ()))

    for batch in batches:
        shape = batch.images.shape[1:]
        if 0 < images(shape) > size - len(batch.indices):
            yield taken(shape)
        waiting.setdefault(shape, []).append(batch)
        if images(shape) >= size:
            yield taken(shape)
        elif sum(map(images, waiting)) > 8 * size:
            yield taken(max(waiting, key=images))
    for shape in list(waiting):
        yield taken(shape)


class _Counts:
    """Everything that is summed up over images and ranks."""

    def __init__(
        self, classes: ClassSet, total: int, device: torch.device, boundary: bool, per_image: bool
    ) -> None:
        self.classes, self.device = classes, device
        self.confusion = ConfusionMatrix(len(classes), IGNORE_INDEX, device)
        self.boundary = BoundaryMatrix(len(classes), device=device) if boundary else None
        shape = (total, 3, len(classes))
        self.table = torch.zeros(shape, dtype=torch.int64, device=device) if per_image else None

    def add_all(
        self,
        batches: Iterable[DeviceBatch],
        dataset: SegmentationDataset,
        score: Callable[..., PixelScores],
        views: Views,
        on_images: Callable[[int], None] | None,
    ) -> float:
        """Score and count all images; returns the seconds that it took."""
        start = time.perf_counter()
        for batch in batches:
            size, name = (batch.labels.shape[1], batch.labels.shape[2]), dataset.name(int(batch.indices[0]))
            self.add(batch, score(batch.images, views, size, name))
            if on_images is not None:
                on_images(len(batch.indices))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def add(self, batch: DeviceBatch, scores: PixelScores) -> None:
        """Count a batch of images by their class scores."""
        if scores.classes != len(self.classes):
            raise ConfigError(
                f"network: scores {scores.classes} classes, but the data set has {len(self.classes)}; "
                "take a network that was trained on the data set's classes"
            )
        prediction = scores.labels()
        matrices = self.confusion.update(prediction, batch.labels)
        if self.boundary is not None:
            self.boundary.update(prediction, batch.labels)
        if self.table is not None:
            for index, row in zip(batch.indices.tolist(), torch.stack(areas(matrices), dim=1), strict=True):
                self.table[index] = row

    def reduce(self, seconds: float) -> float:
        """Sum over ranks; returns the slowest rank's time."""
        if not (dist.is_available() and dist.is_initialized()):
            return seconds
        self.confusion.reduce()
        if self.boundary is not None:
            self.boundary.reduce()
        if self.table is not None:
            dist.all_reduce(self.table)
        slowest = torch.tensor(seconds, dtype=torch.float64, device=self.confusion.matrix.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    def result(
        self, dataset: SegmentationDataset, total: int, seconds: float, pictures: tuple[Picture, ...]
    ) -> EvaluationResult:
        if invalid := self.confusion.invalid:
            raise DataError(
                f"labels: {invalid} pixels are none of the data set's {len(self.classes)} classes; "
                "check the labels with `cirkd data check`"
            )
        return EvaluationResult(
            confusion=self.confusion,
            classes=self.classes,
            images=total,
            seconds=seconds,
            pictures=pictures,
            names=tuple(dataset.name(i) for i in range(total)) if self.table is not None else (),
            per_image=None if self.table is None else self.table.cpu().numpy(),
            boundary=self.boundary,
        )


def merge_results(shares: Iterable[EvaluationResult], seconds: float) -> EvaluationResult:
    """One result from the disjoint shares of a set, such as evaluations without a process group.

    Args:
        shares: at least one; all with the same settings.
        seconds: how long they took together.
    """
    found = iter(shares)
    first = next(found)
    confusion, boundary = first.confusion, first.boundary
    table = None if first.per_image is None else first.per_image.copy()
    for share in found:
        confusion.merge(share.confusion)
        if boundary is not None and share.boundary is not None:
            boundary.merge(share.boundary)
        if table is not None and share.per_image is not None:
            table += share.per_image
    return replace(first, seconds=seconds, per_image=table)
