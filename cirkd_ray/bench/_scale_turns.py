"""Turns: trainings that run beside each other, a few steps each in turn, so that they can be compared.

A busy moment of the machine then hits all alike. A training's first rank stops before each block of steps
until it is given the turn; the others wait for it in their next exchange.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cirkd_ray.device import wait
from cirkd_ray.errors import TrainingError
from cirkd_ray.losses.reduce import rank_and_world
from cirkd_ray.train.heartbeat import Heartbeat, Phase

PATIENCE = 600.0
"""Seconds that a block of steps, or a start, may take."""


class Paced(Heartbeat):
    """A training's heartbeat that takes turns, and tells what was done when.

    Args:
        address: the socket of `Turns`, a file.
        name: of the training.
        block: steps of a turn.
    """

    def __init__(self, address: str, name: str, block: int) -> None:
        super().__init__()
        self.address, self.name, self.block = address, name, block
        self.marks: list[tuple[str, int, float, float]] = []
        self._talk: Any = None
        self._over = False

    def note(self, phase: Phase, step: int, part: int = 0) -> None:
        """As of a heartbeat; at the first step of a block it waits for the turn."""
        turn = (
            phase == "data" and (step - 1) % self.block == 0 and rank_and_world()[0] == 0 and not self._over
        )
        if turn and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            wait(torch.device("cuda", torch.cuda.current_device()))
        self._mark(phase, step)
        if turn:
            self._over = self._ask() != "go"
            self._mark("go", step)
        super().note(phase, step, part)

    def tell(self, figures: Mapping[str, Any]) -> None:
        """The last word."""
        self._send({"figures": figures})

    def _mark(self, what: str, step: int) -> None:
        self.marks.append((what, step, time.perf_counter(), time.process_time()))

    def _ask(self) -> str:
        if self._talk is None:
            link = socket.socket(socket.AF_UNIX)
            link.connect(self.address)
            self._talk = link.makefile("rw")
        self._send({"name": self.name, "marks": self.marks})
        self.marks = []
        return str(self._talk.readline()).strip()

    def _send(self, value: Mapping[str, Any]) -> None:
        self._talk.write(json.dumps(value) + "\n")
        self._talk.flush()


@dataclass
class Block:
    """A turn of one training.

    Attributes:
        seconds: of a step, without what a checkpoint at its end took.
        processor: seconds of a processor that a step took.
        data: seconds of a step that its images were waited for.
        stall: seconds that a checkpoint at its end stopped the training for; None where there was none.
        writing: whether a checkpoint may have been written during it.
    """

    seconds: float
    processor: float
    data: float
    stall: float | None
    writing: bool = False


class Turns:
    """Gives the turns.

    Args:
        folder: for the socket.
        leaders: name -> processes of it that take turns, all at once.
        alive: says what is wrong with the processes, "" if nothing.

    Attributes:
        problem: why no turns can be taken any more, if that is so.
    """

    def __init__(self, folder: Path, leaders: Mapping[str, int], alive: Callable[[], str]) -> None:
        self.address = str(folder / "turns")
        self.leaders, self.alive = dict(leaders), alive
        self.problem = ""
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.address)
        Path(self.address).chmod(0o600)
        self.server.listen(64)
        self.server.settimeout(1.0)
        self.talks: dict[str, list[tuple[socket.socket, Any]]] = {name: [] for name in leaders}
        self.blocks: dict[str, list[Block]] = {name: [] for name in leaders}

    def gather(self) -> None:
        """Wait until every process has come to its first step."""
        until = time.monotonic() + PATIENCE
        while any(len(self.talks[name]) < count for name, count in self.leaders.items()):
            self._look(until)
            try:
                link, _ = self.server.accept()
            except TimeoutError:
                continue
            link.settimeout(1.0)
            talk = link, link.makefile("rw")
            self.talks[json.loads(self._line(talk))["name"]].append(talk)

    def turn(self, name: str) -> None:
        """One block of steps of this training."""
        for _, file in self.talks[name]:
            file.write("go\n")
            file.flush()
        block = _block([json.loads(self._line(talk))["marks"] for talk in self.talks[name]])
        block.writing = any(before.stall is not None for before in self.blocks[name][-1:])
        self.blocks[name].append(block)

    def end(self, name: str, figures: bool = True) -> list[dict[str, Any]]:
        """Let this training go to its end; its processes' last words."""
        for _, file in self.talks[name]:
            file.write("end\n")
            file.flush()
        if not figures:
            return []
        return [json.loads(self._line(talk))["figures"] for talk in self.talks[name]]

    def close(self) -> None:
        """Hang up."""
        for talks in self.talks.values():
            for link, file in talks:
                file.close()
                link.close()
        self.server.close()

    def _line(self, talk: tuple[socket.socket, Any]) -> str:
        until, text = time.monotonic() + PATIENCE, b""
        while not text.endswith(b"\n"):
            self._look(until)
            try:
                part = talk[0].recv(2**16)
            except TimeoutError:
                continue
            if not part:
                raise TrainingError("--workers: a training ended before its time; see above")
            text += part
        return text.decode()

    def _look(self, until: float) -> None:
        problem = self.problem or self.alive()
        if not problem and time.monotonic() > until:
            problem = f"nothing was heard of a training for {PATIENCE:.0f} s"
        if problem:
            raise TrainingError(f"--workers: {problem}")


def _block(turns: list[list[tuple[str, int, float, float]]]) -> Block:
    """Of the marks from a turn's beginning to the next, by processes that took it at once.

    A step is over when all have done it, as it would be if they exchanged something.
    """
    steps: list[dict[int, float]] = []
    stall, data, processor = None, 0.0, 0.0
    for marks in turns:
        first = next(index for index, mark in enumerate(marks) if mark[0] == "go")
        took: dict[int, float] = {}
        for index, (what, step, now, _) in enumerate(marks[first:-1], first):
            after = marks[index + 1][2] - now
            if what == "checkpoint":
                stall = max(stall or 0.0, after)
            else:
                took[step] = took.get(step, 0.0) + after
            if what in ("data", "go"):
                data += after
        processor += marks[-1][3] - marks[first][3]
        steps.append(took)
    number = len(steps[0])
    seconds = sum(max(took[step] for took in steps) for step in steps[0])
    return Block(seconds / number, processor / number / len(turns), data / number / len(turns), stall)
