"""One worker of a run under Ray Train: the ordinary training loop, whose reports go to Ray."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from cirkd_ray.cluster.prometheus import PrometheusGauges
from cirkd_ray.cluster.pulse import Pulse
from cirkd_ray.cluster.staging import staged
from cirkd_ray.cluster.stopping import StopWatch, is_to_leave, part_of, uploaded_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.device import bound_memory
from cirkd_ray.errors import ConfigError, TransientError, UserError
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.remote.mirror import soon
from cirkd_ray.remote.reading import fetch_folder
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.loggers import chosen_loggers
from cirkd_ray.train.checkpoint import keep_newest, list_checkpoints
from cirkd_ray.train.distributed import World
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.loop import Ended, Entry, train_cohort
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
            the launch); `known_as` of each and of the launch (its path on the driver's machine); `threads`
            (or None), `gpus` (of a worker), `leaving` (of the launch), `call` (of the driver) and, if it is
            another than the ordinary one, `heartbeat`.
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
            entries = _entries(config, world, held)
            ended = train_cohort(entries, world, StopWatch(), heartbeat, preemption_notice)
            _tell_failures(entries, ended, world)
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


def _entries(config: Mapping[str, Any], world: World, held: ExitStack) -> list[Entry]:
    """The runs; checkpoints of one that is alone go through Ray, so that a trial around it hears of them.

    Args:
        config: of `work`.
        world: this worker among its peers.
        held: takes what is to be given back when they have ended.

    Raises:
        ConfigError: a directory is not seen from here.
    """
    several_nodes = sum(node["Alive"] for node in ray.nodes()) > 1
    runs: Sequence[Mapping[str, Any]] = config["runs"]
    entries = []
    for run in runs:
        directory, spec = RunDirectory(copy_of(run["directory"])), from_tree(run["spec"])
        _open(directory, spec, world, held)
        spec = held.enter_context(staged(spec)) if several_nodes else spec
        listeners: list[Listener] = []
        if world.is_main:
            listeners = [RunLog(directory, 0), PrometheusGauges(directory), *chosen_loggers(spec, directory)]
        reporter: Reporter = RayReporter(directory, spec, RunDirectory(run["known_as"]).checkpoints)
        if len(runs) > 1:
            keep, background = spec.train.keep_checkpoints, spec.cluster.async_checkpoints
            reporter = LocalReporter(directory.checkpoints, keep, background)
        start = copy_of(run["resume_from"]) if run["resume_from"] else None
        leaves = StopWatch(partial(is_to_leave, Path(run["known_as"]).parent)) if config["leaving"] else None
        entries.append(Entry(spec, directory, reporter, listeners, start, leaves))
    return entries


def _open(directory: RunDirectory, spec: RunSpec, world: World, held: ExitStack) -> None:
    """See a run's directory; behind a URL, the main rank takes what is there and uploads what it writes.

    Args:
        directory, spec: the run's.
        world, held: as of `_entries`.

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


def _tell_failures(entries: Sequence[Entry], ended: Sequence[Ended], world: World) -> None:
    """Write down why members failed.

    Raises:
        Exception: what ended the only run.
    """
    for entry, how in zip(entries, ended, strict=True):
        if isinstance(how, Exception) and len(entries) == 1:
            raise how
        if isinstance(how, Exception) and not isinstance(how, Stopped) and world.is_main:
            write_failure(entry.directory.path, how)
