"""A run as a Ray Train job: the same loop in every worker, retries from the last checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from cirkd_ray import errors
from cirkd_ray.cluster.capacity import check_places
from cirkd_ray.cluster.resources import Plan, plan_run
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.staging import staged
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import ConfigError, TrainingError, TransientError, UserError
from cirkd_ray.files import write_text
from cirkd_ray.report.follow import Follower
from cirkd_ray.report.listeners import RunLog, TensorBoardListener
from cirkd_ray.train.checkpoint import list_checkpoints, newest_checkpoint
from cirkd_ray.train.distributed import World
from cirkd_ray.train.loop import train
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import Runner

FAILURE = "failure.json"


class RayReporter:
    """Hands validations and checkpoints to Ray Train; checkpoints go up while training goes on.

    The last one is waited for, so that a run is only finished when all of it is in its directory.

    Args:
        directory: the run's.
        steps: of the run.
        asynchronous: whether training goes on meanwhile.
    """

    def __init__(self, directory: RunDirectory, steps: int, asynchronous: bool) -> None:
        self.steps, self.asynchronous = steps, asynchronous
        self.local = local_checkpoints(directory)
        # One that is written again was passed over as damaged. It gets a name of its own, because Ray will
        # prune the damaged one by its name.
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

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Every rank takes part."""
        modes, last = ray.train.CheckpointUploadMode, int(metrics["step"]) >= self.steps
        ray.train.report(
            dict(metrics),
            checkpoint=None if checkpoint is None else ray.train.Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=None if checkpoint is None else checkpoint.name,  # the main rank's holds
            checkpoint_upload_mode=modes.ASYNC if self.asynchronous and not last else modes.SYNC,
            delete_local_checkpoint_after_upload=True,
        )
        if last and checkpoint is not None:
            with contextlib.suppress(OSError):
                self.local.rmdir()


def local_checkpoints(directory: RunDirectory) -> Path:
    """Where a run's checkpoints lie on a worker's node until they are in its directory."""
    digest = hashlib.sha256(str(directory.path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cirkd-checkpoints-{os.getuid()}-{digest}"


class StopOnUserError(UserCallback):  # type: ignore[misc]
    """Ends a run at once when a worker failed for a reason that no retry can mend."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """An exception here is Ray Train's way to stop instead of retrying."""
        failure = read_failure(RunDirectory(self.directory))
        if failure is not None:
            raise failure
        for error in worker_exceptions.values():  # of a node that does not see the run's directory
            reason = getattr(error, "_base_exc", error)
            if isinstance(reason, UserError) and not isinstance(reason, TransientError):
                raise reason


def worker(config: dict[str, Any]) -> None:
    """One rank of a run.

    Args:
        config: `spec` (plain values of a resolved RunSpec), `directory` (the run's), `resume_from` (a
            checkpoint to start from where the directory has none, or None) and `threads` (or None).
    """
    if config.get("threads"):
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
        reporter = RayReporter(directory, spec.train.steps, spec.cluster.async_checkpoints)
        resume_from = config.get("resume_from")
        train(spec, world, directory, reporter, listeners, Path(resume_from) if resume_from else None)
    except TransientError:
        raise  # a fresh start from the last checkpoint may get over it
    except UserError as error:
        write_failure(directory, error)
        raise


def write_failure(directory: RunDirectory, error: UserError) -> None:
    """Leave the reason of a failure where the driver finds it."""
    if directory.path.is_dir():
        write_text(
            directory.path / FAILURE, json.dumps({"kind": type(error).__name__, "message": str(error)})
        )


def read_failure(directory: RunDirectory) -> UserError | None:
    """The reason that a worker left, as the exception that it was."""
    path = directory.path / FAILURE
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    kind = getattr(errors, found["kind"], UserError)
    return kind(found["message"])


def make_trainer(
    spec: RunSpec,
    directory: RunDirectory,
    plan: Plan,
    callbacks: Sequence[UserCallback] = (),
    resume_from: Path | None = None,
) -> TorchTrainer:
    """The trainer of one run; its checkpoints go to the run's `checkpoints`."""
    return TorchTrainer(
        worker,
        train_loop_config={
            "spec": spec.to_dict(),
            "directory": str(directory.path),
            "resume_from": str(resume_from) if resume_from else None,
            # Ray gives a worker a thread a CPU, also for those that its loader processes take.
            "threads": None if "OMP_NUM_THREADS" in os.environ else max(1, int(plan.cpus) - spec.data.workers),
        },
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.gpus > 0, resources_per_worker=plan.per_worker()
        ),
        torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
        run_config=RunConfig(
            name=directory.checkpoints.name,
            storage_path=str(directory.path),
            failure_config=FailureConfig(max_failures=spec.cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=spec.train.keep_checkpoints),
            callbacks=[StopOnUserError(str(directory.path)), *callbacks],
        ),
    )


def fit(
    spec: RunSpec,
    directory: RunDirectory,
    callbacks: Sequence[UserCallback] = (),
    resume_from: Path | None = None,
) -> dict[str, Any]:
    """Run a resolved recipe on the Ray that this process has joined; returns the run's result.

    Raises:
        UserError: the run does not fit the cluster, or failed for a reason that a user can mend.
        TrainingError: workers kept failing; the message names the last checkpoint.
    """
    plan = plan_run(spec, ray.cluster_resources())
    check_places(plan, spec)
    (directory.path / FAILURE).unlink(missing_ok=True)
    trainer = make_trainer(spec, directory, plan, callbacks, resume_from)
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise read_failure(directory) or _explain(error, directory) from error
    result = directory.read_result()
    if result is None:
        raise TrainingError(f"{directory.path}: the workers ended without a result; continue with --resume")
    return result


@contextlib.contextmanager
def ray_runner() -> Iterator[Runner]:
    """`fit` on the environment's cluster or a local one, with its progress shown here.

    Ray is joined or started by the first run, and left at the end of the block.
    """
    with contextlib.ExitStack() as session:

        def run(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
            cluster = spec.cluster
            cpus = 1 + spec.data.workers if cluster.cpus_per_worker == "auto" else cluster.cpus_per_worker
            workers = 1 if cluster.workers == "auto" else cluster.workers
            session.enter_context(ray_session(minimum_cpus=workers * cpus))
            with Follower(directory, spec.train.steps):
                return fit(spec, directory)

        yield run


def _explain(error: Exception, directory: RunDirectory) -> TrainingError:
    """The last line that says what happened, and what is left."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    reasons = {str(failure).strip().splitlines()[-1] for failure in failures.values() if str(failure).strip()}
    kept = newest_checkpoint(directory.checkpoints, lambda text: None)
    left = (
        f"the last good checkpoint is {kept}; continue with --resume"
        if kept
        else "no checkpoint was written before"
    )
    return TrainingError(
        f"the workers failed ({'; '.join(sorted(reasons)) or type(error).__name__});\n{left}"
    )
