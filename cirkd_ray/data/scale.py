"""One scale for all images of more than 8 bits of a data set, measured where it is not declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cirkd_ray.data.base import SegmentationDataset, spread
from cirkd_ray.data.codec import Range, bounds, declare, kind_of, natural_range, shown
from cirkd_ray.data.header import has_more_bits, read_header
from cirkd_ray.data.storage import LocalStorage, Storage
from cirkd_ray.errors import DataError, TransientError

SEEN, SEEN_AWAY, MEASURED = 16, 2, 32
"""Images whose kind is looked at, here and behind a URL, and images whose values are."""
PIXELS, LEAST = 2**26, 4
"""Pixels that are decoded at most, but for so many images."""
_EIGHT_BITS = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif")
_known: dict[tuple[object, ...], Range | None] = {}


def measured_range(storage: Storage, own: Sequence[str], others: Callable[[], Sequence[str]]) -> Range | None:
    """The stored values that become 0 and 255 in every image of a data set that declares no range.

    Where images of a split have more than 8 bits, the values of up to `MEASURED` images are looked at, spread
    over all the set's: so splits, processes and runs find the same.

    Args:
        storage: where the images lie.
        own: paths of the split's images.
        others: gives those of the whole set.

    Returns:
        None where the images that are looked at have 8 bits, or cannot be read.

    Raises:
        DataError: nothing is usual for values of their kind; the message says what to declare.
    """
    seen = spread(len(own), SEEN if isinstance(storage, LocalStorage) else SEEN_AWAY)
    if not any(_may_be_wide(storage, own[index]) for index in seen):
        return None
    everything = others()
    chosen = [everything[index] for index in spread(len(everything), MEASURED)]
    wide = _affordable(storage, [path for path in chosen if _may_be_wide(storage, path)])
    key = (storage.place, *((path, storage.stamp(path)) for path in wide))
    if key not in _known:
        _known[key] = _measure(storage, wide)
    return _known[key]


def range_warning(own: Sequence[float] | None, data: SegmentationDataset) -> tuple[str, ...]:
    """What to say where the images of a data set are scaled otherwise than those a network was trained on."""
    if not own or data.span is None or tuple(own) == data.span:
        return ()
    trained, now = shown((own[0], own[1])), shown(data.span)
    return (f"data: images are scaled from {now}, those that the network was trained on from {trained}",)


def _may_be_wide(storage: Storage, path: str) -> bool:
    if path.lower().endswith(_EIGHT_BITS):
        return False
    source = Path(storage.where(path)) if isinstance(storage, LocalStorage) else _content(storage, path)
    return bool(source) and has_more_bits(source)


def _content(storage: Storage, path: str) -> bytes:
    """A file's content; empty where it cannot be read, which whoever needs it will say."""
    try:
        return storage.read(path)
    except TransientError:
        raise
    except DataError:
        return b""


def _affordable(storage: Storage, paths: Sequence[str]) -> list[str]:
    """As many of these images, spread over them, as have `PIXELS` pixels together."""
    header = read_header(_content(storage, paths[0])) if paths else None
    pixels = header.size[0] * header.size[1] if header else 1
    return [paths[k] for k in spread(len(paths), max(LEAST, min(MEASURED, PIXELS // max(1, pixels))))]


def _measure(storage: Storage, paths: Sequence[str]) -> Range | None:
    found = []
    for path in paths:
        try:
            found.append(bounds(_content(storage, path), storage.where(path)))
        except TransientError:
            raise
        except DataError:  # whoever needs it will say so
            continue
    wide = [(kind, low, high) for kind, low, high in found if kind.itemsize > 1]
    if not wide:
        return None
    # Of several kinds the one counts that says least.
    kind = max((kind for kind, _, _ in wide), key=lambda one: (one.kind != "u", one.itemsize))
    low, high = min(low for _, low, _ in wide), max(high for _, _, high in wide)
    span = natural_range(kind, low, high)
    if span is None:
        what = f"{kind_of(kind)} from {low:g} to {high:g} in the {len(wide)} looked at"
        how = f"say which become black and white, e.g. {declare((low, high))}"
        raise DataError(f"{storage.where('')}: its images hold {what}; {how}")
    return span
