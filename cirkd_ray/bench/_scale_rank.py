"""One process of a training that `bench scale` watches: the ordinary loop, with a clock at its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cirkd_ray.bench._scale_count import Exchanges, measured_link
from cirkd_ray.bench._scale_turns import Paced
from cirkd_ray.config import from_tree
from cirkd_ray.device import wait
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.loggers import chosen_loggers
from cirkd_ray.train.distiller import Distiller
from cirkd_ray.train.distributed import World
from cirkd_ray.train.entry import Entry
from cirkd_ray.train.local import rank_device
from cirkd_ray.train.loop import train_cohort
from cirkd_ray.train.progress import Mark, between, mark
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.shared import SharedForward
from cirkd_ray.train.step import TrainStep
from cirkd_ray.train.update import FiniteUpdate

PARTS = ("teacher", "forward", "backward", "optimiser")


class PartClock:
    """Seconds of each part of the steps, exchanges apart.

    Args:
        device: where the steps are done.
        exchanges: counts what is exchanged.
    """

    def __init__(self, device: torch.device, exchanges: Exchanges) -> None:
        self.device, self.exchanges = device, exchanges
        self.parts: list[tuple[str, Mark, Mark]] = []
        self.steps: list[tuple[list[tuple[str, Mark, Mark]], Exchanges]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block all steps of this process are timed."""
        taken = {
            "teacher": (SharedForward, "teach"),
            "forward": (Distiller, "forward"),
            "backward": (FiniteUpdate, "backward"),
            "optimiser": (TrainStep, "apply"),
        }
        before = {part: getattr(owner, name) for part, (owner, name) in taken.items()}
        step = TrainStep.__call__
        with ExitStack() as undo:
            for part, (owner, name) in taken.items():
                setattr(owner, name, self._timed(part, before[part]))
                undo.callback(setattr, owner, name, before[part])
            TrainStep.__call__ = self._step(step)  # type: ignore[method-assign]
            undo.callback(setattr, TrainStep, "__call__", step)
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = mark(self.device)
            found = function(*args, **kwargs)
            self.parts.append((part, begun, mark(self.device)))
            return found

        return timed

    def _step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.parts = []
            self.exchanges.begin()
            found = function(*args, **kwargs)
            self.exchanges.open = False
            self.steps.append((self.parts, replace(self.exchanges)))  # on GPUs none of it may be over yet
            return found

        return timed

    def figures(self) -> list[tuple[dict[str, float], list[tuple[float, int]]]]:
        """Of each step the seconds of its parts, without the waits in them, and of exchanges; and of each
        bucket when it was full, as a part of the backward pass, and its bytes."""
        wait(self.device)
        return [_of_step(parts, exchanges) for parts, exchanges in self.steps]


def _of_step(
    parts: list[tuple[str, Mark, Mark]], exchanges: Exchanges
) -> tuple[dict[str, float], list[tuple[float, int]]]:
    found, buckets = dict.fromkeys((*PARTS, "communication"), 0.0), list[tuple[float, int]]()
    for part, begun, end in parts:
        waited = sum(between(*wait) for wait in exchanges.waits if _is_in(wait[0], begun, end))
        full = [(m, n) for m, n in exchanges.buckets if part == "backward" and _is_in(m, begun, end)]
        if full:  # when the last one is full the backward pass has done what it computes
            waited += between(full[-1][0], end)
            length = max(between(begun, full[-1][0]), 1e-9)
            buckets = [(between(begun, moment) / length, size) for moment, size in full]
        found[part] += between(begun, end) - waited
        found["communication"] += waited
    return found, buckets


def _is_in(moment: Mark, begun: Mark, end: Mark) -> bool:
    return between(begun, moment) >= 0 <= between(moment, end)


def main(rank: int, config: dict[str, Any]) -> None:
    """Train as one process of a training; the first rank tells what it found.

    Args:
        rank: of `ranks` processes.
        config: `spec`, `directory`, `ranks`, `place` (of this training's first process among the machine's
            GPUs), `threads`, `meeting` (a file), `address`, `name` and `block` (of `Paced`), `timed`.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(config["threads"])
    spec, directory = from_tree(config["spec"]), RunDirectory(config["directory"])
    device = rank_device(spec.cluster.device)
    if device.type == "cuda":
        device = torch.device("cuda", config["place"] + rank)
        torch.cuda.set_device(device)
    if config["ranks"] > 1:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=Path(config["meeting"]).as_uri(),
            rank=rank,
            world_size=config["ranks"],
        )
    world = World.current(device)
    exchanges, paced = Exchanges(device), Paced(config["address"], config["name"], config["block"])
    clock = PartClock(device, exchanges)
    reporter = LocalReporter(directory.checkpoints, spec.train.keep_checkpoints)
    # Without clocks: what `cirkd train --local` does, with the listeners that a worker of Ray has.
    listeners: list[Listener] = (
        [] if config["timed"] else [RunLog(directory, 0), *chosen_loggers(spec, directory)]
    )
    entry = Entry(spec, directory, reporter, listeners)
    with ExitStack() as watched:
        if config["timed"]:
            watched.enter_context(clock.watching())
            watched.enter_context(exchanges.watching())
        (ended,) = train_cohort([entry], world, lambda: False, paced)
    if isinstance(ended, Exception):
        raise ended
    link = measured_link(world) if world.size > 1 else None
    found = clock.figures()
    if world.is_main:
        paced.tell(
            {
                "parts": [parts for parts, _ in found],
                "buckets": found[-1][1] if found else [],
                "messages": [message._asdict() for message in exchanges.messages],
                "link": link,
            }
        )
    if world.size > 1:
        dist.destroy_process_group()
