"""Whether what a folder holds was trained on the data that are there now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cirkd_ray.config import RunSpec
from cirkd_ray.data import DATASETS, SegmentationDataset, build_dataset
from cirkd_ray.data.base import Stamp
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.identity import DATA, DataIdentity, identity
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.data.storage import printable
from cirkd_ray.errors import ConfigError, DataError, UserError
from cirkd_ray.train.build import build_datasets

FLAG = "--accept-data"
_DIGITS = 6
"""Of the data's digest, in the name of a folder beside another one."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class DataGuard:
    """The data of a recipe, held against those that folders say that they were begun with.

    Attributes:
        spec: the recipe.
        now: its data.
        accept: take data that differ for the same.
        say: hears what was accepted.
    """

    spec: RunSpec
    now: DataIdentity
    accept: bool
    say: Say

    @classmethod
    def of(cls, spec: RunSpec, accept: bool = False, say: Say = lambda text: None) -> DataGuard:
        """Look at the files of a recipe's splits; none is read.

        Raises:
            DataError: they are a prepared set, and the labels that it was made of mean something else now.
            ConfigError: `teacher.weights` was trained when labels of this root meant something else.
        """
        train, val = build_datasets(spec)
        splits = {spec.data.train_split: train, spec.data.val_split: val}
        prepared = [split for split in splits.values() if isinstance(split, PreparedDataset)]
        notes = [_compare_source(split, str(spec.data.root), accept) for split in prepared]
        for note in dict.fromkeys(notes):
            if note:
                say(note)
        guard = cls(spec, identity(splits), accept, say)
        guard._hold_teacher()
        return guard

    def on(self, spec: RunSpec) -> DataGuard:
        """That of another recipe, which mostly has the same data."""
        return self if spec.data == self.spec.data else DataGuard.of(spec, self.accept, self.say)

    def hold(self, folder: Path, begun: bool, way_on: str) -> None:
        """Require that a folder was begun with these data, and keep in it what they are.

        Args:
            folder: of a run, sweep or comparison.
            begun: whether anything was trained there before; what a start that failed left is written anew.
            way_on: how to train anew, for the message.

        Raises:
            ConfigError: the data are others; the message says what changed.
        """
        if begun:
            self._refuse(folder, "was begun with other data", self._changes(folder), way_on)
        self.adopt(folder, begun)
        self.now.write(folder)

    def _hold_teacher(self) -> None:
        """Require that labels mean what they meant when the teacher of the recipe's `teacher.weights` was
        trained, where that was on the same root."""
        weights = None if self.spec.teacher is None else self.spec.teacher.weights
        before = None if weights is None or not Path(weights).is_dir() else DataIdentity.read(Path(weights))
        if before is None or before.root is None or before.root != self.now.root:
            return
        trouble = f"{weights} was trained when labels of {before.root} meant something else"
        self._refuse("teacher.weights", trouble, before.changed_meaning(self.now), "train the teacher anew")

    def _refuse(self, subject: object, trouble: str, changes: list[str], way_on: str) -> None:
        """Raise a `ConfigError` with what changed, or say it where that is accepted."""
        text = f"{trouble} ({told(changes)})"
        if changes and not self.accept:
            raise ConfigError(f"{subject}: {text};\n{way_on}, or go on all the same with {FLAG}")
        if changes:
            self.say(f"{subject}: {text}; it is used all the same")

    def adopt(self, folder: Path, begun: bool) -> None:
        """Write these data into a folder that names none, and say so where it was there before."""
        if DataIdentity.read(folder) is None:
            if begun:
                self.say(f"{folder}: does not say what its data were; they are taken for those of now")
            self.now.write(folder)

    def shared(self, folder: Path) -> Path:
        """Where what several runs share is trained: in `folder`, or beside it where that is of other data.

        Data are known by what labels mean and by names, sizes and times of files, not by their place: they
        may be moved, and copied where the copy keeps all times or none (see `DataIdentity.changes`).
        """
        changes = self._changes(folder)
        if changes and self.accept:
            self.say(f"{folder}: is used, though it is of other data ({told(changes)})")
        if not changes or self.accept:
            return folder
        for other in sorted(folder.parent.glob(f"{folder.name}-{'?' * _DIGITS}")):
            if (other / DATA).is_file() and not self._changes(other):
                return other
        beside = folder.with_name(f"{folder.name}-{self.now.digest[:_DIGITS]}")
        self.say(
            f"{folder}: is of other data ({told(changes)}); {beside.name} takes its place\n"
            f"(to use it all the same: {FLAG})"
        )
        return beside

    def _changes(self, folder: Path) -> list[str]:
        """What is other now than in the data of a folder; empty where it names none."""
        before = DataIdentity.read(folder)
        return [] if before is None else before.changes(self.now)


def trained_in(folder: Path) -> bool:
    """Whether any run below a sweep's or comparison's folder has written figures."""
    return any(folder.rglob("metrics.jsonl"))


def told(changes: list[str], most: int = 4) -> str:
    """The first changes as a text."""
    return "; ".join(changes[:most]) + (f"; {len(changes) - most} more" if len(changes) > most else "")


def _compare_source(data: PreparedDataset, root: str, accept: bool) -> str:
    """What to say of a prepared split beside the set that it was made of, where that is on this machine."""
    manifest = data.manifest
    if manifest.source is None or not Path(manifest.source).is_dir():
        return ""
    settings = {**manifest.settings, **manifest.stored}
    if issubclass(DATASETS.get(manifest.dataset), FileDataset):
        settings["subset"] = True  # files may be gone: the prepared set does without them
    try:
        source = build_dataset(manifest.dataset, split=data.split, root=manifest.source, **settings)
    except UserError as error:
        return (
            f"{root}: {manifest.source}, which it was made of, cannot be read any more "
            f"({str(error).splitlines()[0]}): whether its labels mean the same now is not known"
        )
    sources = data.sources()
    skipped = manifest.skipped.get(data.split, {})
    files = {name: stamp for name, stamp in _sources(source) if printable(name) not in skipped}
    then = DataIdentity(None, manifest.classes, manifest.values, {data.split: "then"}, {data.split: sources})
    now = DataIdentity(
        None, source.classes.names, source.label_values(), {data.split: "now"}, {data.split: files}
    )
    meaning = then.changed_meaning(now)
    if meaning and not accept:
        raise DataError(
            f"{root}: was prepared when labels meant something else ({told(meaning)});\n"
            f"prepare {manifest.source} again into another folder, or go on all the same with {FLAG}"
        )
    changes = meaning + (then.changed_files(now) if sources else [])
    return f"{root}: {manifest.source} has changed since it was prepared ({told(changes)})" if changes else ""


def _sources(data: SegmentationDataset) -> Iterator[tuple[str, Stamp]]:
    """Name and stamps of each sample's files, as the index of a prepared set has them."""
    if isinstance(data, FileDataset):
        for index in range(len(data)):
            yield data.name(index), data.source_stamp(index) or ()
