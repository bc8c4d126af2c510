"""What data a training saw: what each label value meant, and which files there were, without reading any."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirkd_ray.data.base import SegmentationDataset, Stamp
from cirkd_ray.files import read_json, write_bytes, write_text

DATA = "data.json"
"""In the folder of a run, sweep or comparison: what its data were."""
LISTING = "data-files.json.gz"
"""Beside it: every file with its size and time of change, so that a change can be told by name."""

RANGE = "range of image values"


@dataclass(frozen=True)
class DataIdentity:
    """What decides whether figures of two trainings speak of the same data.

    Attributes:
        root: where the files lie; data that moved are the same.
        classes: names, in the order of the class indices.
        values: stored label value or colour -> name of its class, or "ignored"; and the declared `RANGE`, if
            any. Empty where none are known.
        splits: split -> digest of its listing.
        files: split -> file -> its stamp; None where the listing was not kept.
    """

    root: str | None
    classes: tuple[str, ...]
    values: Mapping[str, str]
    splits: Mapping[str, str]
    files: Mapping[str, Mapping[str, Stamp]] | None = None

    @property
    def digest(self) -> str:
        """Sixteen digits that are equal for equal data."""
        return _digest([self.classes, self.values, self.splits])

    def write(self, folder: Path) -> None:
        """Keep it in a folder."""
        if self.files is not None:
            text = json.dumps(self.files, separators=(",", ":"))
            write_bytes(folder / LISTING, gzip.compress(text.encode(), 1, mtime=0))
        facts = {key: value for key, value in vars(self).items() if key != "files"}
        write_text(folder / DATA, json.dumps({**facts, "digest": self.digest}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> DataIdentity | None:
        """What `write` kept; None where nothing was."""
        facts = read_json(folder / DATA)
        if facts is None:
            return None
        try:
            files = json.loads(gzip.decompress((folder / LISTING).read_bytes()))
        except (OSError, EOFError, ValueError):  # it only helps to tell what changed
            files = None
        return cls(facts["root"], tuple(facts["classes"]), facts["values"], facts["splits"], files)

    def changes(self, now: DataIdentity) -> list[str]:
        """What is other now, a few words each; empty where the data are the same."""
        return [*self.changed_meaning(now), *self.changed_files(now)]

    def changed_meaning(self, now: DataIdentity) -> list[str]:
        """What label values mean now and did not before."""
        classes = _class_changes(self.classes, now.classes)
        return classes + (_value_changes(self.values, now.values) if self.values and now.values else [])

    def changed_files(self, now: DataIdentity) -> list[str]:
        """The files that were added, removed or changed.

        Their times count where the root is the same, and on another one where some were kept by the copy: a
        copy whose files all have new times is taken for one of the same content.
        """
        found = []
        for split in {**self.splits, **now.splits}:
            if self.splits.get(split) == now.splits.get(split):
                continue
            if self.files is None or now.files is None:
                found.append(f"files of {split} were added, removed or changed")
            else:
                before, after = self.files.get(split, {}), now.files.get(split, {})
                found += _file_changes(split, before, after, self.root == now.root)
        return found


def identity(datasets: Mapping[str, SegmentationDataset]) -> DataIdentity:
    """The identity of a data set by its splits, which are of the same root and classes."""
    first = next(iter(datasets.values()))
    files = {
        split: {name: list(stamp) for name, stamp in data.stamps().items()}
        for split, data in datasets.items()
    }
    splits = {split: _digest(list(stamps.items())) for split, stamps in files.items()}
    low_high = {} if first.span is None else {RANGE: f"{first.span[0]:g}..{first.span[1]:g}"}
    values = {**first.label_values(), **low_high}
    return DataIdentity(first.place, first.classes.names, values, splits, files)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def _class_changes(before: tuple[str, ...], now: tuple[str, ...]) -> list[str]:
    if before == now:
        return []
    moved = [name for k, name in enumerate(before) if name in now and now.index(name) != k]
    if sorted(before) == sorted(now):
        return [f"classes {_some(moved)} are in another order"]
    added, gone = ([c for c in one if c not in two] for one, two in ((now, before), (before, now)))
    told = [(gone, "gone"), (added, "new")]
    return [f"{'class' if len(c) == 1 else 'classes'} {_some(c)} {w}" for c, w in told if c]


def _value_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A colour that only one of the two knows is no change: it may be that of a picture of gray labels."""
    keys = sorted({**before, **now}, key=lambda key: (len(key), key))
    texts = []
    for key in keys:
        known = key in before and key in now
        if before.get(key) != now.get(key) and (known or not key.startswith("colour")):
            name, none = (f"label value {key}", "impossible") if key.isdecimal() else (key, "not given")
            texts.append(f"{name} is {now.get(key, none)}, was {before.get(key, none)}")
    return texts[:3] + ([f"{len(texts) - 3} more values"] if len(texts) > 3 else [])


def _file_changes(
    split: str, before: Mapping[str, Stamp], now: Mapping[str, Stamp], same_root: bool
) -> list[str]:
    common = before.keys() & now.keys()
    timed = same_root or any(before[name] == now[name] for name in common)

    def differs(name: str) -> bool:
        one, two = before[name], now[name]
        return one != two if timed else one[:1] != two[:1]

    kinds = {
        "added": [name for name in now if name not in common],
        "removed": [name for name in before if name not in common],
        "changed": [name for name in now if name in common and differs(name)],
    }
    found = [f"{_files(names)} {kind} in {split}" for kind, names in kinds.items() if names]
    return found if found or list(before) == list(now) else [f"the files of {split} are in another order"]


def _files(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files ({_some(names)})"


def _some(names: Iterable[str], count: int = 2) -> str:
    known = list(names)
    return ", ".join(known[:count]) + (", ..." if len(known) > count else "")
