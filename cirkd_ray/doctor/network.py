"""What lies between nodes: clocks, the network, and the token that lets a client in."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cirkd_ray.doctor.checks import Finding, Level, Question
from cirkd_ray.doctor.places import SET_CLOCK, clock_level
from cirkd_ray.errors import first_line

SENT = 32 * 2**20
"""Bytes that are sent to measure: a second at a slow network's speed."""
SLOW = 100e6
"""Bytes a second under which workers wait for each other: a gigabit carries 117e6."""
_TIMEOUT = 20.0
DEFAULT_TOKEN = Path("~/.ray/auth_token")


def skew(ask: Callable[[], float], clock: Callable[[], float] = time.time, tries: int = 5) -> float:
    """Seconds that another's clock is ahead of `clock`, from the quickest of a few questions.

    Args:
        ask: asks the other one for its time; it was told half-way between the question and the answer.
    """
    best = (float("inf"), 0.0)
    for _ in range(tries):
        before = clock()
        there = ask()
        after = clock()
        best = min(best, (after - before, there - (before + after) / 2))
    return best[1]


def judge_clocks(ahead: Mapping[str, float]) -> Iterator[Finding]:
    """Clocks that are off.

    Args:
        ahead: seconds that each node's clock is ahead of this process's.
    """
    for node, seconds in ahead.items():
        if level := clock_level(seconds):
            yield Finding("clock", level, f"{seconds:+.1f} s off this machine's", SET_CLOCK, (node,))
    if ahead and all(clock_level(seconds) is Level.OK for seconds in ahead.values()):
        largest = max(map(abs, ahead.values()))
        yield Finding("clock", Level.OK, f"at most {largest:.3f} s between nodes and this machine")


class Sink:
    """Takes bytes from one who knows its word, on a port that the system chooses.

    Args:
        address: of the interface that it listens on.
    """

    def __init__(self, address: str) -> None:
        self.word = secrets.token_bytes(16)
        self._socket = socket.create_server((address, 0))
        self._socket.settimeout(_TIMEOUT)
        self.port = int(self._socket.getsockname()[1])

    def take(self) -> int:
        """Serve one sender: its word, then a byte back for one byte and for all; returns how many came."""
        with self._socket, self._socket.accept()[0] as peer:
            peer.settimeout(_TIMEOUT)
            if not secrets.compare_digest(_exactly(peer, len(self.word)), self.word):
                return 0
            peer.sendall(_exactly(peer, 1))
            count = len(_exactly(peer, SENT))
            peer.sendall(b"1")
            return count


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = peer.recv(min(2**20, count - len(data)))
        if not part:
            raise ConnectionError("the other end closed")
        data += part
    return bytes(data)


def send(address: str, port: int, word: bytes) -> dict[str, Any]:
    """Send to a `Sink`: bytes a second, seconds there and back, and why it failed, if it did."""
    try:
        with socket.create_connection((address, port), timeout=_TIMEOUT) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(word)
            start = time.perf_counter()
            peer.sendall(b"0")
            _exactly(peer, 1)
            back = time.perf_counter() - start
            peer.sendall(bytes(SENT))
            _exactly(peer, 1)
            rate = SENT / (time.perf_counter() - start - back)
    except OSError as error:
        return {"rate": 0.0, "back": 0.0, "error": first_line(error)}
    return {"rate": rate, "back": back, "error": ""}


def judge_network(measured: Mapping[tuple[str, str], Mapping[str, Any]]) -> Iterator[Finding]:
    """Pairs of nodes that cannot reach each other, or slowly: gloo and NCCL take such ports, too.

    Args:
        measured: what `send` found, by sender and receiver.
    """
    for (sender, receiver), found in measured.items():
        where = (f"{sender} -> {receiver}",)
        if found["error"]:
            text = f"no connection on a free port ({found['error']}): workers could not meet"
            advice = "sudo ufw allow from NETWORK   # all ports between the nodes; a NetworkPolicy likewise"
            yield Finding("network", Level.ERROR, text, advice, where)
            continue
        level = Level.WARNING if found["rate"] < SLOW else Level.OK
        text = f"{8 * found['rate'] / 1e9:.1f} Gbit/s, {1e3 * found['back']:.1f} ms there and back"
        advice = (
            "export NCCL_SOCKET_IFNAME=NAME GLOO_SOCKET_IFNAME=NAME   # of the faster network; ip -br addr"
        )
        yield Finding("network", level, text, advice if level else "", where)


def name_address(question: Question) -> dict[str, Any]:
    """What this node's name leads to: gloo binds that address."""
    try:
        found = socket.gethostbyname(socket.gethostname())
    except OSError as error:
        return {"address": "", "error": first_line(error), "interface": os.environ.get("GLOO_SOCKET_IFNAME")}
    return {"address": found, "error": "", "interface": os.environ.get("GLOO_SOCKET_IFNAME")}


def compare_names(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Names that lead to the loopback: of no matter on one machine, but other nodes cannot reach it."""
    for node, value in values.items():
        unknown = value["error"] or value["address"].startswith("127.")
        if unknown and not value["interface"]:
            led = f"leads to {value['address']}" if value["address"] else f"is unknown ({value['error']})"
            text = f"the host's name {led}: gloo would listen where no other node reaches it"
            advice = "export GLOO_SOCKET_IFNAME=eth0   # before ray start; ip -br addr names it"
            yield Finding("network", Level.WARNING, text, advice, (node,))


def token(environ: Mapping[str, str], joined: bool = False) -> Iterator[Finding]:
    """The token of this process: which one it is, and who may read it.

    Args:
        environ: says which.
        joined: the cluster of `RAY_ADDRESS` has let this process in.
    """
    mode = environ.get("RAY_AUTH_MODE", "")
    place = Path(environ.get("RAY_AUTH_TOKEN_PATH", str(DEFAULT_TOKEN))).expanduser()
    if environ.get("RAY_AUTH_TOKEN"):
        where = "in RAY_AUTH_TOKEN"
    elif place.is_file():
        where = f"in {place}"
        if _others_can_read(place):
            yield Finding("token", Level.WARNING, f"{place} can be read by others", f"chmod 600 {place}")
    elif "RAY_AUTH_TOKEN_PATH" in environ:
        yield Finding("token", Level.ERROR, f"RAY_AUTH_TOKEN_PATH: {place} is not there", GET_TOKEN)
        return
    elif mode == "token":
        yield Finding("token", Level.ERROR, "RAY_AUTH_MODE=token, but there is no token", GET_TOKEN)
        return
    else:
        where = "none"
    if joined and mode != "token":
        text = "the cluster lets in who has none: whoever reaches its ports can run code"
        yield Finding("token", Level.WARNING, text, MAKE_TOKEN)
    elif where != "none" and mode != "token" and environ.get("RAY_ADDRESS"):
        text = f"{where}, but RAY_AUTH_MODE is not token: it is not sent"
        yield Finding("token", Level.WARNING, text, "export RAY_AUTH_MODE=token")
    else:
        yield Finding("token", Level.OK, where)


def _others_can_read(place: Path) -> bool:
    """Whether the file, and each folder on the way to it, is open to more than its owner."""
    way = (folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for folder in place.absolute().parents)
    return bool(place.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)) and all(way)


GET_TOKEN = "export RAY_AUTH_TOKEN=...   # the head's, from the one who started it"
MAKE_TOKEN = "ray get-auth-token --generate; export RAY_AUTH_MODE=token   # on the head, before ray start"


def ask_head(
    address: str, environ: Mapping[str, str], opener: Callable[..., Any] | None = None
) -> Iterator[Finding]:
    """What the head's dashboard says to a request without the token, and with it.

    Args:
        address: `http://HOST:PORT`.
        environ: holds the token.
        opener: `urllib.request.urlopen`.
    """
    secret = environ.get("RAY_AUTH_TOKEN") or _read(environ)
    without = _status(address, {}, opener)
    if isinstance(without, str):
        advice = "export RAY_ADDRESS=http://HEAD:8265   # and is the head running?"
        yield Finding("head", Level.ERROR, f"{address} does not answer ({without})", advice)
        return
    if without < 400:
        text = f"{address} answers without a token: who reaches it can run code"
        yield Finding("token", Level.WARNING, text, MAKE_TOKEN)
    elif not secret:
        yield Finding("token", Level.ERROR, f"{address} wants a token, and there is none here", GET_TOKEN)
    else:
        status = _status(address, {"Authorization": f"Bearer {secret}"}, opener)
        if isinstance(status, str) or status >= 400:
            yield Finding("token", Level.ERROR, f"{address} refuses this token ({status})", GET_TOKEN)
        else:
            yield Finding("token", Level.OK, f"{address} takes it, and refuses requests without")


def _read(environ: Mapping[str, str]) -> str:
    place = Path(environ.get("RAY_AUTH_TOKEN_PATH", str(DEFAULT_TOKEN))).expanduser()
    return place.read_text().strip() if place.is_file() else ""


def _status(address: str, headers: Mapping[str, str], opener: Callable[..., Any] | None) -> int | str:
    """The status of the head's answer, or why there is none."""
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=dict(headers))
    try:
        with (opener or urllib.request.urlopen)(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:
        return first_line(error)
