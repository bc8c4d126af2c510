"""Between a run's Train controller and the Tune trial around it: reports, with pointers to checkpoints.

Ray's own callback forwards no checkpoint to Tune. Without one, PBT silently never exchanges weights. So the
controller puts each report on a queue. The trial's function takes it off and reports it to Tune with a small
checkpoint, which points to the real one in the run's folder.
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import UserCallback
from ray.util.queue import Queue

from cirkd_ray.cluster.donors import hold
from cirkd_ray.cluster.stopping import in_this_call
from cirkd_ray.config import RunSpec
from cirkd_ray.train.rundir import RunDirectory

TrainFunction = Callable[[RunSpec, RunDirectory, Sequence[UserCallback], Path | None], dict[str, Any]]
"""`cluster.train.fit`, or a stand-in in a test: trains a recipe in a directory, from a checkpoint if any."""
POLL_SECONDS = 0.25
TIME = "report"
"""A trial's time: the number of its reports. `training_iteration` starts again after a restore."""
GENERATION_NUMBER = "generation"
"""In a report to Tune: the number of the trial's generation."""
_POINTER = "pointer.json"


@dataclass(frozen=True)
class Pointer:
    """What Tune keeps as a trial's checkpoint: where a checkpoint of its run lies.

    Attributes:
        trial: the trial whose run wrote it.
        path: the checkpoint's folder, below the sweep's `trials`.
        step: the number of steps trained before it.
    """

    trial: str
    path: str
    step: int


class Bridge(UserCallback):  # type: ignore[misc]
    """Runs in the Train controller and puts every report on a queue.

    Args:
        queue: takes (figures, path of a checkpoint or None).
        holds: keep the checkpoint for trials that may be given it.
    """

    def __init__(self, queue: Any, holds: bool = False) -> None:
        self.queue, self.holds = queue, holds

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called when all ranks have reported; their figures are equal."""
        path = None if checkpoint is None else str(checkpoint.path)
        if path is not None and self.holds:
            path = str(hold(Path(path)))
        self.queue.put((dict(metrics[0]), path))


class BackgroundRun(threading.Thread):
    """A run that trains in a thread; `reports` iterates over what it reports.

    Args:
        call: trains, and reports to what it is given.
        holds: as of `Bridge`.
        here: it reports in this process, not in a controller.
    """

    def __init__(self, call: Callable[[Bridge], Any], holds: bool = False, here: bool = False) -> None:
        super().__init__(daemon=True, name="run")
        self.queue = queue.Queue() if here else Queue(actor_options={"num_cpus": 0})
        self.train = in_this_call(lambda: call(Bridge(self.queue, holds)))
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train; an error is kept for `reports`."""
        try:
            self.train()
        except BaseException as error:
            self.error = error

    def reports(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        """Start the run; yield (metrics, path of a checkpoint or None) as they come, until it has ended.

        Raises:
            BaseException: what the run raised, after its last report.
        """
        self.start()
        try:
            while True:
                ended = not self.is_alive()  # before the look at the queue, so that nothing is left in it
                try:
                    yield self.queue.get(block=not ended, timeout=POLL_SECONDS)
                except queue.Empty:
                    if ended:
                        break
        finally:
            if isinstance(self.queue, Queue):
                ray.kill(self.queue.actor)
        if self.error is not None:
            raise self.error


def report(metrics: dict[str, Any], pointer: Pointer | None) -> None:
    """Report to Tune."""
    if pointer is None:
        tune.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="cirkd-pointer-") as folder:
        (Path(folder) / _POINTER).write_text(json.dumps(asdict(pointer)))
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def restored() -> Pointer | None:
    """What Tune asks the trial to resume from: its own last checkpoint, or a donor's."""
    checkpoint = tune.get_checkpoint()
    return None if checkpoint is None else read_pointer(checkpoint)


def read_pointer(checkpoint: Any) -> Pointer:
    """What a checkpoint of Tune's points to."""
    with checkpoint.as_directory() as folder:
        return Pointer(**json.loads((Path(folder) / _POINTER).read_text()))
