"""A user's own torch data set as one of ours: images and label maps by number, classes by name."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from cirkd_ray.data.base import Sample, SegmentationDataset
from cirkd_ray.data.folder import distinct_colour
from cirkd_ray.errors import ConfigError, DataError, UserError, first_line
from cirkd_ray.types import IGNORE_LABEL, ClassSet


class OwnDataset(SegmentationDataset):
    """Base of the classes that `adapted` makes.

    The user's class takes `split` and `root` and may have settings (keyword-only, annotated, with defaults).
    `len` is the number of images, item n is (image, label): H x W x 3 uint8 RGB and H x W class indices,
    255 where a pixel does not count; arrays, tensors or PIL images. `classes` holds the names, `palette`
    their colours if there are any.
    """

    splits: ClassVar[tuple[str, ...]] = ()
    needs_root: ClassVar[bool] = False
    source: ClassVar[type]

    def __init__(self, *, split: str, root: Any, **settings: Any) -> None:
        self.split, self.settings = split, settings
        where = f"data.name: {self.source.__module__}:{self.source.__qualname__}"
        try:
            self.own = self.source(split=split, root=root, **settings)
            self.count = len(self.own)
        except UserError:
            raise
        except Exception as error:
            raise DataError(f"{where}: {type(error).__name__}: {first_line(error)}") from error
        names = getattr(self.own, "classes", None)
        if not names or isinstance(names, str):
            raise ConfigError(f"{where}: has no `classes`; give the names of the classes, in their order")
        colours = getattr(self.own, "palette", None) or [distinct_colour(k) for k in range(len(names))]
        palette = tuple((int(red), int(green), int(blue)) for red, green, blue in colours)
        self.classes = ClassSet(tuple(map(str, names)), palette)
        if self.count == 0:
            raise DataError(f"{where}: the split {split!r} has no images")

    def __reduce__(self) -> Any:
        return _restored, (self.source, self.__dict__)

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{self.split}/{index}"

    def load(self, index: int) -> Sample:
        image, label = self.own[index]
        image, label = np.asarray(image), np.asarray(label)
        what = f"data: sample {index} of {self.split!r} in {self.source.__qualname__}"
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(f"{what}: the image is {image.dtype} {image.shape}, not H x W x 3 uint8")
        if label.shape != image.shape[:2] or label.dtype.kind not in "iu":
            raise DataError(f"{what}: labels are {label.dtype} {label.shape}, not H x W whole numbers")
        wrong = (label != IGNORE_LABEL) & ((label < 0) | (label >= len(self.classes)))
        if wrong.any():
            value = int(label[wrong][0])
            raise DataError(f"{what}: label {value} is no class (nor {IGNORE_LABEL}, ignored)")
        return Sample(np.ascontiguousarray(image), label.astype(np.uint8), self.name(index))


@functools.cache
def adapted(source: type) -> type[SegmentationDataset] | None:
    """A class of ours around a torch `Dataset`; None where it is none."""
    if not (isinstance(source, type) and issubclass(source, Dataset)):
        return None
    init = functools.wraps(source.__init__)(_init)
    return type(source.__name__, (OwnDataset,), {"source": source, "__init__": init})


def _init(self: OwnDataset, *args: Any, **settings: Any) -> None:
    OwnDataset.__init__(self, *args, **settings)


def _restored(source: type, state: dict[str, Any]) -> SegmentationDataset:
    cls = adapted(source)
    assert cls is not None
    found = cls.__new__(cls)
    found.__dict__.update(state)
    return found
