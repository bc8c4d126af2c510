"""Which worker hangs, when that is said, when it is ended; what is said of workers that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import PreemptionError, PreemptionInfo
from ray.train.v2._internal.execution.controller.state import RestartingState, RunningState
from ray.train.v2.api.exceptions import WorkerGroupError

from cirkd_ray.cluster import pulse
from cirkd_ray.cluster.pulse import Sign, born
from cirkd_ray.cluster.restarts import TellPlaced, TellPreempted, TellRestarts, describe, follows
from cirkd_ray.cluster.session import NOISE, _without_noise
from cirkd_ray.cluster.watch import Finding, Watch, behind, end_process
from cirkd_ray.errors import TrainingError


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


def test_a_worker_that_hangs_before_its_first_sign_is_given_longer_and_ended() -> None:
    """It has only the sign that the controller gave when it was placed."""
    watch, found = Watch(120.0), []
    placed = [sign(rank, phase="start", step=0, usual=None, count=-1, ticks=0) for rank in (0, 1)]
    assert watch.look(placed, 0.0) is None
    for now in range(1, 400):
        begun = replace(placed[0], ticks=now, count=0, waits=True)
        if (finding := watch.look([begun, placed[1]], float(now))) is not None:
            found.append((now, finding.end, [worker.rank for worker in finding.workers]))
    assert found == [(181, False, [1]), (361, True, [1])]
    assert "worker 1 on host1 has not begun to train for" in Finding((placed[1],), True, 200.0, False).text(1)


def test_a_start_has_two_minutes_however_short_a_step_may_take() -> None:
    watch = Watch(3.0)
    placed = [sign(0, phase="start", step=0, usual=None, count=-1, ticks=0, size=1)]
    found = [(now, watch.look(placed, float(now))) for now in range(130)]
    assert [now for now, finding in found if finding is not None and finding.end] == [120]


def test_that_no_worker_begins_is_told_once_and_again_after_a_failure() -> None:
    watch = Watch(10.0)
    found = [(now, watch.look([], float(now))) for now in range(1, 1000)]
    told = [(now, finding) for now, finding in found if finding is not None]
    assert [(now, finding.end) for now, finding in told] == [(16, False)]
    assert told[0][1].text(10.0).startswith("WARNING: workers: none has begun for 15 s")
    assert watch.look([sign(0, ticks=1), sign(1, ticks=1)], 1000.0) is None
    assert [now for now in range(1001, 1100) if watch.look([], float(now))] == [1016]


def test_a_worker_that_hangs_when_another_has_ended_is_the_one() -> None:
    watch, found = Watch(120.0), None
    for now in range(1, 400):
        found = (
            watch.look([sign(0, ticks=now, phase="validation"), sign(1, phase="end")], float(now)) or found
        )
    assert found is not None
    assert [worker.rank for worker in found.workers] == [0]
    assert not found.silent
    both = [sign(0, phase="end"), sign(1, phase="end")]
    assert not any(watch.look(both, float(now)) for now in range(400, 4000))


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


@pytest.fixture
def placed_workers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Ray's descriptions of two workers; the head's store is a dictionary."""
    store: dict[str, bytes] = {}
    kv = SimpleNamespace(
        _internal_kv_put=store.__setitem__,
        _internal_kv_get=store.get,
        _internal_kv_exists=store.__contains__,
        _internal_kv_list=lambda prefix: [key for key in store if key.startswith(prefix)],
        _internal_kv_del=lambda prefix, del_by_prefix: [
            store.pop(key) for key in [*store] if key.startswith(prefix)
        ],
    )
    monkeypatch.setattr(pulse, "internal_kv", kv)
    monkeypatch.setattr(pulse.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "7"))
    return [
        SimpleNamespace(
            metadata=SimpleNamespace(hostname=f"host{rank}", node_id="id", pid=100 + rank),
            distributed_context=SimpleNamespace(world_rank=rank, world_size=2),
        )
        for rank in (0, 1)
    ]


def test_a_machine_that_was_taken_away_is_told_and_is_no_failure(
    placed_workers: list[Any], tmp_path: Path
) -> None:
    run = str(tmp_path)
    pulse.place(tmp_path, placed_workers)
    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"n": [1]})
    told, state = TellPreempted(run, [run]), RestartingState(PreemptionError(info))
    told.after_controller_state_update(RunningState(), RunningState())
    told.after_controller_state_update(RunningState(), state)
    lost, failure = Dead("the actor died because its node has died."), RuntimeError()
    failure.preempted = True  # type: ignore[attr-defined]
    lost.health_check_failure = failure
    restarts = TellRestarts(run, 2, [run])
    restarts.after_exception(None, {0: CUT, 1: lost})
    state = RestartingState(WorkerGroupError("failed", {0: CUT, 1: lost}))
    told.after_controller_state_update(RunningState(), state)
    assert restarts.count == 0
    assert pulse.is_restarting(tmp_path)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 2
    assert all("the run goes on elsewhere from the start (no failure" in line for line in lines)
    assert "worker 1 on host1: the machine is taken away" in lines[0]


def test_workers_that_hang_again_and_again_before_they_begin_end_the_run(
    placed_workers: list[Any], tmp_path: Path
) -> None:
    """Ray Train begins a start that failed anew without end."""
    workers = placed_workers
    placed = TellPlaced(str(tmp_path), 1, [str(tmp_path)])
    placed.before_init_train_context(workers)
    assert [(found.rank, found.count, found.phase) for found in pulse.signs(tmp_path)] == [
        (0, -1, "start"),
        (1, -1, "start"),
    ]
    pulse.note_hung(tmp_path, 1)
    placed.before_init_train_context(workers)
    pulse.restarting(tmp_path)  # these had begun
    assert pulse.is_restarting(tmp_path)
    placed.before_init_train_context(workers)
    assert not pulse.is_restarting(tmp_path)
    pulse.note_hung(tmp_path, 1)
    with pytest.raises(TrainingError, match="worker 1 on host1 was hung"):
        placed.before_init_train_context(workers)
    log = (tmp_path / "log.txt").read_text()
    assert "worker 1 on host1 was hung and has been ended; restart 1 of 1 from the start" in log
    assert "no restart is left (cluster.max_failures=1)" in log
