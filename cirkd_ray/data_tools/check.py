"""Looks at every file of a split and reports all that is wrong, without stopping at the first."""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.codec import decode_image
from cirkd_ray.data.files import FileDataset, ImpossibleLabels, SizeMismatch
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.data.storage import printable
from cirkd_ray.data_tools.prepare import verify_prepared
from cirkd_ray.errors import DataError
from cirkd_ray.types import IGNORE_LABEL

_ORIENTATION = 0x0112
_AHEAD = 1024
"""Samples whose results wait at most; an image is let go when its sample has been looked at."""
KINDS = (
    "missing split",
    "missing file",
    "duplicate name",
    "name not UTF-8",
    "unreadable",
    "size mismatch",
    "impossible label",
    "program error",
)


@dataclass(frozen=True)
class Finding:
    """Something wrong with one file.

    Attributes:
        kind: one of `KINDS`.
        message: names the file and the reason; where names are no UTF-8, with escapes.
    """

    kind: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))


@dataclass
class Report:
    """What a check found.

    Attributes:
        classes: names of the classes.
        images: samples that were read and are right.
        pixels: labelled pixels of each class, in those samples.
        seen: samples in which each class occurs.
        ignored: ignored pixels.
        sizes: how many samples have each (height, width).
        formats: how many images are of each kind that is not plain 8-bit RGB (they are converted when read).
        turned: images with a camera's orientation tag, which is not applied.
        findings: all that is wrong, in order.
    """

    classes: tuple[str, ...]
    images: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        total = int(self.pixels.sum()) + self.ignored
        return {
            "images": self.images,
            "ignored_share": self.ignored / total if total else 0.0,
            "classes": [
                {"name": name, "pixels": int(pixels), "images": int(images)}
                for name, pixels, images in zip(self.classes, self.pixels, self.seen, strict=True)
            ],
            "sizes": [[height, width, count] for (height, width), count in self.sizes.most_common()],
            "formats": dict(self.formats),
            "turned": self.turned,
            "findings": [[finding.kind, finding.message] for finding in self.findings],
        }


@dataclass(frozen=True)
class _Facts:
    """What one good sample adds to the report."""

    counts: NDArray[np.int64]
    size: tuple[int, int]
    mode: str = "RGB"
    turned: bool = False


def check(
    data: SegmentationDataset, workers: int = 1, progress: Callable[[int], None] | None = None
) -> Report:
    """Read every sample of a split. Holds only a few images at a time, whatever the split's size.

    Args:
        data: the split; build it with `subset=True`, so that missing files and names that come twice are
            reported instead of refused.
        workers: threads (reading and decoding run without Python's lock).
        progress: called with 1 after every sample.
    """
    count = len(data.classes)
    report = Report(data.classes.names, pixels=np.zeros(count, np.int64), seen=np.zeros(count, np.int64))
    for path in getattr(data, "missing", []):
        report.findings.append(Finding("missing file", f"{path}: missing"))
    for names in getattr(data, "duplicates", []):
        report.findings.append(Finding("duplicate name", f"{names}: one name"))
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(data), _AHEAD):
            numbers = range(start, min(start + _AHEAD, len(data)))
            for result in pool.map(functools.partial(_examine, data), numbers):
                _add(report, result)
                if progress:
                    progress(1)
    return report


def missing_split(error: DataError) -> Report:
    """The report on a split that cannot be opened."""
    return Report((), findings=[Finding("missing split", str(error))])


def _examine(data: SegmentationDataset, index: int) -> _Facts | Finding:
    """Read one sample; whatever goes wrong with it is a finding."""
    name = data.name(index)
    if printable(name) != name:
        return Finding(
            "name not UTF-8", f"{name}: rename the file; `cirkd data prepare` cannot store the name"
        )
    try:
        if isinstance(data, FileDataset):
            return _examine_files(data, index)
        if isinstance(data, PreparedDataset):
            verify_prepared(data, index)
        sample = data.load(index)
        return _Facts(np.bincount(sample.label.ravel(), minlength=256), sample.size)
    except SizeMismatch as error:
        return Finding("size mismatch", str(error))
    except ImpossibleLabels as error:
        return Finding("impossible label", str(error))
    except DataError as error:
        return Finding("unreadable", str(error))
    except Exception as error:  # one odd file must not end the check of 100 000
        return Finding("program error", f"{name}: {type(error).__name__}: {error}")


def _examine_files(data: FileDataset, index: int) -> _Facts:
    path = data.image_file(data.ids[index])
    where = data.storage.where(path)
    content = data.storage.read(path)
    image = decode_image(content, where)
    size = (image.shape[0], image.shape[1])
    label = data.load_label(index, size)
    try:
        with Image.open(io.BytesIO(content)) as header:
            mode, turned = header.mode, header.getexif().get(_ORIENTATION, 1) != 1
    except Image.DecompressionBombError:  # sound: it was decoded above
        mode, turned = "too large for Pillow to look at", False
    except (OSError, SyntaxError, ValueError):
        mode, turned = "not known to Pillow", False
    return _Facts(np.bincount(label.ravel(), minlength=256), size, mode, turned)


def _add(report: Report, result: _Facts | Finding) -> None:
    if isinstance(result, Finding):
        report.findings.append(result)
        return
    count = len(report.classes)
    report.images += 1
    report.pixels += result.counts[:count]
    report.seen += result.counts[:count] > 0
    report.ignored += int(result.counts[IGNORE_LABEL])
    report.sizes[result.size] += 1
    report.turned += result.turned
    if result.mode != "RGB":
        report.formats[result.mode] += 1
