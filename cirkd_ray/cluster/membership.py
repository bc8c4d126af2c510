"""Who is to leave a pack, who has left it and who joins it: told to its workers, and by them.

The words are keys in the store of the cluster's head, as those of `stopping` are. A member is named by the
folder of its run, a pack by its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.experimental import internal_kv

from cirkd_ray import errors
from cirkd_ray.cluster.stopping import StopWatch, this_call
from cirkd_ray.train.distributed import World, broadcast_object
from cirkd_ray.train.stop import Stopped


def _key(word: str, place: Path) -> str:
    return f"cirkd-pack-{this_call()}-{word}-{place}"


def _put(word: str, place: Path, value: Any = True) -> None:
    internal_kv._internal_kv_put(_key(word, place), json.dumps(value))


def _is_there(word: str, place: Path) -> bool:
    return bool(internal_kv._internal_kv_exists(_key(word, place)))


def ask_to_leave(run: Path) -> None:
    """Ask a run to leave its pack after its next step."""
    _put("leave", run)


def is_to_leave(run: Path) -> bool:
    """Whether `ask_to_leave` was called for it."""
    return _is_there("leave", run)


@dataclass(frozen=True)
class End:
    """How a member ended.

    Attributes:
        kind: "result", or the name of the error.
        message: of the error.
    """

    kind: str = "result"
    message: str = ""

    def error(self) -> Exception | None:
        """What ended it, if it has no result."""
        if self.kind == "result":
            return None
        if self.kind == Stopped.__name__:
            return Stopped(self.message)
        kind: type[Exception] = getattr(errors, self.kind, errors.TrainingError)
        return kind(self.message)


def note_ended(run: Path, end: End) -> None:
    """Let the pack's actor know that a run has ended or left, and how."""
    _put("ended", run, asdict(end))


def how_ended(run: Path) -> End | None:
    """What was noted; None while it is under way."""
    found = internal_kv._internal_kv_get(_key("ended", run))
    return None if found is None else End(**json.loads(found))


def begin(run: Path) -> None:
    """Forget what was said of a run: it is trained again."""
    for word in ("leave", "ended"):
        internal_kv._internal_kv_del(_key(word, run))


def ask_to_join(pack: Path, number: int, work: Any) -> None:
    """Ask a pack to take in a run, its `number`th.

    Args:
        work: what the workers need to know of it, as plain values.
    """
    _put("join", pack / f"{number:06d}", work)


class Joining:
    """The runs that join a pack, as its workers hear of them; those that start again hear of all again.

    Args:
        pack: its folder.

    Attributes:
        taken: how many have come.
    """

    def __init__(self, pack: Path) -> None:
        self.pack, self.taken = pack, 0
        self.asked = StopWatch(self._is_any)
        """Whether one has come; it looks every half second at most."""

    def _next(self, number: int) -> Path:
        return self.pack / f"{number:06d}"

    def _is_any(self) -> bool:
        return _is_there("join", self._next(self.taken))

    def take(self, world: World) -> list[Any]:
        """What is to be known of those that have come, as many as the main rank sees."""
        found: list[Any] = []
        while world.is_main and _is_there("join", self._next(self.taken + len(found))):
            number = self.taken + len(found)
            found.append(json.loads(internal_kv._internal_kv_get(_key("join", self._next(number)))))
        found = broadcast_object(found, world)
        self.taken += len(found)
        self.asked = StopWatch(self._is_any)
        return found
