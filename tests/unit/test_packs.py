"""Packs of trials: who starts together and when, and which spaces can have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cirkd_ray.cluster.gathering import PATIENCE, Gathering, Pack, Waiting
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.space_check import apart, check_space
from cirkd_ray.sweep.space_file import load_space
from tests.tinyrun import tiny_baseline


def gathered(size: int, places: int, *specs: RunSpec, **options: Any) -> Gathering:
    found = Gathering(size, places)
    for number, spec in enumerate(specs):
        found.add(Waiting(f"t{number}", spec, Path("x"), **options), now=float(number))
    return found


def names(packs: list[Pack]) -> list[list[str]]:
    return [[*pack.members] for pack in packs]


def test_a_whole_pack_starts_at_once_and_a_smaller_one_when_no_more_can_come() -> None:
    spec = tiny_baseline()
    waiting = gathered(3, 1, *[spec] * 2)
    assert waiting.starting(left=9, now=2.0) == []  # one more can come
    waiting.add(Waiting("t2", spec, Path("x")), now=3.0)
    assert names(waiting.starting(left=9, now=3.0)) == [["t0", "t1", "t2"]]
    waiting.add(Waiting("t3", spec, Path("x")), now=4.0)
    assert waiting.starting(left=7, now=5.0) == []  # the only place is taken
    waiting.running.clear()
    assert waiting.starting(left=4, now=6.0) == []  # three of four are to come
    assert names(waiting.starting(left=1, now=7.0)) == [["t3"]]


def test_two_packs_share_what_can_come() -> None:
    waiting = gathered(2, 2, *[tiny_baseline()] * 3)
    assert names(waiting.starting(left=8, now=3.0)) == [["t0", "t1"]]  # a fourth is to come
    assert names(waiting.starting(left=3, now=3.0)) == [["t2"]]


def test_trials_that_cannot_share_are_in_packs_by_value() -> None:
    small, large = tiny_baseline(), tiny_baseline(train={"batch_size": 8})
    waiting = gathered(2, 3, small, large, small, large, large)
    assert names(waiting.starting(left=9, now=5.0)) == [["t0", "t2"], ["t1", "t3"]]
    assert names(waiting.starting(left=5, now=5.0)) == [["t4"]]


def test_who_lacked_memory_is_alone_and_nobody_waits_for_ever() -> None:
    spec = tiny_baseline()
    waiting = gathered(2, 2, spec, alone=True)
    assert names(waiting.starting(left=9, now=0.0)) == [["t0"]]
    waiting.add(Waiting("t1", spec, Path("x")), now=1.0)
    assert waiting.starting(left=9, now=PATIENCE) == []
    assert names(waiting.starting(left=9, now=PATIENCE + 1)) == [["t1"]]


def test_trials_are_packed_by_their_numbers() -> None:
    waiting = gathered(2, 2, *[tiny_baseline()] * 4)
    order = {"t0": 3, "t1": 0, "t2": 1, "t3": 2}
    assert names(waiting.starting(9, 4.0, order)) == [["t1", "t2"], ["t3", "t0"]]


def test_who_goes_on_joins_a_pack_that_has_room_and_who_begins_anew_waits() -> None:
    spec, donor = tiny_baseline(), Path("donor")
    waiting = gathered(2, 2, spec, spec)
    (pack,) = waiting.starting(left=9, now=2.0)
    waiting.add(Waiting("late", spec, Path("x"), donor), now=3.0)
    assert waiting.joining() == []  # it is full
    del pack.members["t0"]
    larger = tiny_baseline(train={"batch_size": 8})
    waiting.add(Waiting("larger", larger, Path("x"), donor), now=3.0)
    waiting.add(Waiting("new", spec, Path("x")), now=3.0)
    waiting.add(Waiting("alone", spec, Path("x"), donor, alone=True), now=3.0)
    assert [(found, each.trial) for found, each in waiting.joining()] == [(pack, "late")]
    assert [*pack.members] == ["t1", "late"]
    assert [*waiting.waiting] == ["larger", "new", "alone"]
    pack.members.clear()
    assert waiting.joining() == []  # it is over
    waiting.starting(left=9, now=3.0)
    waiting.add(Waiting("late", spec, Path("x"), donor), now=3.0)
    assert [[*found.members] for found in waiting.running][-1] == ["alone"]
    assert waiting.joining() == []


def test_a_space_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    change = {"recipe": "quickstart/baseline", "set": {}, "parameters": {"optim.lr": {"uniform": [0.1, 1]}}}
    tree = yaml.safe_load((Path(__file__).parents[2] / "search_spaces" / "smoke.yaml").read_text())
    tree["parameters"] = {"distill.losses.kd.weight": {"uniform": [0.1, 1.0]}}
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({**tree, "resources": {"pack": 3}, **change}))
    with pytest.raises(ConfigError, match=r"space.yaml:\d+: resources.pack: .*no teacher"):
        check_space(load_space(str(file)))


def test_what_packs_trials_apart_is_known(tmp_path: Path) -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "search_spaces" / "smoke.yaml").read_text())
    tree["parameters"]["train.batch_size"] = {"choice": [4, 8]}
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert apart(load_space(str(file)).spec) == ["train.batch_size"]
