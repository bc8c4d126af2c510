"""Label maps of images that have no labels: files, folders, or a test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.codec import EXTENSIONS, read_image, shown
from cirkd_ray.data.header import read_header, upright
from cirkd_ray.data.scale import measured_range, range_warning
from cirkd_ray.data.storage import LocalStorage
from cirkd_ray.device import local_device
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.evaluate.inference import ONE_VIEW, Views, channel_last, inference
from cirkd_ray.evaluate.scores import label_map
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import ClassSet
from cirkd_ray.weights import load_model
from cirkd_ray.weights.open import chosen_precision, open_network

UInt8 = NDArray[np.uint8]

_TRIED = (".jp2", ".j2k", ".avif", ".heic", ".heif", ".jxl", ".exr", ".hdr", ".tga", ".psd")
_RAW = (".dng", ".nef", ".cr2", ".arw")
"""Of further images: those that OpenCV may know, and those of whose pictures it might take the preview."""


class ImageToPredict(NamedTuple):
    """An image to predict: a name for the results, without suffix, and the image or why it cannot be read."""

    name: str
    image: UInt8 | None
    error: str = ""


class Prediction(NamedTuple):
    """An image and its predicted classes: H x W x 3 and H x W, uint8."""

    name: str
    image: UInt8
    labels: UInt8


@dataclass(frozen=True)
class Predictor:
    """A network that turns images into label maps.

    Attributes:
        model: on the device.
        classes: names and palette of its classes.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16".
        views: scales, flip and windows.
        warnings: what the user should know.
        span: the range of values of more than 8 bits that the network was trained on, if it was declared.
    """

    model: SegmentationModel
    classes: ClassSet
    device: torch.device
    precision: str = "fp32"
    views: Views = ONE_VIEW
    warnings: tuple[str, ...] = ()
    span: tuple[float, float] | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        network: str | None = None,
        dataset: SegmentationDataset | None = None,
        device: str = "auto",
        precision: str = "run",
        views: Views = ONE_VIEW,
    ) -> Predictor:
        """The predictor of a run's folder, an exported model, or a weights file.

        Args:
            path: the model.
            network: the name of the network that a bare weights file belongs to; its classes are the data
                set's.
            dataset: what is predicted, where that is a data set: its classes must be the network's.
            device, precision, views: see the class; the device may be "auto", the precision also "run" or
                "auto".

        Raises:
            WeightsError: there is no network, or it cannot be read.
            ConfigError: the device or the precision is not to be had, or the classes differ.
        """
        chosen = local_device(device)
        if dataset is not None:
            opened = open_network(path, dataset.classes, name=network, where="--network")
        elif network is not None:
            raise ConfigError(
                "--network: name the data set as well (--data), whose classes the weights are for"
            )
        else:
            opened = load_model(path)
        classes = opened.classes if dataset is None else dataset.classes
        arithmetic = chosen_precision(precision, opened, chosen)
        low_high = opened.info.get("range")
        span = (float(low_high[0]), float(low_high[1])) if low_high else None
        channel_last(opened.model)  # here, so that `inference` need not do it for every image
        other = () if dataset is None else range_warning(span, dataset)
        warnings = (*opened.warnings, *other)
        return cls(opened.model.to(chosen), classes, chosen, arithmetic, views, warnings, span)

    def labels(self, image: UInt8, name: str = "image") -> UInt8:
        """Classes of an image's pixels.

        Args:
            image: H x W x 3 uint8, RGB.
            name: what messages call it.

        Returns:
            H x W uint8 class indices.
        """
        with inference(self.model, device=self.device, precision=self.precision):
            return label_map(self.model, self.model.preprocessing, image, self.device, self.views, name=name)

    def predict(self, sources: Iterable[ImageToPredict], failures: list[str]) -> Iterator[Prediction]:
        """Predict one image after the other; what cannot be read is named in `failures`."""
        for source in sources:
            if source.image is None:
                failures.append(source.error)
            else:
                yield Prediction(source.name, source.image, self.labels(source.image, source.name))


def find_images(inputs: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """Image files with unique names for their results.

    Args:
        inputs: files, or folders that are searched with their subfolders. Images of formats that are not read
            are among them, so that none is left out without a word; hidden files are not.

    Returns:
        (file, name) in order; a name is the path below the given folder without suffix. Where files differ in
        the suffix alone, or stand in several of the inputs under one name, a number is added.

    Raises:
        DataError: an input does not exist, or there is no image at all.
    """
    found: list[tuple[Path, str]] = []
    searched = {*EXTENSIONS, *_TRIED, *_RAW}
    for given in map(Path, inputs):
        if given.is_dir():
            files = sorted(p for p in given.rglob("[!.]*") if p.suffix.lower() in searched and p.is_file())
            found += [(file, file.relative_to(given).with_suffix("").as_posix()) for file in files]
        elif given.is_file():
            found.append((given, given.stem))
        else:
            raise DataError(f"{given}: no such file or folder")
    if not found:
        places = ", ".join(map(str, inputs))
        raise DataError(f"{places}: no images here (looked for {', '.join(EXTENSIONS)})")
    unique: dict[str, Path] = {}
    for file, name in found:
        free, number = name, 2
        while free in unique:
            free, number = f"{name}-{number}", number + 1
        unique[free] = file
    return [(file, name) for name, file in unique.items()]


@dataclass
class Reading:
    """How image files are read, beside what training does.

    Attributes:
        span: the range of values of more than 8 bits, see `decode_image`.
        upright: turn the pixels where the camera noted how it was held; training never does.
        changes: what reading changed -> in how many images.
        measured: what is to be said of a span that was measured.
    """

    span: tuple[float, float] | None = None
    upright: bool = False
    changes: Counter[str] = field(default_factory=Counter)
    measured: str = ""

    def read(self, content: bytes, where: str) -> UInt8:
        """The pixels of a file."""
        image, changes, _ = read_image(content, where, self.span)
        self.changes.update(changes)
        header = read_header(content)
        if header is None or header.orientation == 1:
            return image
        if self.upright:
            return upright(image, header.orientation)
        self.changes["an orientation tag, which is not applied (--upright turns such images)"] += 1
        return image

    def measure(self, files: Iterable[Path]) -> None:
        """Take one range for all files, where none is known and they have more than 8 bits."""
        paths = [str(path.absolute()).lstrip("/") for path in files]
        span = None
        if self.span is None:
            with suppress(DataError):  # told of each file, which is skipped
                span = measured_range(LocalStorage("/"), paths, lambda: paths)
        if span is not None:
            self.span = span
            self.measured = f"values of more than 8 bits are scaled from {shown(span)}, as measured"

    def told(self) -> list[str]:
        """The changes, a sentence each."""
        measured = [f"{self.measured} on these files (--range LOW HIGH sets it)"] if self.measured else []
        found = [f"{n} image{'s have' if n > 1 else ' has'} {what}" for what, n in self.changes.items()]
        return measured + found


def read_files(files: Iterable[tuple[Path, str]], reading: Reading | None = None) -> Iterator[ImageToPredict]:
    """The images of `find_images`, one at a time, read as in training where `reading` says nothing else."""
    reading = Reading() if reading is None else reading
    for path, name in files:
        if path.suffix.lower() in _RAW:
            yield ImageToPredict(name, None, f"{path}: a format that is not read; save it as PNG or JPEG")
            continue
        try:
            yield ImageToPredict(name, reading.read(path.read_bytes(), str(path)))
        except OSError as error:
            yield ImageToPredict(name, None, f"{path}: cannot be read ({error.strerror})")
        except DataError as error:
            yield ImageToPredict(name, None, str(error))


def read_dataset(dataset: SegmentationDataset, limit: int | None = None) -> Iterator[ImageToPredict]:
    """The images of a split, named by their samples."""
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        name = Path(dataset.name(index)).with_suffix("").as_posix()
        try:
            yield ImageToPredict(name, dataset.load(index).image)
        except DataError as error:
            yield ImageToPredict(name, None, str(error))
