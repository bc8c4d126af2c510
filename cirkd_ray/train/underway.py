"""What a run tells while it is under way: lines of metrics, whole validations, messages, how far it is."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.train.distributed import World
from cirkd_ray.train.heartbeat import Heartbeat, Phase
from cirkd_ray.train.patience import Patience
from cirkd_ray.train.progress import RunProgress
from cirkd_ray.train.reporter import Ending, Listener
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Interrupted, Stopped, asked


def say_now(text: str, directory: RunDirectory, listeners: Sequence[Listener], world: World) -> None:
    """Tell it as far as that is possible now; each rank speaks for itself."""
    for listener in listeners if world.is_main else ():
        with suppress(OSError):
            listener.message(text)
    if not world.is_main:
        with suppress(OSError):
            directory.log(f"worker {world.rank} on {socket.gethostname()}: {text}", rank=world.rank)


class Underway:
    """Tells a run's listeners, and its directory what a resumed run will need; ranks but the main are silent.

    Steps are counted alike in all that a run says: at step N, N steps are done; step N is the one after
    which that is so.

    Args:
        directory: the run's.
        listeners: of the main rank.
        world: this rank among its peers.
        heartbeat: notes what this rank begins.
        storage_timeout: seconds to wait for a disk that is full or away.
        asked_to_stop: asked while it waits.

    Attributes:
        patience: waits for storage, and says so.
    """

    def __init__(
        self,
        directory: RunDirectory,
        listeners: Sequence[Listener],
        world: World,
        heartbeat: Heartbeat,
        storage_timeout: float = 0.0,
        asked_to_stop: Callable[[], bool] = asked,
    ) -> None:
        self.directory, self.world, self.heartbeat = directory, world, heartbeat
        self.listeners = listeners if world.is_main else ()
        self.asked_to_stop = asked_to_stop
        self.patience = Patience(storage_timeout, directory, self._say, self._rest)

    def _say(self, text: str) -> None:
        say_now(text, self.directory, self.listeners, self.world)

    def _rest(self) -> None:
        """Between two tries of what cannot be written or read.

        Raises:
            Interrupted: asked to stop.
        """
        self.heartbeat.alive()
        if self.asked_to_stop():
            raise Interrupted("stopped while waiting for storage")

    def _each(self, act: Callable[[Listener], None]) -> None:
        for listener in self.listeners:
            self.patience.write(partial(act, listener))

    def start(self, spec: Mapping[str, Any], step: int) -> None:
        """Training begins after `step` steps."""
        self._each(lambda listener: listener.start(dict(spec), step))

    def message(self, text: str) -> None:
        """Something that the user should know."""
        self._each(lambda listener: listener.message(text))

    def scoring(self, phase: Phase, what: str, step: int, total: int) -> Callable[[int], None]:
        """The scoring of `total` images on all ranks begins.

        Args:
            phase: of the heartbeat.
            what: what is scored, to be shown.
            step: steps that are done.
            total: how many images there are.

        Returns:
            What to call after each batch with the number of this rank's images in it.
        """
        mine = 0

        def advance(images: int) -> None:
            nonlocal mine
            mine += images
            self.heartbeat.note(phase, step, mine)
            self._each(lambda listener: listener.underway(what, min(mine * self.world.size, total), total))

        advance(0)
        return advance

    def line(self, done: int, metrics: Mapping[str, Any], result: EvaluationResult | None) -> None:
        """A line of metrics, and the validation that it holds the scores of."""
        if not self.world.is_main:
            return
        self.patience.write(lambda: self.directory.append_metrics(metrics))
        self._each(lambda listener: listener.metrics(done, metrics))
        if result is not None:
            self._each(lambda listener: listener.validation(done, result))

    def validated(self, done: int, progress: RunProgress) -> None:
        """A validation is over, and its scores are in `progress`."""
        if self.world.is_main:
            self.patience.write(lambda: self.directory.append_validation(done, progress.best, progress.last))

    def checkpoint(self, step: int) -> None:
        """A checkpoint of that step is written."""
        for listener in self.listeners:
            with suppress(Exception):  # it is there, whoever hears of it
                listener.checkpoint(step)

    def close(self, ended: object) -> None:
        """The run is over here.

        Args:
            ended: its result, or the error that ended it.
        """
        how: Ending = "failed" if isinstance(ended, BaseException) else "finished"
        for listener in self.listeners:
            with suppress(Exception):  # how the run ended is the one thing to tell
                listener.close("stopped" if isinstance(ended, Stopped) else how)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run has this result."""
        if self.world.is_main:
            self.patience.write(lambda: self.directory.write_result(result))
        self._each(lambda listener: listener.finish(result))
