"""What a run's networks see in some of its validation images: scores, pictures, relations, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cirkd_ray.data.base import Sample, SegmentationDataset, UInt8, spread
from cirkd_ray.data_tools import pictures
from cirkd_ray.evaluate.inference import inference, resize
from cirkd_ray.evaluate.metrics import ConfusionMatrix
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.build import build_datasets, build_teacher
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.types import IGNORE_INDEX, IGNORE_LABEL, ClassSet, SegmentationOutput
from cirkd_ray.weights import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
"""Best and worst images."""
HEIGHT, WIDTH = 200, 320


@dataclass
class Network:
    """A network and what it has shown.

    Attributes:
        model: in evaluation mode.
        counts: over all images.
        labels: image -> the class of every pixel, of the images that are shown.
        embeddings: (class, normalised mean feature) of each class in each image.
    """

    model: SegmentationModel
    counts: ConfusionMatrix
    labels: dict[int, UInt8] = field(default_factory=dict)
    embeddings: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """K x K counts."""
        counts: NDArray[np.int64] = self.counts.matrix.numpy()
        return counts

    @property
    def iou(self) -> NDArray[np.float64]:
        """Of each class; NaN where it does not occur."""
        found: NDArray[np.float64] = self.counts.iou().numpy()
        return found

    @property
    def miou(self) -> float:
        """Their mean."""
        return float(self.counts.miou())


@dataclass(frozen=True)
class Seen:
    """What a report shows.

    Attributes:
        classes: names and palette.
        images: how many were seen.
        networks: `student`, and where they are there `student alone` and `teacher`.
        best, worst: rows of image, truth and what each network sees; None without a labelled image.
        relations, embeddings: figures; None where they have nothing to show.
    """

    classes: ClassSet
    images: int
    networks: Mapping[str, Network]
    best: UInt8 | None
    worst: UInt8 | None
    relations: Figure | None
    embeddings: Figure | None


def look(directory: RunDirectory, images: int, on_images: Callable[[int], None]) -> Seen:
    """Show up to `images` validation images, from the first to the last, to a run's networks.

    Raises:
        UserError: the data or the weights of a network cannot be read.
    """
    val = build_datasets(directory.spec())[1]
    networks = {
        name: Network(model.eval(), ConfusionMatrix(len(val.classes)))
        for name, model in _models(directory, len(val.classes)).items()
    }
    chosen = spread(len(val), images)
    scored = {}
    models = [network.model for network in networks.values()]
    with inference(*models, device=torch.device("cpu")):
        for index in chosen:
            sample = val.load(index)
            for name, network in networks.items():
                score = _show(network, sample, index)
                if name == "student":
                    scored[index] = score
            on_images(1)
    order = sorted((i for i in scored if not np.isnan(scored[i])), key=lambda i: scored[i])
    worst, best = order[:SHOWN], order[::-1][:SHOWN]
    return Seen(
        val.classes,
        len(chosen),
        networks,
        _rows(val, best, networks, scored) if order else None,
        _rows(val, worst, networks, scored) if order else None,
        _relations(val, order, networks) if len(order) > 1 else None,
        _embeddings(val.classes, networks),
    )


def _models(directory: RunDirectory, classes: int) -> dict[str, SegmentationModel]:
    """The run's networks that are there: the teacher last."""
    spec, result = directory.spec(), directory.read_result() or {}
    found = {}
    if block := result.get("baseline"):
        path = (directory.path / block["path"]).resolve()
        if (path / "model.json").is_file():
            found["student alone"] = load_model(path).model
    found["student"] = load_model(directory.path).model
    if spec.teacher is not None:
        weights = spec.teacher.weights
        if spec.teacher.module or (weights and ("://" in weights or Path(weights).exists())):
            found["teacher"] = build_teacher(spec.teacher, classes)
    return found


def _show(network: Network, sample: Sample, index: int) -> float:
    """Count an image, keep what may be shown of it; its mean IoU over its classes."""
    out = _output(network.model, sample)
    truth = torch.from_numpy(sample.label.astype(np.int64)).unsqueeze(0)
    truth = truth.masked_fill(truth == IGNORE_LABEL, IGNORE_INDEX)
    score = float("nan")
    if out.logits.shape[1]:
        labels = resize(out.logits, sample.size, network.model.align_corners).argmax(1)
        own = ConfusionMatrix(network.counts.num_classes)
        own.update(labels, truth)
        network.counts.update(labels, truth)
        network.labels[index] = labels[0].to(torch.uint8).numpy()
        score = float(own.miou()) if bool((truth >= 0).any()) else float("nan")
    feature = _normalized(out)
    small = torch.nn.functional.interpolate(truth[None].float(), feature.shape[1:], mode="nearest")[0, 0]
    for k in torch.unique(small).tolist():
        if k >= 0:
            mean = feature[:, small == k].mean(1)
            network.embeddings.append((int(k), torch.nn.functional.normalize(mean, dim=0).numpy()))
    return score


def _output(model: SegmentationModel, sample: Sample) -> SegmentationOutput:
    pixels = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1).unsqueeze(0)
    found: SegmentationOutput = model(model.preprocessing(pixels))
    return found


def _normalized(out: SegmentationOutput) -> Tensor:
    """C x h x w, of length 1 over channels."""
    return torch.nn.functional.normalize(out.feature[0].float(), dim=0)


def _feature(model: SegmentationModel, sample: Sample) -> Tensor:
    return _normalized(_output(model, sample))


def _rows(
    val: SegmentationDataset,
    chosen: list[int],
    networks: Mapping[str, Network],
    scored: Mapping[int, float],
) -> UInt8:
    """A row an image: image, truth, what each network sees; and a legend."""
    rows, present, captions = [], set[int](), []
    seeing = {name: network for name, network in networks.items() if network.labels}
    for index in chosen:
        sample = val.load(index)
        maps = [sample.label, *(network.labels[index] for network in seeing.values())]
        fitted = [pictures.fit(labels, HEIGHT, WIDTH, labels=True) for labels in maps]
        present |= {int(k) for labels in fitted for k in np.unique(labels)}
        colored = [pictures.colorize(labels, val.classes) for labels in fitted]
        rows.append([pictures.fit(sample.image, HEIGHT, WIDTH), *colored])
        captions.append(f"{sample.name}, {100 * scored[index]:.1f} %")
    body = pictures.grid(rows, ["image", "truth", *seeing], captions)
    return pictures.stack(
        [body, pictures.legend(pictures.class_entries(val.classes, present), body.shape[1])]
    )


def _relations(val: SegmentationDataset, order: list[int], networks: Mapping[str, Network]) -> Figure:
    """Similarity of a pixel of one image to all pixels of another, by network."""
    from matplotlib.figure import Figure

    here, there = order[-1], order[len(order) // 2]
    source, target = val.load(here), val.load(there)
    row, column = _pixel(source.label, target.label)
    figure = Figure(figsize=(3.1 * (2 + len(networks)), 3.0), layout="constrained")
    axes = figure.subplots(1, 2 + len(networks))
    axes[0].imshow(source.image)
    axes[0].plot(column, row, "+", color="red", markersize=16, markeredgewidth=2.5)
    axes[1].imshow(target.image)
    titles = ["the pixel", "another image", *networks]
    for ax, network in zip(axes[2:], networks.values(), strict=True):
        with inference(network.model, device=torch.device("cpu")):
            query, keys = (_feature(network.model, sample) for sample in (source, target))
        y = min(query.shape[1] - 1, row * query.shape[1] // source.size[0])
        x = min(query.shape[2] - 1, column * query.shape[2] // source.size[1])
        cosine = torch.einsum("c,chw->hw", query[:, y, x], keys).numpy()
        ax.imshow(cosine, cmap="magma", extent=(0, target.size[1], target.size[0], 0))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return figure


def _pixel(label: UInt8, other: UInt8) -> tuple[int, int]:
    """The middle of the rarest class that both images show; of the image where they share none."""
    shared = [k for k in np.unique(label) if k != IGNORE_LABEL and (other == k).any()]
    if not shared:
        return label.shape[0] // 2, label.shape[1] // 2
    rarest = min(shared, key=lambda k: int((label == k).sum()))
    places = np.argwhere(label == rarest)
    nearest = places[np.abs(places - places.mean(0)).sum(1).argmin()]
    return int(nearest[0]), int(nearest[1])


def _embeddings(classes: ClassSet, networks: Mapping[str, Network]) -> Figure | None:
    """Class means of each image on two principal components, by network."""
    from matplotlib.figure import Figure

    shown = {name: network for name, network in networks.items() if len(network.embeddings) > 2}
    if not shown:
        return None
    figure = Figure(figsize=(4.4 * len(shown), 4.4), layout="constrained")
    for ax, (name, network) in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown.items(), strict=True):
        vectors = np.stack([vector for _, vector in network.embeddings])
        centred = vectors - vectors.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        points = centred @ axes[:2].T
        kinds = np.array([k for k, _ in network.embeddings])
        for k in np.unique(kinds):
            color = tuple(value / 255 for value in classes.palette[k])
            mine = points[kinds == k]
            ax.scatter(mine[:, 0], mine[:, 1], s=12, color=[color], edgecolors="0.3", linewidths=0.3)
            ax.annotate(classes.names[k], mine.mean(0), fontsize=7, ha="center")
        ax.set_title(name, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    return figure
