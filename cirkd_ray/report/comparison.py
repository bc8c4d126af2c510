"""A picture of what distillation changed: image, truth, student alone, student distilled, teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cirkd_ray.data.base import SegmentationDataset, UInt8
from cirkd_ray.data_tools import pictures
from cirkd_ray.evaluate.pictures import preprocessing_of, take_pictures
from cirkd_ray.train.build import build_datasets, build_teacher
from cirkd_ray.train.stages import Outcome
from cirkd_ray.weights import load_model

PICTURE = "comparison.png"
HEIGHT, WIDTH = 256, 384
"""Largest size of each part, and the size that smaller ones are enlarged to."""


def write_comparison(outcome: Outcome, count: int = 5) -> Path | None:
    """Write `comparison.png` into the run's folder.

    Args:
        outcome: of the run.
        count: validation images, spread over the split.

    Returns:
        The file; None for a run without a baseline, which has nothing to compare.
    """
    if outcome.baseline is None:
        return None
    spec = outcome.directory.spec()
    val = build_datasets(spec)[1]
    networks: dict[str, nn.Module] = {
        "student alone": load_model(outcome.baseline.path).model,
        "student distilled": load_model(outcome.directory.path).model,
    }
    if outcome.teacher is not None:
        networks["teacher"] = load_model(outcome.teacher.path).model
    elif spec.teacher is not None:
        networks["teacher"] = build_teacher(spec.teacher, len(val.classes))
    shown = [(2 * n + 1) * len(val) // (2 * count) for n in range(min(count, len(val)))]
    path = outcome.directory.path / PICTURE
    pictures.save_picture(path, comparison(val, shown, networks))
    return path


def comparison(
    dataset: SegmentationDataset, indices: Sequence[int], networks: Mapping[str, nn.Module]
) -> UInt8:
    """A row per image: image | truth | what each network sees, and a legend of the classes seen.

    Args:
        dataset: the images.
        indices: which of them.
        networks: by the name of their column.
    """
    cpu = torch.device("cpu")
    seen = [
        take_pictures(dataset, indices, network, preprocessing_of(network), device=cpu)
        for network in networks.values()
    ]
    rows, present = [], set()
    for same in zip(*seen, strict=True):
        maps = [same[0].truth, *(picture.student for picture in same)]
        present |= {int(k) for labels in maps for k in np.unique(labels)}
        colored = [pictures.colorize(labels, dataset.classes) for labels in maps]
        rows.append([_fitted(same[0].image), *(_fitted(labels, labels=True) for labels in colored)])
    body = pictures.grid(rows, ["image", "truth", *networks], [picture.name for picture in seen[0]])
    entries = pictures.class_entries(dataset.classes, present)
    return pictures.stack([body, pictures.legend(entries, body.shape[1])])


def _fitted(picture: UInt8, labels: bool = False) -> UInt8:
    return pictures.fit(picture, HEIGHT, WIDTH, labels=labels, enlarge=True)
