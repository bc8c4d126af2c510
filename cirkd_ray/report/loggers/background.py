"""A logger that may be away: called in a thread of its own, so that training neither waits nor ends."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cirkd_ray.errors import first_line
from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.remote.address import shown
from cirkd_ray.report.loggers.base import Logger
from cirkd_ray.train.reporter import Ending, Listener
from cirkd_ray.train.rundir import RunDirectory

MOST = 10_000
"""Calls that are kept while the service is away; then the oldest are dropped."""
TRIES = 8
"""Of one call, with growing pauses: about two minutes. Then it is dropped, as it may be at fault itself."""
LAST_TRIES = 3
"""Of the first call that fails while the run closes; the others are tried once."""
LONGEST = 60.0
"""Seconds between two tries, at most."""
PATIENCE = {"finished": 30.0, "failed": 10.0, "stopped": 5.0}
"""Seconds that the end of a run waits for its last lines to be taken."""

_SECRET = re.compile("KEY|TOKEN|PASSWORD|SECRET")
Call = tuple[str, tuple[Any, ...]]
"""A method's name and its arguments."""


def without_secrets(text: str) -> str:
    """A message without what URLs and the environment hold of credentials."""
    values = (value for name, value in os.environ.items() if _SECRET.search(name.upper()) and len(value) > 5)
    for value in values:
        text = text.replace(value, "***")
    return shown(text)


class InBackground(Listener):
    """Hands calls on, in their order.

    An error is said once in the run's log, and that it is over; calls are tried again meanwhile, so that a
    service that was away gets what it missed.

    Args:
        name: of the logger, for messages.
        make: makes it from the run's directory; called in the thread, too.
        directory: the run's.
        pause: seconds before the second try; doubled each time.
    """

    def __init__(
        self, name: str, make: Callable[[RunDirectory], Logger], directory: RunDirectory, pause: float = 1.0
    ) -> None:
        self.name, self.make, self.directory, self.pause = name, make, directory, pause
        self._inner: Logger | None = None
        self._calls: deque[Call] = deque(maxlen=MOST)
        self._there, self._closing, self._over = threading.Condition(), threading.Event(), threading.Event()
        self._away, self._begun = False, getattr(make, "start", None) is Listener.start
        self._dropped = 0
        threading.Thread(target=self._work, name=f"logger {name}", daemon=True).start()

    def start(self, spec: dict[str, Any], step: int) -> None:
        self._give("start", spec, step)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._give("metrics", step, dict(metrics))

    def validation(self, step: int, result: EvaluationResult) -> None:
        # While the service is away, pictures of many validations would fill the memory.
        self._give("validation", step, replace(result, pictures=()) if self._away else result)

    def message(self, text: str) -> None:
        self._give("message", text)

    def checkpoint(self, step: int) -> None:
        self._give("checkpoint", step)

    def finish(self, result: Mapping[str, Any]) -> None:
        self._give("finish", result)

    def close(self, how: Ending) -> None:
        """Wait a moment for what is left; what is still not taken then is lost, which is said."""
        self._give("close", how)
        self._closing.set()
        with self._there:
            self._there.notify()
        if not self._over.wait(PATIENCE[how]) or self._dropped:
            lost = self._dropped + len(self._calls)
            self._say(f"WARNING: train.loggers: {self.name} has not taken {max(1, lost)} of this run's calls")

    def _give(self, name: str, *arguments: Any) -> None:
        """Keep a call, unless the logger leaves that method out: its success would say nothing."""
        if getattr(self.make, name, None) is getattr(Listener, name):
            return
        with self._there:
            self._dropped += len(self._calls) == MOST
            self._calls.append((name, arguments))
            self._there.notify()

    def _work(self) -> None:
        """Call after call until the run is closed; the first makes the logger."""
        while True:
            with self._there:
                while not self._calls:
                    if self._closing.is_set():
                        self._over.set()
                        return
                    self._there.wait()
                call = self._calls.popleft()
            if self._try(call):
                self._begun = True
                continue
            self._dropped += 1
            if self._closing.is_set():
                self._give_up()

    def _give_up(self) -> None:
        """Of what is left when the run closes and the service is away, only the end is tried, if it began."""
        with self._there:
            last = [call for call in self._calls if call[0] == "close" and self._begun]
            self._dropped += len(self._calls) - len(last)
            self._calls.clear()
            self._calls.extend(last)

    def _try(self, call: Call) -> bool:
        """Whether it succeeded at last. While the run closes, there are few further tries."""
        pause, tries, known = self.pause, 0, self._away
        while True:
            tries += 1
            try:
                if self._inner is None:
                    self._inner = self.make(self.directory)
                name, arguments = call
                getattr(self._inner, name)(*arguments)
            except Exception as error:
                if not self._away:
                    self._away = True
                    what = f"{type(error).__name__}: {without_secrets(first_line(error))}"
                    self._say(
                        f"WARNING: train.loggers: {self.name}: {what}; the run goes on, and it is tried again"
                    )
                closing = self._closing.is_set()
                if closing and (known or tries >= LAST_TRIES):
                    return False
                if tries >= TRIES and self._begun:
                    return False
                time.sleep(pause) if closing else self._closing.wait(pause)
                pause = min(2 * pause, LONGEST)
            else:
                if self._away:
                    self._away = False
                    self._say(f"train.loggers: {self.name} takes the run's figures again")
                return True

    def _say(self, text: str) -> None:
        with suppress(OSError):
            self.directory.log(text)
