"""Between a run's Train controller and the Tune trial around it: reports, with pointers to checkpoints.

Ray's own callback forwards no Tune checkpoint, with which PBT silently never exploits. Here the controller
puts every report on a queue; the trial's function takes it off, reports it to Tune, and adds a checkpoint
that only points to where Train has put the real one.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import UserCallback
from ray.util.queue import Empty, Queue

POLL_SECONDS = 0.25
_POINTER = "pointer.json"


@dataclass(frozen=True)
class Pointer:
    """A checkpoint of a run, as a trial's checkpoint.

    Attributes:
        trial: whose run it is.
        path: of the checkpoint.
        step: after so many steps.
    """

    trial: str
    path: str
    step: int


class Bridge(UserCallback):  # type: ignore[misc]
    """In the Train controller: hands every report on."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """All ranks have reported; their figures are equal."""
        self.queue.put((dict(metrics[0]), None if checkpoint is None else str(checkpoint.path)))


class Fit(threading.Thread):
    """A call of `fit` in the background, whose reports are iterated over."""

    def __init__(self, call: Callable[[Bridge], Any]) -> None:
        super().__init__(daemon=True, name="fit")
        self.queue = Queue(actor_options={"num_cpus": 0})
        self.call = call
        self.error: BaseException | None = None

    def run(self) -> None:
        """Train; an error is kept for `reports`."""
        try:
            self.call(Bridge(self.queue))
        except BaseException as error:
            self.error = error

    def reports(self) -> Iterator[tuple[dict[str, Any], str | None]]:
        """(metrics, path of a checkpoint or None) as they come, until the call has ended.

        Raises:
            BaseException: what the call raised, after its last report.
        """
        self.start()
        try:
            while True:
                ended = not self.is_alive()  # before the look at the queue, so that nothing is left in it
                try:
                    yield self.queue.get(block=not ended, timeout=POLL_SECONDS)
                except Empty:
                    if ended:
                        break
        finally:
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
    """What Tune asks the trial to go on from: its own last checkpoint, or a donor's."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Pointer(**json.loads((Path(folder) / _POINTER).read_text()))
