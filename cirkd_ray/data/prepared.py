"""The prepared form of a data set, which is fast to read: a file of tiles a sample (see `tiles`).

A prepared root takes the place of the original one: the same data set name, settings and splits, another
`root` (see `cirkd data prepare`). It holds `preparation.json` (what is prepared, and how) and, once a split
is finished, `manifest.json`; for each split `SPLIT/index-NUMBER.jsonl` (`Row`: one line a sample) and
`SPLIT/NUMBER.safetensors` (the samples).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cirkd_ray.data.base import DATASETS, Facts, Sample, SegmentationDataset, Stamp
from cirkd_ray.data.storage import LocalStorage, Storage, open_storage
from cirkd_ray.data.tiles import Content, MappedFile, TiledSample
from cirkd_ray.errors import DataError
from cirkd_ray.files import stays_inside
from cirkd_ray.types import ClassSet

MANIFEST = "manifest.json"
PLAN = "preparation.json"
"""What `prepare` writes first; without a manifest beside it no split has been finished."""
FORMAT = 2
_READERS = 16


class Manifest(BaseModel):
    """The content of `manifest.json`; the splits that it names are complete.

    Attributes:
        format: version of the form.
        dataset: registered name.
        settings: the data set's own settings that decided the labels.
        classes, palette: names and colours.
        range: the image values that became black and white, where that was declared.
        splits: number of samples of each split.
        parts: number of parts of each split's index; files of further parts are left over and not read.
        unlabelled: splits whose labels are not public.
        skipped: for each split, what was left out, with the reason: samples that could not be read, files
            that were missing, names that came twice.
        options: how images were encoded.
        source: the root that it was made of; None where an earlier version made it.
        values: stored label value there -> name of its class, or "ignored".
        stored: the data set's settings of how its files are stored there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    dataset: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    range: tuple[float, float] | None = None
    splits: dict[str, int] = {}
    parts: dict[str, int] = {}
    unlabelled: tuple[str, ...] = ()
    skipped: dict[str, dict[str, str]] = {}
    options: dict[str, Any]
    source: str | None = None
    values: dict[str, str] = {}
    stored: dict[str, Any] = {}

    def without(self, split: str) -> Manifest:
        """The manifest as it would be had the split never been prepared."""

        rest: dict[str, Any] = {"unlabelled": tuple(name for name in self.unlabelled if name != split)}
        for key in ("splits", "parts", "skipped"):
            rest[key] = {name: value for name, value in getattr(self, key).items() if name != split}
        return self.model_copy(update=rest)


@dataclass(frozen=True)
class Row:
    """A line of a split's index: a stored sample, or one that was left out.

    Attributes:
        name: the name that the sample has in the original data set.
        error: why it was left out; the rest is None then.
        source: bytes and times of change of the files that it was made of, where they are known.
        file: path below the root of the sample's file.
        bytes, sha256: of that file.
        height, width: of the stored image.
    """

    name: str
    error: str | None = None
    source: list[int] | None = None
    file: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    height: int | None = None
    width: int | None = None

    def line(self) -> str:
        """The row as JSON, with the end of the line."""
        return json.dumps({key: value for key, value in vars(self).items() if value is not None}) + "\n"


def index_part(split: str, number: int) -> str:
    """Path of a part of a split's index."""
    return f"{split}/index-{number:06d}.jsonl"


def read_part(storage: Storage, split: str, number: int) -> list[Row]:
    """The lines of a part of a split's index.

    Raises:
        DataError: it is missing or damaged, or names a file outside of its folder: results of a sample are
            written under its name.
    """
    path = index_part(split, number)
    try:
        rows = [Row(**json.loads(line)) for line in storage.read(path).decode().splitlines()]
        outside = [name for row in rows for name in (row.name, row.file) if name and not stays_inside(name)]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{storage.where(path)}: damaged ({error})") from None
    if outside:
        raise DataError(f"{storage.where(path)}: unsafe, {outside[0]!r} leads out of the folder")
    return rows


def find_manifest(root: str | Path, unfinished: bool = False) -> Manifest | None:
    """The manifest of a prepared root; None where the root is not one.

    Args:
        unfinished: None as well where a preparation has been begun of which no split is finished.

    Raises:
        DataError: it is damaged, of another version or, unless `unfinished`, not there yet.
    """
    storage = open_storage(root)
    names = storage.names("")
    if MANIFEST not in names:
        if PLAN in names and not unfinished:
            _refuse_unfinished(storage, root)
        return None
    try:
        content = json.loads(storage.read(MANIFEST))
        if not isinstance(content, dict) or "format" not in content or "dataset" not in content:
            return None  # some other program's manifest
        if content["format"] != FORMAT:
            raise DataError(
                f"{storage.where(MANIFEST)}: of format {content['format']}, this version reads {FORMAT}; "
                "prepare the data set again, into another folder"
            )
        return Manifest.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise DataError(f"{storage.where(MANIFEST)}: damaged ({str(error).splitlines()[0]})") from None


def _refuse_unfinished(storage: Storage, root: str | Path) -> None:
    """Tell of a preparation of which no split is finished, if that is what `preparation.json` is about."""
    try:
        content = json.loads(storage.read(PLAN))
    except ValueError:
        return
    if isinstance(content, dict) and {"dataset", "options", "format"} <= content.keys():
        name = content["dataset"]
        raise DataError(
            f"{root}: an unfinished preparation of {name!r}; repeat `cirkd data prepare {name} ... {root}`, "
            "which goes on where it stopped"
        )


def open_prepared(
    root: str | Path, manifest: Manifest, name: str, split: str, settings: Mapping[str, Any]
) -> SegmentationDataset:
    """A split of a prepared root.

    Raises:
        DataError: it holds another data set, was prepared with other settings, or lacks the split.
    """
    if manifest.dataset != name:
        raise DataError(f"{root}: holds the prepared data set {manifest.dataset!r}, not {name!r}")
    if split not in manifest.splits:
        have = f"only {', '.join(manifest.splits)}" if manifest.splits else "nor was another"
        raise DataError(f"{root}: the split {split!r} was not prepared, {have}; run cirkd data prepare again")
    for key, value in manifest.settings.items():
        if settings.get(key) != value:
            raise DataError(
                f"{root}: was prepared with {key}={value!r}, the recipe says {settings.get(key)!r}"
            )
    return PreparedDataset(root, manifest, split)


class PreparedDataset(SegmentationDataset):
    """One split of a prepared root."""

    def __init__(self, root: str | Path, manifest: Manifest, split: str) -> None:
        self.storage: Storage = open_storage(root)
        self.place = self.storage.place
        self.manifest = manifest
        self.split = split
        self.classes = ClassSet(manifest.classes, manifest.palette)
        self.has_labels = split not in manifest.unlabelled
        self.facts, self.span = _facts(manifest), manifest.range
        self._rows = _stored_samples(self.storage, split, manifest.parts[split])
        if len(self._rows) != manifest.splits[split]:
            raise DataError(
                f"{self.storage.where(split)}: the index has {len(self._rows)} samples, "
                f"the manifest says {manifest.splits[split]}"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """The name that the sample has in the original data set."""
        return self._rows[index].name

    def stamps(self) -> dict[str, Stamp]:
        """The checksum of each sample's file, as the index has it."""
        return {row.name: (row.sha256,) for row in self._rows}

    def sources(self) -> dict[str, Stamp]:
        """Name -> stamps of the files that the sample was made of, where these are known."""
        return {row.name: row.source for row in self._rows if row.source is not None}

    def label_values(self) -> dict[str, str]:
        """Those of the set that it was made of."""
        return self.manifest.values

    def file(self, index: int) -> tuple[str, str]:
        """Path below the root and SHA-256 of the sample's file."""
        row = self._rows[index]
        return str(row.file), str(row.sha256)

    def away(self, index: int) -> str | None:
        """By the folder of its file."""
        return self.storage.away(self.file(index)[0])

    def open(self, index: int) -> TiledSample:
        """The sample, of which nothing but the header is decoded yet."""
        name, (path, digest) = self.name(index), self.file(index)
        where = self.storage.where(path)
        if isinstance(self.storage, LocalStorage):
            return TiledSample(name, MappedFile(where), where)
        return TiledSample(name, Content(self.storage.read(path, digest), where), where)

    def load(self, index: int) -> Sample:
        """Decode the whole sample."""
        tiled = self.open(index)
        whole = (0, 0, *tiled.size)
        return Sample(tiled.image_window(*whole), tiled.label_window(*whole), tiled.name)


def _facts(manifest: Manifest) -> Facts:
    """What is known of the original set's classes; sizes and counts may differ."""
    origin = DATASETS.get(manifest.dataset)
    same = getattr(getattr(origin, "classes", None), "names", None) == manifest.classes
    return replace(origin.facts, size=None, counts={}) if same else Facts()


def _stored_samples(storage: Storage, split: str, parts: int) -> list[Row]:
    """Every stored sample of a split, in order."""

    def stored(number: int) -> list[Row]:
        return [row for row in read_part(storage, split, number) if row.file and row.sha256]

    with ThreadPoolExecutor(max(1, min(_READERS, parts))) as pool:  # a request for each behind a URL
        return [sample for found in pool.map(stored, range(parts)) for sample in found]
