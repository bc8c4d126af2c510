"""`cirkd bench scale`: the model's arithmetic by hand, turns, and what is made of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cirkd_ray.bench._scale_model import (
    Bucket,
    Link,
    Message,
    exchange_seconds,
    gradient_seconds,
    median,
    predict,
    traffic,
)
from cirkd_ray.bench._scale_run import Found
from cirkd_ray.bench._scale_tables import tables
from cirkd_ray.bench._scale_turns import Block, Paced, Turns
from cirkd_ray.bench.scale import _bytes, _check, _measured, _overhead, _stall
from cirkd_ray.errors import TrainingError
from tests.tinyrun import tiny_baseline

LINK = Link(bandwidth=1e9, latency=1e-3)


def test_bytes_of_a_ring() -> None:
    assert traffic("all_reduce", 800, 4) == 2 * 3 / 4 * 800
    assert traffic("all_gather", 100, 4) == 300
    assert traffic("reduce_scatter", 400, 4) == 300
    assert traffic("all_to_all", 400, 4) == 300
    assert all(traffic(operation, 9, 1) == 0 for operation in ("all_reduce", "all_gather", "all_to_all"))


def test_large_messages_go_round_a_ring_and_small_ones_up_a_tree() -> None:
    # 1 GB on 8 workers: a ring 14 hops and 1.75 GB, a tree 6 hops and 2 GB.
    assert exchange_seconds("all_reduce", 10**9, 8, LINK) == pytest.approx(0.014 + 1.75)
    assert exchange_seconds("all_reduce", 8, 8, LINK) == pytest.approx(0.006, rel=1e-4)
    assert exchange_seconds("all_reduce", 10**6, 2, LINK) == pytest.approx(0.002 + 1e-3)
    assert exchange_seconds("all_gather", 10**6, 4, LINK) == pytest.approx(0.002 + 3e-3)
    assert exchange_seconds("all_reduce", 10**9, 1, LINK) == 0


def test_gradients_are_hidden_behind_the_backward_pass() -> None:
    # Of two workers: 2 ms and one second a GB. Buckets of 98 MB take 0.1 s.
    first, last = Bucket(0.5, 98_000_000), Bucket(1.0, 98_000_000)
    assert gradient_seconds([first, last], 1.0, 2, LINK) == pytest.approx((0.2, 0.1))
    assert gradient_seconds([first], 1.0, 2, LINK) == pytest.approx((0.1, 0.0))
    assert gradient_seconds([first, last], 0.1, 2, LINK) == pytest.approx(
        (0.2, 0.15)
    )  # the first is not over


def test_a_step_of_several_workers() -> None:
    parts = {"data": 0.1, "forward": 0.3, "backward": 0.5}
    messages = [Message("counts", "all_reduce", 8, 2), Message("queues", "all_gather", 10**6, 2)]
    found = predict(parts, messages, [Bucket(1.0, 98_000_000)], 2, 4, LINK)
    assert found.waited == pytest.approx(0.002 + 0.002, rel=1e-3)
    assert found.seconds == pytest.approx(0.9 + 0.1 + 0.004, rel=1e-3)
    assert found.images_per_second == pytest.approx(8 / found.seconds)
    assert found.efficiency == pytest.approx(0.9 / found.seconds)


def test_medians_and_their_bounds() -> None:
    assert median([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    found = median([float(n) for n in range(100)])
    assert found == (49.5, 40.0, 59.0)


def steps(paced: Paced, log: list[tuple[str, int]], turns: int) -> None:
    for step in range(1, 2 * turns + 2):
        paced.note("data", step)
        log.append((paced.name, step))
        paced.note("step", step)
        time.sleep(0.002)
        if step == 2:
            paced.note("checkpoint", step)
            time.sleep(0.05)
    paced.tell({"name": paced.name})


def test_trainings_take_turns(tmp_path: Path) -> None:
    log: list[tuple[str, int]] = []
    turns = Turns(tmp_path, {"one": 1, "two": 1}, lambda: "")
    threads = [
        threading.Thread(target=steps, args=(Paced(turns.address, n, 2), log, 3)) for n in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    turns.gather()
    for name in ("one", "two", "two", "one", "one", "two"):
        turns.turn(name)
    assert [name for name, _ in log] == [n for n in ("one", "two", "two", "one", "one", "two") for _ in "12"]
    assert [turns.end(name) for name in ("one", "two")] == [[{"name": "one"}], [{"name": "two"}]]
    for thread in threads:
        thread.join()
    turns.close()
    first, second, third = turns.blocks["one"]
    assert first.stall is not None
    assert first.stall >= 0.05
    assert first.seconds < first.stall  # it is no part of a step
    assert (second.stall, second.writing, third.writing) == (None, True, False)


def test_a_training_that_ends_early_is_told(tmp_path: Path) -> None:
    turns = Turns(tmp_path, {"one": 1}, lambda: "rank 0 of one ended with exit code 1")
    with pytest.raises(TrainingError, match="rank 0 of one ended with exit code 1"):
        turns.gather()
    turns.close()


def blocks(seconds: float, stall: float) -> list[Block]:
    found = []
    for number in range(11):
        saves, writing = number % 5 == 4, number % 5 == 0 and number > 0
        found.append(Block(seconds + 0.01 * writing, seconds, 0.01, stall if saves else None, writing))
    found[0].seconds = 9.0  # first uses
    return found


def test_what_is_made_of_turns() -> None:
    beside = {"plain": Found(blocks(0.2, 0.3), []), "Ray": Found(blocks(0.202, 0.4), []), "own": 0.05}
    ray = _overhead(beside)
    assert ray["overhead"]["value"] == pytest.approx(0.01)
    assert ray["pairs"] == 8
    assert _check(blocks(0.18, 0.3), blocks(0.2, 0.3), 0.01)["value"] == pytest.approx(0.95)
    saved = _stall(beside, tiny_baseline(train={"checkpoint_every": 800}))
    assert saved["plain"]["share"] == pytest.approx(0.3 / (160 + 0.3))
    assert saved["plain"]["share_with_writing"] == pytest.approx((0.3 + 0.05) / 160)
    parts: list[dict[str, float]] = [
        {"teacher": 0.02, "forward": 0.05, "backward": 0.1, "optimiser": 0.01, "communication": 0.0}
    ] * 11
    found = _measured(Found(blocks(0.2, 0.3), [{"parts": parts}]), 2, 4)
    assert found["images_per_second"] == pytest.approx(40)
    assert found["parts"]["report"] == pytest.approx(0.01)
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"])
    counted = _bytes(4, [Message("BatchNorm", "all_gather", 64, 4)] * 2, [4000, 80])
    assert counted["BatchNorm"] == {"messages": 2, "bytes": 128, "sent": 2 * 3 * 64}
    assert counted["gradients"]["sent"] == 2 * 3 / 4 * 4080
    figures: dict[str, Any] = {
        "recipe": "x",
        "device": "cpu",
        "images": 4,
        "link": {"bandwidth": 25e9, "latency": 2e-5},
        "measured": {1: found, 2: found},
        "bytes": {2: counted},
        "predicted": {8: predict({"backward": 1.0}, [], [], 8, 4, LINK)._asdict()},
        "checks": {2: {"link": {}, "1": {"value": 0.97, "low": 0.9, "high": 1.1}}},
        "ray": ray,
        "checkpoint": saved,
    }
    text = "\n".join(table.markdown() for table in tables(figures))
    assert "from 1 0.97 (0.90 to 1.10)" in text
    assert "1.00 %" in text
