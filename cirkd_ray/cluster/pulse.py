"""Signs of life of a run's workers, in the store of the cluster's head, where the run's driver reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv

from cirkd_ray.train.distributed import World
from cirkd_ray.train.heartbeat import Beat, Heartbeat, Phase

EVERY = 1.0
"""Seconds between two signs of a worker."""


@dataclass(frozen=True)
class Sign:
    """What a worker's pulse says.

    Attributes:
        rank, size: the worker's, and how many there are.
        node, node_id, pid, born: the host's name, Ray's number of it, the process and when it was started;
            of the last, "" until the worker itself has told.
        phase, step, part, count, usual: of its heartbeat, see `Beat`.
        ticks: signs so far; a process that is stopped gives none.
        where, waits: the line that its training is at, and whether it waits for other workers there.
    """

    rank: int
    size: int
    node: str
    node_id: str
    pid: int
    born: str
    phase: Phase = "start"
    step: int = 0
    part: int = 0
    count: int = -1
    usual: float | None = None
    ticks: int = 0
    where: str = ""
    waits: bool = False

    @property
    def beat(self) -> Beat:
        """Its heartbeat."""
        return Beat(self.phase, self.step, self.part, self.count, self.usual)


class Pulse:
    """Gives signs of this worker's heartbeat for the length of a `with` block.

    Args:
        run: the folder of its run.
        world: this worker among its peers.
        heartbeat: of its training thread.
    """

    def __init__(self, run: Path, world: World, heartbeat: Heartbeat) -> None:
        self.run, self.heartbeat, self.ticks = run, heartbeat, 0
        context, pid = ray.get_runtime_context(), os.getpid()
        self.me = Sign(world.rank, world.size, socket.gethostname(), context.get_node_id(), pid, born(pid))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> None:
        self._sign()
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)
        if error[0] is None:
            self.heartbeat.note("end", self.heartbeat.beat.step)
            self._sign()

    def _beat(self) -> None:
        while not self._over.wait(EVERY):
            self._sign()

    def _sign(self) -> None:
        beat, (where, waits) = self.heartbeat.beat, self.heartbeat.whereabouts()
        self.ticks += 1
        _put(
            self.run,
            dataclasses.replace(
                self.me, **dataclasses.asdict(beat), ticks=self.ticks, where=where, waits=waits
            ),
        )


def signs(run: Path) -> list[Sign]:
    """The last sign of each worker of a run, by rank."""
    found = [Sign(**json.loads(value)) for value in _values(_key(run, "sign", ""))]
    sizes = [sign.size for sign in found if sign.rank == 0]
    return sorted((s for s in found if not sizes or s.rank < sizes[0]), key=lambda sign: sign.rank)


def place(run: Path, workers: Sequence[Any]) -> None:
    """Give each worker's first sign, from the run's controller: one may hang before it gives any itself.

    Args:
        run: the run's directory.
        workers: Ray's descriptions of them; their processes are there, and nothing of them has begun.
    """
    forget(run)
    for worker in workers:
        at, rank = worker.metadata, worker.distributed_context
        _put(run, Sign(rank.world_rank, rank.world_size, at.hostname, at.node_id, at.pid, ""))


def forget(run: Path) -> None:
    """Delete what a run's workers left."""
    internal_kv._internal_kv_del(_key(run), del_by_prefix=True)


def restarting(run: Path) -> None:
    """Note that workers failed: the signs that come until others are placed are of processes that end."""
    forget(run)
    internal_kv._internal_kv_put(_key(run, "restarting"), b"1")


def is_restarting(run: Path) -> bool:
    """Whether that was noted, and no workers have been placed since."""
    return bool(internal_kv._internal_kv_exists(_key(run, "restarting")))


def note_hung(run: Path, rank: int) -> None:
    """Note that a worker is ended because it was hung."""
    internal_kv._internal_kv_put(_key(run, "hung", str(rank)), str(rank).encode())


def hung(run: Path) -> list[int]:
    """The ranks of which that was noted."""
    return [int(value) for value in _values(_key(run, "hung", ""))]


def born(pid: int) -> str:
    """When a process of this machine was started, in the system's own count; "" where that is not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _key(run: Path, *words: str) -> str:
    digest = hashlib.sha256(str(run).encode()).hexdigest()[:16]
    return "-".join(["cirkd-pulse", ray.get_runtime_context().get_job_id(), digest, *words])


def _put(run: Path, sign: Sign) -> None:
    text = json.dumps(dataclasses.asdict(sign))
    internal_kv._internal_kv_put(_key(run, "sign", str(sign.rank)), text.encode())


def _values(prefix: str) -> list[Any]:
    found = [internal_kv._internal_kv_get(key) for key in internal_kv._internal_kv_list(prefix)]
    return [value for value in found if value is not None]
