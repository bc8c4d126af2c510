"""Predictions in the form of the Cityscapes test server, and a check of them before they are sent.

The server wants one 8-bit gray PNG of 2048 x 1024 label ids (not train ids) an image, whose name holds the
image's CITY_SEQUENCE_FRAME, packed into one zip file.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.cityscapes import LABEL_IDS, Cityscapes
from cirkd_ray.data.codec import opencv_decode
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.files import partial_name

UInt8 = NDArray[np.uint8]

SIZE = (1024, 2048)
_KEY = re.compile(r"[a-z-]+_\d{6}_\d{6}")
_STAMP = (1980, 1, 1, 0, 0, 0)
_SHOWN = 5


class Submission:
    """A zip file that is filled image by image and takes its name when it is whole; a context manager.

    Args:
        path: the zip file; replaced where it exists, deleted where the filling fails.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._partial = partial_name(self.path)
        self._names: set[str] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED)
        except OSError as error:
            raise ConfigError(f"--submission: {path} cannot be written ({error.strerror})") from None

    def __enter__(self) -> Submission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)  # of an earlier call: it must not pass for this one's

    def add(self, name: str, labels: UInt8) -> None:
        """Add a prediction.

        Args:
            name: the image's name or path, with its CITY_SEQUENCE_FRAME.
            labels: H x W train ids, 0..18.

        Raises:
            DataError: the name is no Cityscapes name, or came before.
            ValueError: a label is no train id.
        """
        key = image_key(name)
        if key in self._names:
            raise DataError(f"{name}: a second prediction for {key}")
        if labels.size and int(labels.max()) >= len(LABEL_IDS):
            raise ValueError(f"label {int(labels.max())} is none of the {len(LABEL_IDS)} train ids")
        self._names.add(key)
        stored = np.array(LABEL_IDS, dtype=np.uint8)[labels]
        whole, png = cv2.imencode(".png", stored)
        if not whole:
            raise DataError(f"{name}: the prediction cannot be encoded")
        try:
            self._zip.writestr(zipfile.ZipInfo(f"{key}_pred_labelIds.png", _STAMP), png.tobytes())
        except OSError as error:
            raise ConfigError(f"--submission: {self.path} cannot be written ({error.strerror})") from None


def image_key(name: str) -> str:
    """`berlin_000000_000019` of any path or name that holds it in its last part.

    Raises:
        DataError: there is none.
    """
    found = _KEY.search(name.rsplit("/", 1)[-1])
    if found is None:
        raise DataError(
            f"{name}: is not named CITY_SEQUENCE_FRAME, e.g. berlin_000000_000019_leftImg8bit.png"
        )
    return found.group()


def check_submission(
    path: str | Path, expected: Iterable[str], size: tuple[int, int] | None = None
) -> list[str]:
    """What is wrong with a submission; an empty list means that it is fit to send.

    Args:
        path: a zip file, or a folder with the PNGs.
        expected: names or paths of the images that must be there.
        size: height and width of the images; by default that of Cityscapes.

    Raises:
        DataError: it is neither a zip file nor a folder.
    """
    keys = {image_key(name) for name in expected}
    found: dict[str, str] = {}
    problems: list[str] = []
    with _files(Path(path)) as files:
        for name, read in files:
            match = _KEY.search(name.rsplit("/", 1)[-1])
            if not name.endswith(".png") or match is None:
                problems.append(f"{name}: not a PNG named CITY_SEQUENCE_FRAME*.png")
                continue
            key = match.group()
            if key in found:
                problems.append(f"{name}: a second prediction for {key}, beside {found[key]}")
            elif key not in keys:
                problems.append(f"{name}: no such image in this split")
            else:
                problems += _problems_of(name, read(), size or SIZE)
            found.setdefault(key, name)
    missing = sorted(keys - set(found))
    if missing:
        problems.insert(0, f"{len(missing)} of {len(keys)} images have no prediction: {_some(missing)}")
    return problems


def server_names(dataset: SegmentationDataset | None) -> list[str]:
    """Names of the images of a Cityscapes split, in its own form or as `cirkd data prepare` left it.

    Raises:
        ConfigError: it is another data set.
    """
    prepared = isinstance(dataset, PreparedDataset) and dataset.manifest.dataset == "cityscapes"
    if dataset is None or not (prepared or isinstance(dataset, Cityscapes)):
        raise ConfigError("--submission: only Cityscapes (--data cityscapes --split test) has such a server")
    return [dataset.name(index) for index in range(len(dataset))]


def refuse_scaled(dataset: SegmentationDataset | None) -> None:
    """Check that predictions of a split will have the size that the server wants.

    Raises:
        ConfigError: the split was scaled down when it was prepared.
    """
    if isinstance(dataset, PreparedDataset):
        limit = dataset.manifest.options.get("max_size")
        if limit is not None and limit < max(SIZE):
            raise ConfigError(
                f"--submission: {dataset.storage.where('')} was prepared with --max-size {limit}, the server "
                f"wants {SIZE[1]}x{SIZE[0]} pixels; give the original as --root"
            )


def _problems_of(name: str, data: bytes, size: tuple[int, int]) -> list[str]:
    try:
        image = opencv_decode(data, cv2.IMREAD_UNCHANGED, name) if data else None
    except DataError as error:
        return [str(error)]
    if image is None:
        return [f"{name}: not a readable PNG"]
    if image.dtype != np.uint8 or image.ndim != 2:
        return [f"{name}: must be 8-bit gray, is {image.dtype} with {image.shape[2:] or (1,)} channels"]
    if image.shape != size:
        height, width = image.shape
        return [f"{name}: must be {size[1]}x{size[0]} pixels, is {width}x{height}"]
    wrong = sorted(set(np.flatnonzero(np.bincount(image.ravel(), minlength=256)).tolist()) - set(LABEL_IDS))
    if not wrong:
        return []
    hint = " (these look like train ids)" if max(wrong) < len(LABEL_IDS) else ""
    return [f"{name}: values {_some(wrong)} are no evaluated label ids{hint}"]


def _some(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:_SHOWN])) + (", ..." if len(items) > _SHOWN else "")


@contextmanager
def _files(path: Path) -> Iterator[list[tuple[str, Callable[[], bytes]]]]:
    """The files in a zip archive or a folder: each one's name, and what reads it."""
    if path.is_dir():
        files = [(p.relative_to(path).as_posix(), p.read_bytes) for p in path.rglob("*") if p.is_file()]
        yield sorted(files, key=lambda file: file[0])
        return
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except zipfile.BadZipFile:
        raise DataError(f"{path}: neither a folder nor a whole zip file") from None
    with archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        yield [(info.filename, partial(_unpacked, archive, info)) for info in entries]


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The content of an archive's file; empty where it is damaged."""
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, OSError, RuntimeError):
        return b""
