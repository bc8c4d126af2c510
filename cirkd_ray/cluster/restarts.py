"""One line in the run's log for each failure of its workers: who, why, and from where they start again."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray.train import PreemptionError, UserCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from cirkd_ray.cluster import pulse
from cirkd_ray.errors import TrainingError, first_line
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.train.checkpoint import last_step
from cirkd_ray.train.rundir import RunDirectory

_WITHOUT_PEER = ("closed by peer", "reset by peer", "Broken pipe", "ncclRemoteError", "NCCL", "gloo")
"""What a worker says whose collective ended because another worker did."""
_GONE = "its process is gone: it was killed (is its node short of memory?) or crashed"


class TellRestarts(UserCallback):  # type: ignore[misc]
    """Tells each restart of a run's workers.

    Args:
        directory: the run's.
        most: restarts that are allowed.
        runs: directories of the runs that the workers train; they start again where the last of them is.
    """

    def __init__(self, directory: str, most: int, runs: Sequence[str]) -> None:
        self.directory, self.most, self.runs, self.count = directory, most, runs, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Write the line; runs in the run's controller."""
        if any(_is_preempted(error) for error in worker_exceptions.values()):
            return  # `TellPreempted` does
        self.count += 1
        directory = RunDirectory(self.directory)
        nodes = {sign.rank: sign.node for sign in pulse.signs(directory.path)}
        what = describe(worker_exceptions, nodes, pulse.hung(directory.path))
        with suppress(OSError):  # a log that cannot be written ends no run
            RunLog(directory).message(f"{what}; {follows(self.count, self.most, _step(self.runs))}")
        pulse.restarting(directory.path)


class TellPreempted(ControllerCallback):  # type: ignore[misc]
    """Tells each restart after machines were taken away with a notice: no failure of the run.

    Args:
        directory, runs: as of `TellRestarts`.
    """

    def __init__(self, directory: str, runs: Sequence[str]) -> None:
        self.directory, self.runs = RunDirectory(directory), runs

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Write the line; runs in the run's controller."""
        error = getattr(current_state, "training_failed_error", None)
        failures = getattr(error, "worker_failures", None) or {}
        if isinstance(error, PreemptionError):
            ranks = error.preemption_info.preempted_ranks
        else:
            ranks = [rank for rank, failure in failures.items() if _is_preempted(failure)]
        if not ranks:
            return
        nodes = {sign.rank: sign.node for sign in pulse.signs(self.directory.path)}
        who = ", ".join(f"{rank}" + (f" on {nodes[rank]}" if rank in nodes else "") for rank in ranks)
        text = f"worker {who}: the machine is taken away; the run goes on elsewhere from "
        with suppress(OSError):
            RunLog(self.directory).message(
                f"{text}{_from(_step(self.runs))} (no failure: cluster.max_failures stays)"
            )
        pulse.restarting(self.directory.path)


class TellPlaced(WorkerGroupCallback):  # type: ignore[misc]
    """Notes where workers are placed, and tells where some were placed before and have hung ever since.

    Ray Train itself begins such a start again without end.

    Args:
        directory: the run's.
        most, runs: as of `TellRestarts`.
    """

    def __init__(self, directory: str, most: int, runs: Sequence[str]) -> None:
        self.directory, self.most, self.runs, self.count = RunDirectory(directory), most, runs, 0

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        """Runs in the run's controller; an exception here is Ray Train's way to give up.

        Raises:
            TrainingError: that has happened too often.
        """
        place = self.directory.path
        nodes = {sign.rank: sign.node for sign in pulse.signs(place)}
        if hung := pulse.hung(place):  # a failure of workers that had begun would have deleted it
            self.count += 1
            told = f"{describe({}, nodes, hung)}; {follows(self.count, self.most, _step(self.runs))}"
            with suppress(OSError):
                RunLog(self.directory).message(told)
            if self.count > self.most:
                raise TrainingError(f"{place}: {told}; is the storage of the nodes in order?")
        pulse.place(place, workers)
        return {}


def describe(errors: Mapping[int, Exception], nodes: Mapping[int, str], hung: list[int]) -> str:
    """Which worker failed, on which node, and why.

    Args:
        errors: of the workers that failed, by rank. Some of them failed because another did.
        nodes: the host of each worker, where that is known.
        hung: ranks that were ended because they hung.
    """
    rank = min(hung) if hung else min(errors, key=lambda rank: (_guilt(errors[rank]), rank))
    error = errors.get(rank)
    found = re.search(r"hostname='([^']+)'", str(error))
    node = found[1] if found else nodes.get(rank)
    who = f"worker {rank}" + (f" on {node}" if node else "")
    if error is None or rank in hung:
        return f"{who} was hung and has been ended"
    if _guilt(error) == 0:
        return f"{who} died: {_cause(str(error))}"
    if _guilt(error) == 2:
        return f"{who} lost its connection to another worker"
    return f"{who} failed: {first_line(error)}"


def follows(count: int, most: int, step: int) -> str:
    """What happens after the failure number `count` of `most` that are met by a restart.

    Args:
        step: of the newest checkpoint; 0 without one.
    """
    if count > most:
        return f"no restart is left (cluster.max_failures={most})"
    return f"restart {count} of {most} from {_from(step)}"


def _from(step: int) -> str:
    return f"the checkpoint of step {step}" if step else "the start"


def _step(runs: Sequence[str]) -> int:
    """From which all of them start again."""
    return min(last_step(RunDirectory(run).checkpoints) for run in runs)


def _is_preempted(error: Exception) -> bool:
    """Whether a worker died because its node was taken away after a notice."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))


def _guilt(error: Exception) -> int:
    """0 for a worker that died, 1 for one that failed itself, 2 for one that failed with another."""
    if hasattr(error, "health_check_failure"):
        return 0
    return 2 if any(word in str(error) for word in _WITHOUT_PEER) else 1


def _cause(text: str) -> str:
    """Why a process is gone, in a few words, from Ray's many."""
    if "node has died" in text or "node was terminated" in text or "NODE_DIED" in text:
        return "its node is gone"
    if "low on memory" in text or "NODE_OUT_OF_MEMORY" in text:
        return "Ray ended it because its node was short of memory"
    return _GONE
