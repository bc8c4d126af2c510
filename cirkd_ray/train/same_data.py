"""Whether what a folder holds was trained on the data that are there now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cirkd_ray.config import RunSpec
from cirkd_ray.data import DATASETS, SegmentationDataset, build_dataset
from cirkd_ray.data.base import Stamp
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.identity import DATA, DataIdentity, identity
from cirkd_ray.data.prepared import PreparedDataset
from cirkd_ray.data.storage import printable
from cirkd_ray.errors import ConfigError, DataError, UserError
from cirkd_ray.remote.reading import fetch_near
from cirkd_ray.train.build import build_datasets
from cirkd_ray.train.rundir import RunDirectory

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
        """Look at the files of a recipe's splits, and at what a few of them hold.

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
        """That of another recipe, which mostly has the same data, and holds its teacher against them, too."""
        if spec.data != self.spec.data:
            return DataGuard.of(spec, self.accept, self.say)
        guard = replace(self, spec=spec)
        if _weights(spec) != _weights(self.spec):
            guard._hold_teacher()
        return guard

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
            changes = self._changes(folder)
            trouble = f"was begun with other data ({told(changes)})" if changes else ""
            _refuse(folder, trouble, way_on, self.accept, self.say)
            if trouble:
                with suppress(OSError):
                    RunDirectory(folder).log(f"{trouble}; it was accepted with {FLAG}")
        self.adopt(folder, begun)
        self.now.write(folder)

    def _hold_teacher(self) -> None:
        """Require that labels mean what they meant when the teacher of the recipe was trained on this set."""
        weights = _weights(self.spec)
        if weights is not None:
            found = other_meaning(weights, self.now)
            trouble = f"{weights} {found}" if found else ""
            _refuse("teacher.weights", trouble, "train the teacher anew", self.accept, self.say)

    def adopt(self, folder: Path, begun: bool) -> None:
        """Write these data into a folder that names none, and say so where it was there before."""
        if DataIdentity.read(folder) is None:
            if begun:
                self.say(f"{folder}: does not say what its data were; they are taken for those of now")
            self.now.write(folder)

    def mark(self, folder: Path) -> None:
        """Keep what the data are in the folder of one of many runs, without the names of all files."""
        if DataIdentity.read(folder) is None:
            self.now.write(folder, listing=False)

    def shared(self, folder: Path) -> Path:
        """Where what several runs share is trained: in `folder`, or beside it where that is of other data.

        Data are known by what labels mean, by names, sizes and times of files and by the contents of a few,
        not by their place: they may be moved, and copied where the copy keeps all times or none (see
        `DataIdentity.changes`).
        """
        fetch_near(folder, lambda name: name.startswith(folder.name))
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


def _weights(spec: RunSpec) -> str | None:
    return None if spec.teacher is None else spec.teacher.weights


def other_meaning(network: str, now: DataIdentity) -> str:
    """How labels of a data set changed since a network was trained on it, if they did; empty if not.

    Args:
        network: a run's folder or a file in it; nothing is known of others.
        now: the data set.
    """
    before = DataIdentity.near(network)
    if before is None or not before.same_set(now):
        return ""
    changes = before.changed_meaning(now)
    trouble = f"was trained when labels of {before.root} meant something else"
    return f"{trouble} ({told(changes)})" if changes else ""


def hold_network(network: str, data: SegmentationDataset, split: str, accept: bool, say: Say) -> None:
    """Require that labels of a split mean what they meant when a network was trained on this data set.

    Args:
        network: a run's folder or a file in it; others say nothing of what they were trained on.
        data: the split that it is evaluated on.
        split: its name.
        accept: only say it.
        say: hears that, and whether files of the split have changed since.

    Raises:
        ConfigError: labels mean something else now.
        DataError: they do in what a prepared set was made of.
    """
    if isinstance(data, PreparedDataset) and (note := _compare_source(data, str(data.place), accept)):
        say(note)
    before = DataIdentity.near(network)
    if before is None:
        return
    now = identity({split: data})
    trouble = other_meaning(network, now)
    _refuse(network, trouble, "evaluate a network that was trained since", accept, say)
    known = split in before.splits and before.root == now.root
    if changes := before.only([split]).changed_files(now) if known else []:
        say(f"{network}: files of the data have changed since it was trained ({told(changes)})")


def _refuse(subject: object, trouble: str, way_on: str, accept: bool, say: Say) -> None:
    """Raise a `ConfigError` with what changed, if anything did, or say it where that is accepted."""
    if trouble and not accept:
        raise ConfigError(f"{subject}: {trouble};\n{way_on}, or go on all the same with {FLAG}")
    if trouble:
        say(f"{subject}: {trouble}; it is used all the same")


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
