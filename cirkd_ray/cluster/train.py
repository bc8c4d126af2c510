"""A run as a Ray Train job: the same loop in every worker, retries from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from cirkd_ray.cluster.capacity import check_places
from cirkd_ray.cluster.gathering import for_workers
from cirkd_ray.cluster.resources import Plan, plan_run, worker_threads
from cirkd_ray.cluster.restarts import TellPlaced, TellPreempted, TellRestarts
from cirkd_ray.cluster.stopping import StartNoStopped, has_workers, interruptible, stop_is_asked, this_call
from cirkd_ray.cluster.watch import watched
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import StorageError, TrainingError, TransientError, UserError
from cirkd_ray.remote import mirror
from cirkd_ray.remote.copies import address
from cirkd_ray.report.loggers import require_loggers
from cirkd_ray.train.checkpoint import last_step, newest_checkpoint
from cirkd_ray.train.distributed import collective_timeout
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.outcome import FAILURE, read_failure
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Interrupted, Stopped

RAYS_LIST = "checkpoint_manager_snapshot.json"


class StopOnUserError(UserCallback):  # type: ignore[misc]
    """Ends a run at once when a worker failed for a reason that no retry can mend."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """An exception here is Ray Train's way to stop instead of retrying."""
        failure = read_failure(Path(self.directory))
        if failure is not None:
            raise failure
        for error in worker_exceptions.values():  # where the run's directory could not be written
            reason = getattr(error, "_base_exc", error)
            if isinstance(reason, (UserError, Interrupted)) and not isinstance(reason, TransientError):
                raise reason


def _worker(config: dict[str, Any]) -> None:
    """Imported by name in a run's controller as well, which has no use for the network code of a worker."""
    from cirkd_ray.cluster.worker import work

    work(config)


@dataclass(frozen=True)
class Launch:
    """What workers are started for: one run, or several that share batches and a teacher.

    Attributes:
        runs: (resolved recipe, directory, checkpoint to start from where that has none) of each.
        directory: where the workers' failures and signs of life are told: the run's, or one for all.
        pack: runs are trials', which leave and join.
        holds: as of `fit_pack`.
        heartbeat: makes each worker's; None: the ordinary one.
    """

    runs: Sequence[tuple[RunSpec, RunDirectory, Path | None]]
    directory: RunDirectory
    pack: bool = False
    holds: bool = False
    heartbeat: Callable[[], Heartbeat] | None = None

    @property
    def spec(self) -> RunSpec:
        """Of the first; what decides workers is equal in all."""
        return self.runs[0][0]


def make_trainer(launch: Launch, plan: Plan, callbacks: Sequence[UserCallback] = ()) -> TorchTrainer:
    """The trainer of one launch; checkpoints go to the runs' `checkpoints`."""
    spec, directory = launch.spec, launch.directory
    folders = [str(run.path) for _, run, _ in launch.runs]
    return TorchTrainer(
        _worker,
        train_loop_config={
            "runs": [for_workers(each, run.path, start) for each, run, start in launch.runs],
            "directory": address(directory.path),
            "known_as": str(directory.path),
            "pack": launch.pack,
            "holds": launch.holds,
            **({} if launch.heartbeat is None else {"heartbeat": launch.heartbeat}),
            "call": this_call(),
            "threads": worker_threads(plan, spec),
            "gpus": plan.gpus,
        },
        scaling_config=ScalingConfig(
            num_workers=plan.workers,
            use_gpu=plan.gpus > 0,
            resources_per_worker=plan.per_worker(),
            placement_strategy="STRICT_SPREAD" if plan.spread else "PACK",
        ),
        torch_config=TorchConfig(
            backend="nccl" if plan.gpus else "gloo",
            timeout_s=int(collective_timeout(spec.cluster.storage_timeout).total_seconds()),
        ),
        run_config=RunConfig(
            name=directory.checkpoints.name,
            storage_path=str(directory.path),
            # A machine that was taken away after a notice is no failure.
            failure_config=FailureConfig(max_failures=spec.cluster.max_failures, max_preemption_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=None),  # RayReporter keeps the newest whole ones
            callbacks=[
                StopOnUserError(str(directory.path)),
                StartNoStopped(this_call(), str(directory.path)),
                TellPlaced(str(directory.path), spec.cluster.max_failures, folders),
                TellRestarts(str(directory.path), spec.cluster.max_failures, folders),
                TellPreempted(str(directory.path), folders),
                *callbacks,
            ],
        ),
    )


def fit(
    spec: RunSpec,
    directory: RunDirectory,
    callbacks: Sequence[UserCallback] = (),
    resume_from: Path | None = None,
    heartbeat: Callable[[], Heartbeat] | None = None,
) -> dict[str, Any]:
    """Run a resolved recipe on the Ray that this process has joined; returns the run's result.

    Raises:
        UserError: the run does not fit the cluster, or failed for a reason that a user can mend.
        TrainingError: workers kept failing; the message names the last checkpoint.
        Stopped: asked to; its last checkpoint is written.
    """
    _start(Launch([(spec, directory, resume_from)], directory, heartbeat=heartbeat), callbacks)
    result = directory.read_result()
    if result is None:
        if stop_is_asked():
            step = last_step(directory.checkpoints)
            raise Stopped(f"stopped at step {step}" if step else "stopped before the first step")
        raise TrainingError(f"{directory.path}: the workers ended without a result; continue with --resume")
    return result


def fit_cohort(
    runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path
) -> list[dict[str, Any] | Exception]:
    """`fit` of runs that share batches and a teacher.

    Args:
        runs: resolved recipes that `check_cohort` lets through, with their directories.
        folder: for what is not one run's: the log of their workers.

    Returns:
        Of each its result, or why it has none.

    Raises:
        UserError, TrainingError, Stopped: as of `fit`, where that ended all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _, directory in runs:
        (directory.path / FAILURE).unlink(missing_ok=True)
    _start(Launch([(spec, directory, None) for spec, directory in runs], RunDirectory(folder)))
    places = [directory.path for _, directory in runs]
    found = [RunDirectory(path).read_result() or read_failure(path) for path in places]
    if None in found and stop_is_asked():
        raise Stopped(f"stopped at step {max(last_step(directory.checkpoints) for _, directory in runs)}")
    return [
        each or TrainingError(f"{path}: the workers ended without a result")
        for path, each in zip(places, found, strict=True)
    ]


def fit_pack(work: Sequence[dict[str, Any]], folder: Path, holds: bool) -> None:
    """The same for runs of trials, which may leave, and others join; their directories say how they ended.

    Args:
        work: of each run `spec` (plain values), `directory` and `resume_from` (a checkpoint or None).
        folder: as of `fit_cohort`.
        holds: each checkpoint is held for others that may start from it.

    Raises:
        UserError, TrainingError, Stopped: as of `fit`, where that ended all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        (
            from_tree(run["spec"]),
            RunDirectory(run["directory"]),
            run["resume_from"] and Path(run["resume_from"]),
        )
        for run in work
    ]
    _start(Launch(runs, RunDirectory(folder), True, holds))
    if stop_is_asked():
        raise Stopped("stopped with its pack")


def _start(launch: Launch, callbacks: Sequence[UserCallback] = ()) -> None:
    """Run workers to their end, or until they are stopped.

    Raises:
        UserError, TrainingError: as of `fit`.
    """
    spec, directory = launch.spec, launch.directory
    for each, _, _ in launch.runs:
        require_loggers(each)
    plan = plan_run(spec, ray.cluster_resources())
    check_places(plan, spec)
    (directory.path / FAILURE).unlink(missing_ok=True)
    # Ray's list of checkpoints, which it would want to find all of; the run knows its own.
    (directory.checkpoints / RAYS_LIST).unlink(missing_ok=True)
    trainer = make_trainer(launch, plan, callbacks)
    try:
        for _, run, _ in launch.runs:
            mirror.hand_over(run.path)
        if not stop_is_asked():
            with watched(spec, directory):
                interruptible(trainer.fit, lambda: has_workers(str(directory.path)))
    except Stopped:
        pass
    except ray.train.TrainingFailedError as error:
        reason = getattr(error, "controller_failure", None)
        if not isinstance(reason, Stopped):
            known = reason if isinstance(reason, UserError) else read_failure(directory.path)
            raise known or _explain(error, directory) from error
    finally:
        for _, run, _ in launch.runs:
            with suppress(StorageError):  # what is missing then is named
                mirror.retake(run.path)


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
    told = "; ".join(sorted(reasons)) or type(error).__name__
    return TrainingError(f"{directory.path}: the workers failed ({told});\n{left}")
