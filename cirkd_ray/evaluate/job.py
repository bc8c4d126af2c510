"""An evaluation as plain values that can travel, and the object that does it or a share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cirkd_ray.data.build import build_dataset
from cirkd_ray.data.facts import judge
from cirkd_ray.data.scale import range_warning
from cirkd_ray.data.tally import Tally
from cirkd_ray.device import local_device
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate.bootstrap import per_image_miou
from cirkd_ray.evaluate.evaluation import EvaluationResult, evaluate
from cirkd_ray.evaluate.inference import ONE_VIEW, Views
from cirkd_ray.evaluate.pictures import Picture, take_pictures
from cirkd_ray.weights.open import chosen_precision, open_network


@dataclass(frozen=True)
class EvaluationJob:
    """What is evaluated on what, and how.

    Attributes:
        model: a run's folder, `model.json`, or a weights file.
        network: the network's name, for a weights file that does not say (an official checkpoint).
        data, split, root, settings: the data set; see `build_dataset`.
        device: "auto", "cpu" or "cuda".
        precision: "run" (that of the run's validation), "auto", "fp32", "bf16" or "fp16".
        batch_size, workers, limit, boundary, views: see `evaluate`.
    """

    model: str
    data: str
    split: str = "val"
    root: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    network: str | None = None
    device: str = "auto"
    precision: str = "run"
    batch_size: int = 1
    workers: int = 0
    limit: int | None = None
    boundary: bool = False
    views: Views = ONE_VIEW


@dataclass(frozen=True)
class Subject:
    """Facts about an evaluation that its report names.

    Attributes:
        network: the network's name.
        parameters: their number.
        images: how many images will be counted.
        device: where it runs.
        precision: of the arithmetic.
        warnings: what the user should know.
    """

    network: str
    parameters: int
    images: int
    device: str
    precision: str
    warnings: tuple[str, ...] = ()


class Evaluator:
    """Loads the network and the data set of a job once; evaluates shares of it.

    Raises:
        UserError: the model, the data set or a setting is wrong.
    """

    def __init__(self, job: EvaluationJob) -> None:
        self.job = job
        self.device = local_device(job.device)
        self.dataset = build_dataset(job.data, split=job.split, root=job.root, **job.settings)
        if not getattr(self.dataset, "has_labels", True):
            raise ConfigError(
                f"data: the split {job.split!r} of {job.data} has no public labels; "
                "`cirkd predict` writes predictions"
            )
        opened = open_network(job.model, self.dataset.classes, name=job.network, where="--network")
        self.model = opened.model.to(self.device)
        other = range_warning(opened.info.get("range"), self.dataset)
        self._warnings = (*opened.warnings, *other)
        self.precision = chosen_precision(job.precision, opened, self.device)

    @property
    def images(self) -> int:
        """How many images the whole job counts."""
        return len(self.dataset) if self.job.limit is None else min(self.job.limit, len(self.dataset))

    def subject(self) -> Subject:
        """What is evaluated."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return Subject(
            self.model.name, parameters, self.images, str(self.device), self.precision, self._warnings
        )

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

    def findings(self, images: int, pixels: Sequence[int], ignored: int) -> tuple[str, ...]:
        """What is suspicious about the labels: given the pixels of each class in so many images."""
        data = self.dataset
        if not data.needs_root:
            return ()
        counts = np.asarray(pixels, np.int64)
        tally = Tally(data.classes.names, images, counts, counts, ignored)
        found = judge(data, tally, training=False)
        return tuple(f"data, {self.job.split}: {finding.message}" for finding in found)

    def pictures(self, indices: Sequence[int]) -> tuple[Picture, ...]:
        """Those images with their predictions, seen as the job says."""
        return take_pictures(
            self.dataset,
            indices,
            self.model,
            self.model.preprocessing,
            device=self.device,
            precision=self.precision,
            views=self.job.views,
        )


def worst_images(result: EvaluationResult, count: int) -> list[tuple[int, float]]:
    """Index and mean IoU of the worst images, the worst first; those without any label are left out."""
    if result.per_image is None:
        raise ValueError("the evaluation did not keep each image's areas (per_image=True)")
    scores = per_image_miou(result.per_image)
    scores[result.per_image[:, 1].sum(-1) == 0] = np.nan
    order = [int(i) for i in np.argsort(scores, kind="stable") if not np.isnan(scores[i])]
    return [(i, float(scores[i])) for i in order[:count]]
