"""The doctor's visit to each node of a cluster, and what lies between nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cirkd_ray.cluster.capacity import check_places
from cirkd_ray.cluster.resources import plan_run
from cirkd_ray.config import RunSpec
from cirkd_ray.doctor.catalogue import CHECKS
from cirkd_ray.doctor.checks import Check, Finding, Level, Question, examine, judge
from cirkd_ray.doctor.network import Sink, judge_clocks, judge_network, send, skew
from cirkd_ray.doctor.places import clean_out, judge_shared, seen_out, write_out
from cirkd_ray.errors import UserError, first_line

PATIENCE = 120.0
"""Seconds for a node to answer: a first worker imports torch."""
_MEMORY = ("memory", "object_store_memory")


@dataclass(frozen=True)
class Node:
    """A node that lives.

    Attributes:
        name: the host's, made unique.
        id: Ray's.
        address: that the others reach it at.
        resources: what Ray gives away there.
    """

    name: str
    id: str
    address: str
    resources: Mapping[str, float]


class _Visitor:
    """Looks around on one node."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sink: Sink | None = None

    def examine(self, checks: Sequence[Check], question: Question) -> dict[str, Any]:
        return examine(checks, question)

    def write(self, question: Question, name: str) -> dict[str, Any]:
        return write_out(question, name, self._clock)

    def seen(self, question: Question) -> list[str]:
        return seen_out(question)

    def clean(self, question: Question, made: bool) -> None:
        clean_out(question, made)

    def now(self) -> float:
        return self._clock()

    def listen(self, address: str) -> tuple[int, bytes]:
        self._sink = Sink(address)
        return self._sink.port, self._sink.word

    def take(self) -> int:
        return self._sink.take() if self._sink else 0

    def send(self, address: str, port: int, word: bytes) -> dict[str, Any]:
        return send(address, port, word)


def living_nodes() -> list[Node]:
    """The nodes of the Ray that this process has joined."""
    living = [each for each in ray.nodes() if each["Alive"]]
    hosts = [each["NodeManagerHostname"] for each in living]
    return [
        Node(
            host if hosts.count(host) == 1 else f"{host}-{each['NodeID'][:6]}",
            each["NodeID"],
            each["NodeManagerAddress"],
            each["Resources"],
        )
        for host, each in zip(hosts, living, strict=True)
    ]


def visit(
    question: Question,
    spec: RunSpec | None = None,
    checks: Sequence[Check] = CHECKS,
    clock: Callable[[], float] = time.time,
) -> tuple[list[Finding], dict[str, dict[str, Any]]]:
    """Look at every node of the Ray that this process has joined.

    Args:
        question: what a run would need.
        spec: a run that is to fit the cluster; None: none.
        checks: what is looked at.
        clock: of the nodes.

    Returns:
        Findings, and what each node's probes returned.
    """
    nodes = living_nodes()
    findings: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    with _visitors(nodes, clock) as visitors:
        asked = {name: each.examine.remote([c for c in checks if c.name != "--out"], question)
                 for name, each in visitors.items()}  # fmt: skip
        for node, found in zip(nodes, _answers(asked).values(), strict=True):
            if isinstance(found, str):
                findings.append(_silent(node, found))
                del visitors[node.name]
            else:
                facts[node.name] = _with_ray(found, node.resources)
        wrote = _answers({name: each.write.remote(question, name) for name, each in visitors.items()})
        for name, found in wrote.items():
            if isinstance(found, str):  # its mount hangs, and so would all that it is asked from now on
                del visitors[name]
            silent = {"error": found, "ahead": None, "made": False}
            facts[name]["--out"] = silent if isinstance(found, str) else found
        findings += judge(checks, facts, question)
        made = any(facts[name]["--out"]["made"] for name in visitors)
        seen = _answers({name: each.seen.remote(question) for name, each in visitors.items()})
        _answers({name: each.clean.remote(question, made) for name, each in visitors.items()})
        findings += judge_shared(
            {name: not facts[name]["--out"]["error"] for name in visitors},
            {name: each for name, each in seen.items() if not isinstance(each, str)},
            question.out,
        )
        findings += judge_clocks(_skews(visitors))
        findings += judge_network(_transfers([node for node in nodes if node.name in visitors], visitors))
    return [*findings, *_room(spec)], facts


@contextmanager
def _visitors(nodes: Sequence[Node], clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """An actor on each node for the length of the block; it takes no CPU that runs are given."""
    # Without the variable Ray hides all GPUs from an actor that takes none.
    shown = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
    remote = ray.remote(_Visitor)
    made = {
        node.name: remote.options(
            num_cpus=0,
            max_concurrency=2,  # one takes what is sent while it is asked for the time
            runtime_env=shown,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(clock)
        for node in nodes
    }
    try:
        yield dict(made)
    finally:
        for actor in made.values():
            ray.kill(actor)


def _answer(reference: Any, timeout: float = PATIENCE) -> Any:
    """What a node says, or as text why it says nothing."""
    try:
        return ray.get(reference, timeout=timeout)
    except Exception as error:  # no answer in time, a worker that does not start, a package that is not there
        return first_line(getattr(error, "cause", None) or error)


def _answers(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same of all nodes, which answer at the same time."""
    if asked:
        ray.wait([*asked.values()], num_returns=len(asked), timeout=PATIENCE)
    return {name: _answer(reference, timeout=1) for name, reference in asked.items()}


def _silent(node: Node, reason: str) -> Finding:
    advice = "ray logs cluster --node-ip " + node.address
    return Finding("node", Level.ERROR, f"does not answer ({reason})", advice, (node.name,))


def _with_ray(facts: dict[str, Any], resources: Mapping[str, float]) -> dict[str, Any]:
    """The facts with what Ray gives away on that node."""
    counted = {"CPUs": resources.get("CPU", 0.0), "memory": sum(resources.get(name, 0.0) for name in _MEMORY)}
    return {
        name: {**value, "ray": counted[name]} if name in counted and "ray" in value else value
        for name, value in facts.items()
    }


def _skews(visitors: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that each node's clock is ahead of this process's, of those that tell."""
    found = {}
    for name, each in visitors.items():
        with suppress(Exception):  # as of `_answer`; what is wrong there is found otherwise
            found[name] = skew(lambda each=each: float(ray.get(each.now.remote(), timeout=PATIENCE)))  # type: ignore[misc]
    return found


def _transfers(nodes: Sequence[Node], visitors: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each node sends to the next, one after the other, and the last one to the first."""
    found = {}
    for sender, receiver in zip(nodes, [*nodes[1:], *nodes[:1]], strict=True):
        if sender is receiver:
            continue
        there = visitors[receiver.name]
        told = _answer(there.listen.remote(receiver.address))
        if not isinstance(told, str):
            taken = there.take.remote()
            told = _answer(visitors[sender.name].send.remote(receiver.address, *told))
            _answer(taken)
        failed = {"rate": 0.0, "back": 0.0, "error": told}
        found[sender.name, receiver.name] = failed if isinstance(told, str) else told
    return found


def _room(spec: RunSpec | None) -> Iterator[Finding]:
    """Whether the recipe's workers find their places."""
    if spec is None:
        return
    try:
        plan = plan_run(spec, ray.cluster_resources())
        check_places(plan, spec)
    except UserError as error:
        setting, _, text = first_line(error).partition(": ")
        yield Finding("workers", Level.ERROR, text, f"cirkd train ... --set {setting}=...")
        return
    kind = "1 GPU and " if plan.gpus else ""
    yield Finding("workers", Level.OK, f"{plan.workers} of {kind}{plan.cpus:g} CPUs each have room")
