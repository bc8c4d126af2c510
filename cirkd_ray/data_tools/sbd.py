"""VOC's labels augmented by SBD's: `SegmentationClassAug` from the two official downloads.

B. Hariharan et al.: Semantic Contours from Inverse Detectors, ICCV 2011.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from cirkd_ray.data.base import UInt8
from cirkd_ray.data.files import packaged_list
from cirkd_ray.data.masks import decode_label
from cirkd_ray.errors import DataError
from cirkd_ray.files import write_bytes


def augment(voc: Path, sbd: Path, tell: Callable[[str, int, int | None], None]) -> None:
    """Write `voc/SegmentationClassAug/X.png` (gray, class indices) for every image of the packaged lists.

    VOC's own labels go first; SBD's, which have no ignored borders, serve for the rest. Files that are there
    are kept.

    Args:
        voc: the folder that holds `SegmentationClass`.
        sbd: the folder that holds `cls/X.mat`.
        tell: progress.

    Raises:
        DataError: an image has neither label, or a file is damaged.
    """
    ids = packaged_list("voc", "train") + packaged_list("voc", "val")
    for number, sample_id in enumerate(ids):
        path = voc / "SegmentationClassAug" / f"{sample_id}.png"
        if not path.exists():
            label = _label(voc / "SegmentationClass" / f"{sample_id}.png", sbd / "cls" / f"{sample_id}.mat")
            write_bytes(path, cv2.imencode(".png", label)[1].tobytes(), durable=False)
        tell("augment labels", number + 1, len(ids))


def _label(official: Path, additional: Path) -> UInt8:
    if official.is_file():
        return decode_label(official.read_bytes(), str(official))
    if not additional.is_file():
        raise DataError(f"{official.stem}: neither {official} nor {additional} is there")
    return read_mat(additional)


def read_mat(path: Path) -> UInt8:
    """The segmentation in one of SBD's MATLAB files.

    Raises:
        DataError: it is damaged or of another kind.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError("scipy: is missing, which reads SBD's labels; pip install scipy") from None
    try:
        content = loadmat(path, squeeze_me=True)["GTcls"]["Segmentation"].item()
        label = np.asarray(content)
    except Exception as error:  # scipy raises what its parser happens to meet
        raise DataError(f"{path}: not a label file of SBD ({type(error).__name__}: {error})") from None
    if label.ndim != 2 or label.dtype != np.uint8:
        raise DataError(f"{path}: labels of {label.dtype} {label.shape}, expected H x W bytes")
    return np.ascontiguousarray(label)
