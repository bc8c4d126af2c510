"""What a check is: a probe that measures on a node, and judgements of what the probes of all nodes found.

A probe returns plain values, which travel between nodes and stand in the JSON report. A judgement looks at
nothing but these, so it is the same for one machine and for a cluster, and a test plants what it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any

from cirkd_ray.errors import first_line


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    WARNING = 1  # a run works, but slower, or fails under some settings
    ERROR = 2  # a run fails, or would be wrong


@dataclass(frozen=True)
class Finding:
    """What is so, and what to do.

    Attributes:
        check: what was looked at.
        level: how bad it is.
        text: what was found.
        advice: one command or setting; empty where nothing is to be done.
        nodes: where; empty: everywhere, or between nodes.
    """

    check: str
    level: Level
    text: str
    advice: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """What a run would need, as far as the user has said.

    Attributes:
        out: where runs are written, a folder or a URL.
        data: the data set's root; None: not asked for.
        loaders: loader processes of each worker.
        call: names the files that this call writes in `out`.
    """

    out: str
    data: str | None = None
    loaders: int = 0
    call: str = "0"


Facts = Mapping[str, Any]
"""What one node's probes returned, by name."""
Probe = Callable[[Question], Any]
Judge = Callable[[Any, Question], Iterable[Finding]]
"""Findings of one node's value."""
Compare = Callable[[Mapping[str, Any]], Iterable[Finding]]
"""Findings of the values of several nodes, by node."""


@dataclass(frozen=True)
class Check:
    """One thing that is looked at.

    Attributes:
        name: of it, in reports.
        probe: measures on a node.
        judge: of each node.
        compare: of several nodes.
    """

    name: str
    probe: Probe
    judge: Judge = lambda value, question: ()
    compare: Compare | None = None


FAILED = "failed"
"""Key of the only value of a probe that raised an error: what that said."""


def examine(checks: Iterable[Check], question: Question) -> dict[str, Any]:
    """Run the probes here; one that fails says why in place of its value."""
    found = {}
    for check in checks:
        try:
            found[check.name] = check.probe(question)
        except Exception as error:  # a doctor that dies of the illness says nothing
            found[check.name] = {FAILED: f"{type(error).__name__}: {first_line(error)}"}
    return found


def judge(checks: Iterable[Check], nodes: Mapping[str, Facts], question: Question) -> list[Finding]:
    """All findings, those that are the same on several nodes once, in the order of the checks."""
    findings: list[Finding] = []
    for check in checks:
        values = {node: facts[check.name] for node, facts in nodes.items() if check.name in facts}
        for node, value in values.items():
            findings += (replace(found, nodes=(node,)) for found in _of_one(check, value, question))
        sound = {node: value for node, value in values.items() if not _failed(value)}
        if check.compare is not None and len(sound) > 1:
            findings += check.compare(sound)
    return merged(findings)


def _failed(value: Any) -> bool:
    return isinstance(value, Mapping) and FAILED in value


def _of_one(check: Check, value: Any, question: Question) -> Iterator[Finding]:
    if _failed(value):
        yield Finding(check.name, Level.WARNING, f"could not be looked at ({value[FAILED]})")
    else:
        yield from check.judge(value, question)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The same findings on several nodes as one."""
    together: dict[Finding, tuple[str, ...]] = {}
    for found in findings:
        alike = replace(found, nodes=())
        together[alike] = (*together.get(alike, ()), *found.nodes)
    return [replace(found, nodes=nodes) for found, nodes in together.items()]


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the worst finding."""
    return max((found.level for found in findings), default=Level.OK)


def as_json(findings: Iterable[Finding], nodes: Mapping[str, Facts]) -> dict[str, Any]:
    """The report as plain values."""
    told = list(findings)
    return {
        "level": worst(told).name.lower(),
        "findings": [{**asdict(found), "level": found.level.name.lower()} for found in told],
        "nodes": {node: dict(facts) for node, facts in nodes.items()},
    }
