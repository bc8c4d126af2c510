"""What data a training saw: what each label value meant, which files there were, and what a few held."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cirkd_ray.data.base import SegmentationDataset, Stamp
from cirkd_ray.files import read_json, write_bytes, write_text
from cirkd_ray.remote.address import is_url
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.remote.reading import fetch_folder

DATA = "data.json"
"""In the folder of a run, sweep or comparison: what its data were."""
LISTING = "data-files.json.gz"
"""Beside it: every file with its size and time of change, so that a change can be told by name."""

RANGE = "range of image values"
_MEASURED = ", measured"
_ABOVE = 4
"""How many folders, from a network's own upwards, may hold what its data were."""


@dataclass(frozen=True)
class DataIdentity:
    """What decides whether figures of two trainings speak of the same data.

    Attributes:
        root: where the files lie; data that moved are the same.
        classes: names, in the order of the class indices.
        values: stored label value or colour -> name of its class, or "ignored"; and the `RANGE` of images of
            more than 8 bits. Empty where none are known.
        splits: split -> digest of its listing.
        files: split -> file -> its stamp; None where the listing was not kept.
        contents: split -> file -> digest of its content, for a few files; none where an earlier version
            wrote it.
    """

    root: str | None
    classes: tuple[str, ...]
    values: Mapping[str, str]
    splits: Mapping[str, str]
    files: Mapping[str, Mapping[str, Stamp]] | None = None
    contents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Sixteen digits that are equal for equal data."""
        return _digest([self.classes, self.values, self.splits, self.contents])

    def write(self, folder: Path, listing: bool = True) -> None:
        """Keep it in a folder.

        Args:
            folder: of what was trained on it.
            listing: keep the names of all files, too.
        """
        if listing and self.files is not None:
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
        known = (facts[key] for key in ("root", "classes", "values", "splits"))
        root, classes, values, splits = known
        return cls(root, tuple(classes), values, splits, files, facts.get("contents", {}))

    @classmethod
    def near(cls, path: str | Path) -> DataIdentity | None:
        """What was kept with a network: a run's folder, a file in it, or a run of a sweep or comparison."""
        if ":/" in str(path) and not is_url(path):  # what comes with the package
            return None
        place = copy_of(path).expanduser().absolute()
        if is_url(path):
            fetch_folder(place) or fetch_folder(place.parent)
        folders = (place, *place.parents)[:_ABOVE]
        return next(filter(None, map(cls.read, folders)), None)

    def only(self, splits: Iterable[str]) -> DataIdentity:
        """What it says of these splits."""
        names = set(splits)

        def kept(found: Mapping[str, Any]) -> dict[str, Any]:
            return {split: value for split, value in found.items() if split in names}

        files = None if self.files is None else kept(self.files)
        return replace(self, splits=kept(self.splits), files=files, contents=kept(self.contents))

    def same_set(self, now: DataIdentity) -> bool:
        """Whether it is of the data set of `now`, whatever its labels mean: in the same place, or moved."""
        before = self.only(now.splits)
        if self.root is None or self.root == now.root:
            return self.root is not None
        return (
            before.files is not None
            and set(before.splits) == set(now.splits)
            and not before.changed_files(now)
        )

    def changes(self, now: DataIdentity) -> list[str]:
        """What is other now, a few words each; empty where the data are the same."""
        return [*self.changed_meaning(now), *self.changed_files(now)]

    def changed_meaning(self, now: DataIdentity) -> list[str]:
        """What label values mean now and did not before."""
        classes = _class_changes(self.classes, now.classes)
        return classes + (_value_changes(self.values, now.values) if self.values and now.values else [])

    def changed_files(self, now: DataIdentity) -> list[str]:
        """The files that were added, removed or changed.

        Their times count where the root is the same, and on another one where some were kept by the copy. A
        copy whose files all have new times is known by their names and sizes, and by the contents of a few.
        """
        found = []
        for split in {**self.splits, **now.splits}:
            others = _others(self.contents.get(split, {}), now.contents.get(split, {}))
            if self.splits.get(split) == now.splits.get(split) and not others:
                continue
            if self.files is None or now.files is None:
                found.append(f"files of {split} were added, removed or changed")
            else:
                before, after = self.files.get(split, {}), now.files.get(split, {})
                found += _file_changes(split, before, after, others, self.root == now.root)
        return found


def identity(datasets: Mapping[str, SegmentationDataset]) -> DataIdentity:
    """The identity of a data set by its splits, which are of the same root and classes.

    Files are listed; of a few of them the content is read.
    """
    first = next(iter(datasets.values()))
    files = {
        split: {name: list(stamp) for name, stamp in data.stamps().items()}
        for split, data in datasets.items()
    }
    splits = {split: _digest(list(stamps.items())) for split, stamps in files.items()}
    how = _MEASURED if first.measured else ""
    low_high = {} if first.span is None else {RANGE: f"{first.span[0]:g}..{first.span[1]:g}{how}"}
    values = {**first.label_values(), **low_high}
    contents = {split: dict(data.contents(files[split])) for split, data in datasets.items()}
    return DataIdentity(first.place, first.classes.names, values, splits, files, contents)


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
    """A colour that only one of the two knows is no change: it may be that of a picture of gray labels.

    Nor is a range that one has measured and the other does not know.
    """
    keys = sorted({**before, **now}, key=lambda key: (len(key), key))
    texts = []
    for key in keys:
        then, current = before.get(key, ""), now.get(key, "")
        alone = not (then and current) and (key.startswith("colour") or _MEASURED in then + current)
        if then.removesuffix(_MEASURED) != current.removesuffix(_MEASURED) and not alone:
            name, none = (f"label value {key}", "impossible") if key.isdecimal() else (key, "not given")
            kept = f" (write `range: [{then.removesuffix(_MEASURED).replace('..', ', ')}]` to keep that)"
            way = kept if key == RANGE and then and _MEASURED in current else ""
            texts.append(f"{name} is {current or none}, was {then or none}{way}")
    return texts[:3] + ([f"{len(texts) - 3} more values"] if len(texts) > 3 else [])


def _others(before: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    """The files whose content is known from both times and differs."""
    return {name for name in before.keys() & now.keys() if before[name] != now[name]}


def _file_changes(
    split: str, before: Mapping[str, Stamp], now: Mapping[str, Stamp], others: set[str], same_root: bool
) -> list[str]:
    """What happened to a split's files; those among `others` hold something else."""
    common = before.keys() & now.keys()
    timed = same_root or any(before[name] == now[name] for name in common)

    def differs(name: str) -> bool:
        one, two = before[name], now[name]
        return name in others or (one != two if timed else one[:1] != two[:1])

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
