"""One worker of a run under Ray Train: the ordinary training loop, whose reports go to Ray."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from cirkd_ray.cluster.staging import staged
from cirkd_ray.cluster.stopping import StopWatch, part_of
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import ConfigError, TransientError, UserError
from cirkd_ray.report.listeners import RunLog, TensorBoardListener
from cirkd_ray.train.checkpoint import copy_checkpoint, keep_newest, list_checkpoints
from cirkd_ray.train.distributed import World
from cirkd_ray.train.loop import train
from cirkd_ray.train.outcome import write_failure
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped


class RayReporter:
    """Hands validations and checkpoints to Ray Train; checkpoints go up while training goes on.

    The last one is waited for, so that a run is only finished when all of it is in its directory.

    Args:
        directory: the run's.
        spec: of the run.
    """

    def __init__(self, directory: RunDirectory, spec: RunSpec) -> None:
        self.asynchronous = spec.cluster.async_checkpoints
        self.kept, self.keep = directory.checkpoints, spec.train.keep_checkpoints
        self.local = local_checkpoints(directory)
        # One that is written again was passed over as damaged. It gets a name of its own: Ray knows them
        # by name.
        self.taken = {path.name for path in list_checkpoints(directory.checkpoints)}
        self.cleared = False

    def checkpoint_folder(self, name: str) -> Path:
        """A folder on this node; Ray moves it to the run's directory."""
        if not self.cleared:  # of what a killed worker left
            shutil.rmtree(self.local, ignore_errors=True)
            self.cleared = True
        while name in self.taken:
            name += "-again"
        return self.local / name

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None, last: bool) -> None:
        """Every rank takes part."""
        modes = ray.train.CheckpointUploadMode
        ray.train.report(
            dict(metrics),
            checkpoint=None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=None if checkpoint is None else checkpoint.name,  # the main rank's holds
            checkpoint_upload_mode=modes.ASYNC if self.asynchronous and not last else modes.SYNC,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=True,
        )
        if last:
            with contextlib.suppress(OSError):
                self.local.rmdir()

    def _upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Copy a checkpoint to the run's directory, whole or not at all, and keep the newest whole ones."""
        copy_checkpoint(Path(checkpoint.path), self.kept / name)
        keep_newest(self.kept, self.keep)
        return ray.train.Checkpoint.from_directory(str(self.kept / name))


def local_checkpoints(directory: RunDirectory) -> Path:
    """Where a run's checkpoints lie on a worker's node until they are in its directory."""
    digest = hashlib.sha256(str(directory.path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cirkd-checkpoints-{os.getuid()}-{digest}"


def work(config: dict[str, Any]) -> None:
    """Train as one rank of a run.

    Args:
        config: `spec` (plain values of a resolved RunSpec), `directory` (the run's), `resume_from` (a
            checkpoint to start from where the directory has none, or None), `threads` (or None) and `call`
            (of the driver).
    """
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    directory = RunDirectory(config["directory"])
    world = World.current(ray.train.torch.get_device())
    try:
        if not directory.recipe.is_file():
            raise ConfigError(
                f"--out: {directory.path} is not there on the node of worker {world.rank}; "
                "runs must be written to storage that all nodes share"
            )
        spec = from_tree(config["spec"])
        if sum(node["Alive"] for node in ray.nodes()) > 1:
            spec = staged(spec)
        listeners = [RunLog(directory), TensorBoardListener(directory)] if world.is_main else []
        reporter = RayReporter(directory, spec)
        resume_from = config["resume_from"]
        parent = Path(resume_from) if resume_from else None
        with part_of(config["call"]):
            train(spec, world, directory, reporter, listeners, parent, StopWatch())
    except Stopped:
        return  # an error would be retried
    except TransientError:
        raise  # a fresh start from the last checkpoint may get over it
    except UserError as error:
        write_failure(directory.path, error)
        raise
    finally:  # Ray kills this process, so that it cannot do so at its end
        shutil.rmtree(get_temp_dir(), ignore_errors=True)
