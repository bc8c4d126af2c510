"""An evaluation as plain values that can travel, and the object that does it or a share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.build import build_dataset
from cirkd_ray.device import choose_precision, local_device
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.bootstrap import per_image_miou
from cirkd_ray.evaluate.inference import Views
from cirkd_ray.evaluate.preview import Picture, Preview
from cirkd_ray.evaluate.scoring import EvaluationResult, evaluate
from cirkd_ray.models import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.weights import load_model
from cirkd_ray.weights.card import find_card
from cirkd_ray.weights.classes import compare_classes
from cirkd_ray.weights.loading import load_weights, require_whole
from cirkd_ray.weights.package import require_description


@dataclass(frozen=True)
class EvaluationJob:
    """What is evaluated on what, and how.

    Attributes:
        model: a run's folder, `model.json`, or a weights file.
        network: the network's name, for a weights file that does not say (an official checkpoint).
        data, split, root, settings: the data set; see `build_dataset`.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "fp16".
        batch_size, workers, limit, boundary, views: see `evaluate`.
    """

    model: str
    data: str
    split: str = "val"
    root: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    network: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 1
    workers: int = 0
    limit: int | None = None
    boundary: bool = False
    views: Views = field(default_factory=Views)


@dataclass(frozen=True)
class Subject:
    """Facts about an evaluation that its report names.

    Attributes:
        network: the network's name.
        parameters: their number.
        images: how many images will be counted.
        device: where it runs.
        warnings: what the user should know.
    """

    network: str
    parameters: int
    images: int
    device: str
    warnings: tuple[str, ...] = ()


class Evaluator:
    """Loads the network and the data set of a job once; evaluates shares of it.

    Raises:
        UserError: the model, the data set or a setting is wrong.
    """

    def __init__(self, job: EvaluationJob) -> None:
        self.job = job
        self.device = local_device(job.device)
        self.precision = choose_precision(job.precision, self.device)
        self.dataset = build_dataset(job.data, split=job.split, root=job.root, **job.settings)
        if not getattr(self.dataset, "has_labels", True):
            raise ConfigError(
                f"data: the split {job.split!r} of {job.data} has no public labels; "
                "`cirkd predict` writes predictions"
            )
        model, self._warnings = load_network(job.model, job.network, self.dataset)
        self.model = model.to(self.device)

    @property
    def images(self) -> int:
        """How many images the whole job counts."""
        return len(self.dataset) if self.job.limit is None else min(self.job.limit, len(self.dataset))

    def subject(self) -> Subject:
        """What is evaluated."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return Subject(self.model.name, parameters, self.images, str(self.device), self._warnings)

    def evaluate(
        self, rank: int = 0, world_size: int = 1, on_images: Callable[[int], None] | None = None
    ) -> EvaluationResult:
        """Images rank, rank + world_size, ... of the job, with each image's areas; counts are on the CPU."""
        job = self.job
        result = evaluate(
            self.model,
            self.dataset,
            device=self.device,
            precision=self.precision,
            rank=rank,
            world_size=world_size,
            workers=job.workers,
            batch_size=job.batch_size,
            limit=job.limit,
            views=job.views,
            boundary=job.boundary,
            per_image=True,
            on_images=on_images,
        )
        return result.cpu()

    def pictures(self, indices: Sequence[int]) -> tuple[Picture, ...]:
        """Those images with their predictions, seen as the job says."""
        model, views = self.model, self.job.views
        return Preview(model, model.preprocessing, self.device, self.precision, views).pictures(
            self.dataset, indices
        )


def load_network(
    path: str, network: str | None, dataset: SegmentationDataset
) -> tuple[SegmentationModel, tuple[str, ...]]:
    """A trained network for that data set, and what to warn of.

    Args:
        path: see `EvaluationJob.model`.
        network: the name of the network that a bare weights file belongs to; of one with a `model.json`,
            what it must say.
        dataset: its classes must be the network's.

    Raises:
        ConfigError: the network has another number of classes, or the same in another order, or it is not
            the one that is named.
        WeightsError: the weights cannot be read, do not fit, or are those of a backbone.
    """
    classes = dataset.classes
    if network is not None and find_card(path) is None:
        model = build_model(network, num_classes=len(classes))
        require_whole(load_weights(model, path), "--network")
        return model, ()
    loaded = load_model(path)
    if network is not None:
        require_description(loaded, path, network, where="--network")
    if len(loaded.classes) != len(classes):
        raise ConfigError(
            f"{path}: scores {len(loaded.classes)} classes, but the data set has {len(classes)}; "
            "evaluate it on the data set that it was trained for (--data)"
        )
    return loaded.model, compare_classes(path, loaded.classes, classes)


def worst_images(result: EvaluationResult, count: int) -> list[tuple[int, float]]:
    """Index and mean IoU of the worst images, the worst first; those without any label are left out."""
    if result.per_image is None:
        raise ValueError("the evaluation did not keep each image's areas (per_image=True)")
    scores = per_image_miou(result.per_image)
    scores[result.per_image[:, 1].sum(-1) == 0] = np.nan
    order = [int(i) for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]
    return [(i, float(scores[i])) for i in order[:count]]


def is_run(path: str | Path) -> bool:
    """Whether that is the folder of a run."""
    return (Path(path) / "run.yaml").is_file()
