"""Which worker hangs, when that is said, when it is ended; what is said of workers that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cirkd_ray.cluster.pulse import Sign, born
from cirkd_ray.cluster.restarts import describe, follows
from cirkd_ray.cluster.session import NOISE, _without_noise
from cirkd_ray.cluster.watch import Finding, Watch, behind, end_process


def sign(rank: int, **changes: Any) -> Sign:
    base = Sign(rank, 2, f"host{rank}", "id", 100 + rank, "7", "step", 41, usual=0.8, where="a/b/c.py:7")
    return replace(base, **changes)


class Run:
    """A run of two workers, looked at once a second; rank 1 does as it is told."""

    def __init__(self, timeout: float | None, **changes: Any) -> None:
        self.watch, self.now, self.changes = Watch(timeout), 0.0, changes

    def hang(self, seconds: int, **changes: Any) -> list[tuple[float, Finding]]:
        """Both give signs, but neither gets on; what was found, and when."""
        found = []
        for _ in range(seconds):
            self.now += 1
            both = [
                sign(0, ticks=int(self.now), waits=True, **self.changes),
                sign(1, ticks=int(self.now), **self.changes, **changes),
            ]
            if (finding := self.watch.look(both, self.now)) is not None:
                found.append((self.now, finding))
        return found


def test_a_worker_that_hangs_is_told_once_and_ended_after_the_timeout() -> None:
    run = Run(120.0)
    (at, told), (then, ended) = run.hang(125)
    assert (at, told.end, then, ended.end) == (61, False, 121, True)
    assert told.text(120.0) == (
        "worker 1 on host1 has not finished step 41 for 60 s (usually 0.8 s); it is at a/b/c.py:7"
    )
    assert ended.text(120.0).endswith("; it is ended (cluster.hang_timeout=120)")


def test_without_a_timeout_it_is_only_told() -> None:
    assert [finding.end for _, finding in Run(None).hang(1000)] == [False]


def test_slow_steps_are_given_ten_times_their_usual_time() -> None:
    assert [at for at, _ in Run(60.0, usual=20.0).hang(210)] == [201]


@pytest.mark.parametrize("changes", [{"usual": None}, {"phase": "validation"}, {"phase": "checkpoint"}])
def test_first_steps_validations_and_checkpoints_are_given_longer(changes: dict[str, Any]) -> None:
    assert [at for at, _ in Run(120.0, **changes).hang(370)] == [181, 361]


def test_any_progress_of_any_worker_starts_the_count_anew() -> None:
    run = Run(120.0)
    assert run.hang(50) == []
    assert run.hang(60, count=1) == []
    assert [at for at, _ in run.hang(60, count=1)] == [111]


def test_a_process_without_signs_is_the_one() -> None:
    watch, found = Watch(120.0), None
    for now in range(1, 70):
        both = [sign(0, ticks=3), sign(1, ticks=now)]  # rank 0 is stopped while it waits
        found = watch.look(both, float(now)) or found
    assert found is not None
    assert [worker.rank for worker in found.workers] == [0]
    assert found.text(120.0).endswith("its process gives no sign")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"step": 41}, {"step": 43}, [0]),  # on GPUs the others go ahead until they need a value
        ({"phase": "data"}, {"phase": "step", "waits": True}, [0]),
        ({"phase": "step"}, {"phase": "step", "waits": True}, [0]),
        ({"phase": "validation", "part": 9}, {"phase": "validation", "part": 3}, [1]),
        ({"waits": True}, {"waits": True}, [0, 1]),
    ],
)
def test_the_one_behind_is_named_not_those_that_wait(
    first: dict[str, Any], second: dict[str, Any], expected: list[int]
) -> None:
    assert [found.rank for found in behind([sign(0, **first), sign(1, **second)])] == expected


def test_nothing_is_said_before_all_workers_give_signs() -> None:
    watch = Watch(10.0)
    assert all(watch.look([sign(0, ticks=now)], float(now)) is None for now in range(1, 1000))


def test_only_the_process_that_gave_the_signs_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        when = born(process.pid)
        assert when
        os.kill(process.pid, signal.SIGSTOP)
        assert not end_process(process.pid, when + "1")
        assert process.poll() is None
        assert end_process(process.pid, when)
        assert process.wait(timeout=30) == -signal.SIGKILL
    finally:
        process.kill()
    assert not end_process(process.pid, when)


class Dead(Exception):
    """As Ray's error about a worker whose process is gone."""

    health_check_failure = RuntimeError()


GONE = Dead(
    "Worker info: hostname='b7',\nWorker exit type: SYSTEM_ERROR Worker exit detail: End of file. (1)"
)
CUT = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:2996.")


@pytest.mark.parametrize(
    ("errors", "hung", "text"),
    [
        ({0: CUT, 1: GONE}, [], "worker 1 on b7 died: its process is gone: it was killed"),
        ({1: GONE}, [1], "worker 1 on b7 was hung and has been ended"),
        ({0: CUT, 1: ValueError("no such thing")}, [], "worker 1 on a1 failed: no such thing"),
        ({0: CUT}, [], "worker 0 on a0 lost its connection to another worker"),
        ({1: Dead("the actor died because its node has died.")}, [], "worker 1 on a1 died: its node is gone"),
        ({1: Dead("the node running low on memory")}, [], "worker 1 on a1 died: Ray ended it because its"),
    ],
)
def test_a_failure_is_told_of_the_worker_that_is_its_reason(
    errors: dict[int, Exception], hung: list[int], text: str
) -> None:
    assert describe(errors, {0: "a0", 1: "a1"}, hung).startswith(text)


def test_what_follows_a_failure() -> None:
    assert follows(1, 3, 40) == "restart 1 of 3 from the checkpoint of step 40"
    assert follows(3, 3, 0) == "restart 3 of 3 from the start"
    assert follows(4, 3, 40) == "no restart is left (cluster.max_failures=3)"


def test_rays_noise_is_left_out_and_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    shown: list[list[str]] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data["lines"]))
    _without_noise()
    _without_noise()  # once is enough
    worker.print_to_stdstream({"lines": [f"WARNING: 12 PYTHON {NOISE[0]} on node"], "pid": "raylet"}, False)
    worker.print_to_stdstream({"lines": ["no node has room for this"], "pid": "raylet"}, False)
    assert shown == [["no node has room for this"]]
