"""Looks at every file of a split and reports all that is wrong, without stopping at the first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cirkd_ray.data.base import SegmentationDataset
from cirkd_ray.data.codec import BeyondRange
from cirkd_ray.data.facts import MOST_IGNORED, judge
from cirkd_ray.data.files import FileDataset, SizeMismatch
from cirkd_ray.data.label_map import ImpossibleLabels
from cirkd_ray.data.palettes import Palettes
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.data.storage import printable
from cirkd_ray.data.tally import Examined, Finding, Tally
from cirkd_ray.data_tools.prepare import verify_prepared
from cirkd_ray.errors import DataError

_AHEAD = 1024
"""Samples whose results wait at most; an image is let go when its sample has been looked at."""


@dataclass
class Report(Tally):
    """What a check found: the counts of the samples that are right, and all that is wrong, in order."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.note for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images": self.images,
            "ignored_share": self.ignored_share,
            "classes": [
                {"name": name, "pixels": int(pixels), "images": int(images)}
                for name, pixels, images in zip(self.classes, self.pixels, self.seen, strict=True)
            ],
            "sizes": [[height, width, count] for (height, width), count in self.sizes.most_common()],
            "formats": dict(self.formats),
            "turned": self.turned,
            "findings": [[item.kind, item.message] for item in self.findings if not item.note],
            "notes": [[item.kind, item.message] for item in self.findings if item.note],
        }


class _Beyond(NamedTuple):
    """An image that the range of the set leaves out."""

    name: str
    enough: tuple[float, float]
    top: float


def check(
    data: SegmentationDataset,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
    *,
    training: bool = True,
    most_ignored: float = MOST_IGNORED,
    palettes: Palettes | None = None,
) -> Report:
    """Read every sample of a split. Holds only a few images at a time, whatever the split's size.

    Args:
        data: the split; build it with `subset=True`, so that missing files and names that come twice are
            reported instead of refused.
        workers: threads (reading and decoding run without Python's lock).
        progress: called with 1 after every sample.
        training: whether the split is trained on, so that every class must occur.
        most_ignored: the share of ignored pixels that is allowed.
        palettes: those of the splits that were checked before.
    """
    count = len(data.classes)
    report = Report(data.classes.names, pixels=np.zeros(count, np.int64), seen=np.zeros(count, np.int64))
    report.palettes = palettes or report.palettes
    for path in getattr(data, "missing", []):
        report.findings.append(Finding("missing file", f"{path}: missing"))
    for names in getattr(data, "duplicates", []):
        report.findings.append(Finding("duplicate name", f"{names}: one name"))
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(data), _AHEAD):
            numbers = range(start, min(start + _AHEAD, len(data)))
            for result in pool.map(functools.partial(_examine, data), numbers):
                if isinstance(result, Finding):
                    report.findings.append(result)
                elif isinstance(result, _Beyond):
                    report.beyond[result.name] = result.enough, result.top
                else:
                    report.add_image(result)
                    report.add_label(result.counts)
                if progress:
                    progress(1)
    report.findings += judge(data, report, training=training, most_ignored=most_ignored)
    return report


def missing_split(error: DataError) -> Report:
    """The report on a split that cannot be opened."""
    return Report((), findings=[Finding("missing split", str(error))])


def _examine(data: SegmentationDataset, index: int) -> Examined | _Beyond | Finding:
    """Read one sample; whatever goes wrong with it is a finding."""
    name = data.name(index)
    if printable(name) != name:
        return Finding(
            "name not UTF-8", f"{name}: rename the file; `cirkd data prepare` cannot store the name"
        )
    try:
        if isinstance(data, FileDataset):
            return data.examine(index)
        if isinstance(data, PreparedDataset):
            verify_prepared(data, index)
        return Examined.of(data.load(index))
    except BeyondRange as error:
        return _Beyond(name, error.enough, error.top)
    except SizeMismatch as error:
        return Finding("size mismatch", str(error))
    except ImpossibleLabels as error:
        return Finding("impossible label", str(error))
    except DataError as error:
        return Finding("unreadable", str(error))
    except Exception as error:  # one odd file must not end the check of 100 000
        return Finding("program error", f"{name}: {type(error).__name__}: {error}")
