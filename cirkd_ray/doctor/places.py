"""Whether each node can write where runs go, sees what the others wrote, and sees the data."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cirkd_ray.data.storage import open_storage
from cirkd_ray.doctor.checks import Finding, Level, Question
from cirkd_ray.errors import UserError, first_line
from cirkd_ray.remote.address import shown

CLOCK_WARNING, CLOCK_ERROR = 1.0, 300.0
"""Seconds of skew. Times of files and logs mislead from the first on; object stores refuse requests that are
signed a quarter of an hour off, and certificates and tokens have such bounds, too."""


def folder_of(question: Question) -> str:
    """The folder in `--out` for what this call writes."""
    return f".cirkd-doctor-{question.call}"


def write_out(
    question: Question, node: str = "here", clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Write a file to `--out`, which is made where it is not there.

    Returns:
        `error`, empty where it went well, `ahead`: seconds that the storage's clock is ahead of this node's,
        where that is known, and whether the folder was `made`.
    """
    path = f"{folder_of(question)}/{node}"
    made = "://" not in question.out and not Path(question.out).exists()
    try:
        storage = open_storage(question.out, create=True)
        storage.write(path, b"cirkd doctor\n")
        before = clock()
        stamp = storage.stamp(path)
    except (UserError, OSError) as error:
        return {"error": first_line(error), "ahead": None, "made": made}
    return {"error": "", "ahead": stamp[1] / 1e9 - before if stamp else None, "made": made}


def judge_out(value: Any, question: Question) -> Iterator[Finding]:
    """It cannot be written, or its server's clock is off."""
    if value["error"]:
        advice = "cirkd train ... --out DIR   # one that every node can write"
        yield Finding("--out", Level.ERROR, f"cannot be written: {value['error']}", advice)
        return
    if value["ahead"] is not None and abs(value["ahead"]) > CLOCK_WARNING:
        text = f"the clock of {shown(question.out)} is {value['ahead']:+.0f} s off this node's"
        yield Finding("clock", clock_level(value["ahead"]), text, SET_CLOCK)
    yield Finding("--out", Level.OK, f"{shown(question.out)} can be written")


SET_CLOCK = "sudo chronyc makestep   # or: sudo systemctl restart systemd-timesyncd"


def clock_level(skew: float) -> Level:
    """How bad so many seconds are."""
    if abs(skew) <= CLOCK_WARNING:
        return Level.OK
    return Level.ERROR if abs(skew) > CLOCK_ERROR else Level.WARNING


def seen_out(question: Question) -> list[str]:
    """What lies where the nodes wrote their files, as this node sees it."""
    try:
        return open_storage(question.out).names(folder_of(question))
    except (UserError, OSError):
        return []


def judge_shared(wrote: Mapping[str, bool], seen: Mapping[str, list[str]], out: str) -> Iterator[Finding]:
    """Nodes that do not see what others wrote.

    Args:
        wrote: whether each node could write; the file's name is the node's.
        seen: what each node sees of that.
        out: the place.
    """
    expected = {node for node, went_well in wrote.items() if went_well}
    apart = {node: expected - set(names) for node, names in seen.items()}
    for node, lacks in apart.items():
        if lacks:
            text = (
                f"{shown(out)} is no shared storage: what {', '.join(sorted(lacks))} wrote is not seen here"
            )
            advice = "cirkd train ... --out DIR   # a mount that all nodes share"
            yield Finding("--out", Level.ERROR, text, advice, (node,))


def clean_out(question: Question, made: bool) -> None:
    """Remove what this call wrote, as far as this node sees it.

    Args:
        question: of this call.
        made: the folder itself, too, if it is empty.
    """
    with suppress(UserError, OSError):
        storage = open_storage(question.out)
        for name in storage.names(folder_of(question)):
            storage.remove(f"{folder_of(question)}/{name}")
        with suppress(OSError):
            (Path(question.out) / folder_of(question)).rmdir()
        if made:
            with suppress(OSError):
                Path(question.out).rmdir()


def data_root(question: Question) -> dict[str, Any]:
    """What lies in the data set's root: how many names, and their digest."""
    if question.data is None:
        return {"error": "", "names": None, "digest": ""}
    try:
        names = open_storage(question.data).names("")
    except (UserError, OSError) as error:
        return {"error": first_line(error), "names": 0, "digest": ""}
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()[:16]
    return {"error": "", "names": len(names), "digest": digest}


def judge_data(value: Any, question: Question) -> Iterator[Finding]:
    """It is not there, or empty as a mount point is whose disk is away."""
    if question.data is None:
        return
    advice = "cirkd train ... --set data.root=DIR   # a mount or URL that every node sees"
    if value["error"]:
        yield Finding("data root", Level.ERROR, value["error"], advice)
    elif not value["names"]:
        yield Finding(
            "data root", Level.ERROR, f"{shown(question.data)} is empty: is its disk mounted?", advice
        )
    else:
        yield Finding("data root", Level.OK, f"{shown(question.data)} is seen")


def compare_data(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Roots that hold different things on different nodes."""
    sound = {node: value for node, value in values.items() if not value["error"] and value["names"]}
    if len({value["digest"] for value in sound.values()}) > 1:
        text = "holds different names: " + ", ".join(f"{v['names']} on {node}" for node, v in sound.items())
        advice = "cirkd data check NAME ROOT   # on each of these nodes"
        yield Finding("data root", Level.ERROR, text, advice)
