"""One worker of a run under Ray Train: the ordinary training loop, whose reports go to Ray."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from cirkd_ray.cluster.donors import hold
from cirkd_ray.cluster.membership import End, Joining, how_ended, is_to_leave, note_ended
from cirkd_ray.cluster.prometheus import PrometheusGauges
from cirkd_ray.cluster.pulse import Pulse
from cirkd_ray.cluster.staging import staged
from cirkd_ray.cluster.stopping import StopWatch, part_of, uploaded_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.device import bound_memory
from cirkd_ray.errors import ConfigError, TrainingError, TransientError, UserError, first_line
from cirkd_ray.remote import mirror
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.remote.mirror import soon
from cirkd_ray.remote.reading import fetch_folder
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.loggers import chosen_loggers
from cirkd_ray.train.checkpoint import keep_newest, list_checkpoints
from cirkd_ray.train.distributed import World, broadcast_object
from cirkd_ray.train.entry import Ended, Entry
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.loop import train_cohort
from cirkd_ray.train.outcome import write_failure
from cirkd_ray.train.preemption import Notice
from cirkd_ray.train.reporter import Listener, LocalReporter, Reporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.snapshot import BackgroundWriter, Snapshot
from cirkd_ray.train.stop import Interrupted, Stopped


class RayReporter:
    """Hands validations and checkpoints to Ray Train; checkpoints are written while training goes on.

    The last one is waited for, so that a run is only finished when all of it is in its directory.

    Args:
        directory: the run's.
        spec: of the run.
        known_as: the folder of checkpoints on the driver's machine, which Ray takes them to be in.
    """

    def __init__(self, directory: RunDirectory, spec: RunSpec, known_as: Path | None = None) -> None:
        self.asynchronous = spec.cluster.async_checkpoints
        self.kept, self.keep = directory.checkpoints, spec.train.keep_checkpoints
        self.writer = BackgroundWriter()
        self.known_as = known_as or directory.checkpoints
        # One that is written again was passed over as damaged. It gets a name of its own: Ray knows them
        # by name.
        self.taken = {path.name for path in list_checkpoints(directory.checkpoints)}

    def report(self, metrics: Mapping[str, float], checkpoint: Snapshot | None, last: bool) -> None:
        """Every rank takes part; Ray hears of a checkpoint when it is written."""
        if checkpoint is None:
            soon(self.kept.parent)
        modes = ray.train.CheckpointUploadMode
        folder = None if checkpoint is None else self._begin(checkpoint)
        ray.train.report(
            dict(metrics),
            checkpoint=None if folder is None else self._checkpoint(folder),
            checkpoint_dir_name=None if folder is None else folder.name,  # the main rank's holds
            checkpoint_upload_mode=modes.ASYNC if self.asynchronous and not last else modes.SYNC,
            checkpoint_upload_fn=partial(self._written, self.writer.pending),
            delete_local_checkpoint_after_upload=False,
        )
        if last:
            self.settle()

    def check(self) -> None:
        """Look how the writer ended, if it has."""
        self.writer.check()

    def settle(self) -> None:
        """Wait for the writer."""
        self.writer.settle()

    def _begin(self, checkpoint: Snapshot) -> Path:
        """Write a checkpoint to the run's directory in the background; returns its folder."""
        name = checkpoint.name
        while name in self.taken:
            name += "-again"
        folder = self.kept / name

        def write() -> None:
            checkpoint.write(folder)
            keep_newest(self.kept, self.keep)
            soon(self.kept.parent)

        self.writer.start(write)
        return folder

    def _checkpoint(self, folder: Path) -> ray.train.Checkpoint:
        """Ray's name of a checkpoint."""
        return ray.train.Checkpoint.from_directory(str(self.known_as / folder.name))

    @staticmethod
    def _written(
        pending: Future[None] | None, checkpoint: ray.train.Checkpoint, name: str
    ) -> ray.train.Checkpoint:
        """Ray calls this to upload a checkpoint: it is there when the writer is done."""
        if pending is not None:
            pending.result()
        return checkpoint


def work(config: dict[str, Any]) -> None:
    """Train as one rank of a run, or of several that share batches and a teacher.

    Args:
        config: `runs`, each with `spec` (plain values of a resolved RunSpec), `directory` (the run's) and
            `resume_from` (a checkpoint to start from where the directory has none, or None); `directory` (of
            the launch); `known_as` of each and of the launch (its path on the driver's machine); `pack` and
            `holds` (of the launch), `threads` (or None), `gpus` (of a worker), `call` (of the driver) and, if
            it is another than the ordinary one, `heartbeat`.
    """
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    directory, known_as = RunDirectory(copy_of(config["directory"])), Path(config["known_as"])
    world = World.current(ray.train.torch.get_device())
    try:
        bound_memory(world.device, config["gpus"])
        heartbeat: Heartbeat = config.get("heartbeat", Heartbeat)()
        with (
            part_of(config["call"]),
            Pulse(known_as, world, heartbeat),
            ExitStack() as held,
            _written_down(directory.path),
        ):
            runs = _Runs(config, world, held)
            found = runs.train(heartbeat)
            for error in (each for each in found if runs.alone and isinstance(each, Exception)):
                raise error
    except Interrupted:
        raise  # the other ranks wait in a collective: only the run's controller ends them
    except Stopped:
        return  # an error would be retried
    finally:  # Ray kills this process, so that it cannot do so at its end
        shutil.rmtree(get_temp_dir(), ignore_errors=True)


@contextmanager
def _written_down(folder: Path) -> Iterator[None]:
    """Write to a run's folder why the block failed, before that is uploaded for the last time."""
    try:
        yield
    except TransientError:
        raise  # a fresh start from the last checkpoint may get over it
    except UserError as error:
        write_failure(folder, error)
        raise


def preemption_notice() -> Notice | None:
    """What Ray Train knows of workers' nodes that are drained to be taken away; every rank calls it."""
    found = ray.train.get_preemption_info()
    if found is None:
        return None
    return Notice(tuple(found.preempted_ranks), found.deadline_ms and found.deadline_ms / 1000)


class _Runs:
    """What this rank trains: `train.entry.Joins`, too.

    Args:
        config: of `work`.
        world: this worker among its peers.
        held: takes what is to be given back when they have ended.
    """

    def __init__(self, config: Mapping[str, Any], world: World, held: ExitStack) -> None:
        self.runs: Sequence[Mapping[str, Any]] = config["runs"]
        self.pack, self.holds, self.world, self.held = config["pack"], config["holds"], world, held
        self.several_nodes = sum(node["Alive"] for node in ray.nodes()) > 1
        self.joining = Joining(Path(config["known_as"])) if self.pack else None
        self.known: dict[Path, Path] = {}

    @property
    def alone(self) -> bool:
        """Whether there has been one run only."""
        return len(self.runs) + (self.joining.taken if self.joining else 0) == 1

    def train(self, heartbeat: Heartbeat) -> list[Ended]:
        """How each ended; none is left where all had ended when their workers were lost."""
        first, joins = self.first(), self if self.joining else None
        asked, notice = StopWatch(), preemption_notice
        return train_cohort(first, self.world, asked, heartbeat, notice, joins, self.tell) if first else []

    def first(self) -> list[Entry]:
        """Those that are there from the start; of a pack whose workers start again, those that are under way.

        Raises:
            ConfigError: a directory is not seen from here.
        """
        late = self.joining.take(self.world) if self.joining else []
        runs = {run["known_as"]: run for run in (*self.runs, *late)}
        over = [name for name in runs if self.pack and self.world.is_main and how_ended(Path(name))]
        over = broadcast_object(over, self.world)
        return [self._entry(run) for name, run in runs.items() if name not in over]

    def asked(self) -> bool:
        """Whether there are runs that join."""
        return self.joining is not None and self.joining.asked()

    def take(self, world: World) -> list[Entry]:
        """Those runs."""
        return [self._entry(run) for run in (self.joining.take(world) if self.joining else ())]

    def _entry(self, run: Mapping[str, Any]) -> Entry:
        """A run; checkpoints of one that is alone go through Ray, so that a trial around it hears of them."""
        directory, spec = RunDirectory(copy_of(run["directory"])), from_tree(run["spec"])
        known = self.known[directory.path] = Path(run["known_as"])
        _open(directory, spec, self.world, self.held)
        spec = self.held.enter_context(staged(spec)) if self.several_nodes else spec
        listeners: list[Listener] = []
        if self.world.is_main:
            listeners = [RunLog(directory, 0), PrometheusGauges(directory), *chosen_loggers(spec, directory)]
        reporter: Reporter = RayReporter(directory, spec, RunDirectory(known).checkpoints)
        if self.pack or len(self.runs) > 1:
            keep, background = spec.train.keep_checkpoints, spec.cluster.async_checkpoints
            written = hold if self.holds else lambda path: None
            reporter = LocalReporter(directory.checkpoints, keep, background, written)
        start = copy_of(run["resume_from"]) if run["resume_from"] else None
        leaves = StopWatch(partial(is_to_leave, known)) if self.pack else None
        return Entry(spec, directory, reporter, listeners, start, leaves, self.holds)

    def tell(self, entry: Entry, how: Ended) -> None:
        """Write down why a member failed, and let the others' driver know that it has ended.

        The error of one that is alone is raised in the end instead, and retried where that may help.
        """
        place, end = entry.directory.path, End()
        failed = isinstance(how, Exception) and not isinstance(how, Stopped)
        if not self.world.is_main or (failed and self.alone):
            return
        if isinstance(how, Exception):
            error = how
            if not isinstance(how, UserError | Stopped):
                error = TrainingError(f"{place}: {type(how).__name__}: {first_line(how)}")
            end = End(type(error).__name__, str(error))
            if failed:
                write_failure(place, error)
        if self.pack:
            with suppress(Exception):  # the head may be away: then it is known when all have ended
                mirror.flush(place)
                note_ended(self.known[place], end)


def _open(directory: RunDirectory, spec: RunSpec, world: World, held: ExitStack) -> None:
    """See a run's directory; behind a URL, the main rank takes what is there and uploads what it writes.

    Args:
        directory, spec: the run's.
        world, held: as of `_Runs`.

    Raises:
        ConfigError: it is not seen from here.
    """
    if world.is_main:
        held.enter_context(uploaded_run(directory, spec))
    else:
        fetch_folder(directory.path)
    if not directory.recipe.is_file():
        raise ConfigError(
            f"--out: {directory.path} is not there on the node of worker {world.rank}; "
            "give a URL, or a folder of storage that all nodes share"
        )
