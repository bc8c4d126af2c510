"""The order in which the members of a pack report, and what schedulers decide on it; without a cluster.

`Packed` stands for a sweep in packs: of those whose turn it is, chance says who is heard next.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from cirkd_ray.cluster.gathering import Gathering, Waiting
from cirkd_ray.cluster.scheduler_state import Fate
from cirkd_ray.cluster.turns import PATIENCE, Turns
from tests.tinyrun import tiny_baseline
from tests.unit.test_sweep_decisions import RATES, STEPS, Tune, swept


def test_members_report_by_time_and_number() -> None:
    turns, one, other = Turns({"a": 0, "b": 1, "c": 2}), object(), object()
    assert not turns.may("a", 1, 0.0)  # it waits for a pack
    for trial, pack in (("a", one), ("b", one), ("c", other)):
        turns.begin(trial, pack, 0)
    assert [turns.may(trial, 1, 0.0) for trial in "abc"] == [True, False, True]  # c is of another pack
    assert not turns.may("a", 2, 0.0)
    turns.heard["a"] = 1
    assert turns.may("b", 1, 0.0)
    assert not turns.may("a", 2, 0.0)
    turns.heard["b"] = 1
    assert turns.may("a", 1, 0.0)  # again, after its process was lost
    assert turns.may("a", 2, 0.0)
    turns.leave("a")
    assert turns.may("b", 2, 0.0)


def test_a_trial_that_starts_again_from_a_donor_is_waited_for_but_not_for_ever() -> None:
    turns, pack = Turns({"a": 0, "b": 1}), object()
    for trial in "ab":
        turns.begin(trial, pack, 3)
    turns.returns("a", 2, now=10.0)
    assert not turns.may("b", 4, 10.0 + PATIENCE)
    assert turns.may("b", 4, 11.0 + PATIENCE)
    turns.begin("a", pack, 2)
    assert not turns.may("b", 4, 1e9)
    assert turns.may("a", 3, 1e9)


class Packed(Tune):
    """A sweep in packs of `size`, one at a time, whose members are heard by chance where `ordered` is off."""

    size, seed, ordered = 4, 0, True

    def __init__(self, *arguments: Any) -> None:
        self.turns, self.random = Turns(), random.Random(self.seed)
        self.gathering = Gathering(self.size, 1)
        super().__init__(*arguments)

    def hear(self, trial: str, number: int, report: int, fate: Fate) -> None:
        self.turns.numbers[trial] = number
        if fate == "stays":
            self.turns.heard[trial] = report
        elif fate == "returns":
            self.turns.returns(trial, report, 0.0)
        elif fate != "comes":
            self.turns.leave(trial)
        pack = self.gathering.pack_of(trial)
        if pack is not None and fate not in ("stays", "comes"):
            del pack.members[trial]
            self.gathering.running = [pack for pack in self.gathering.running if pack.members]

    def _start(self, trial: Trial) -> None:
        super()._start(trial)
        donor = Path("donor") if (trial.last_result or trial.checkpoint) else None
        heard = int((trial.last_result or {}).get("report", 0)) if donor else 0
        spec = tiny_baseline()
        self.gathering.add(Waiting(trial.trial_id, spec, Path("nowhere"), donor, heard), 0.0)

    def choose(self, running: list[Trial]) -> Trial:
        coming = len(RATES) - sum(trial.is_finished() for trial in self.trials)
        coming -= sum(trial.status == Trial.PAUSED for trial in self.trials)
        begun = self.gathering.joining()
        begun += [
            (pack, each)
            for pack in self.gathering.starting(coming, 0.0, self.turns.numbers)
            for each in pack.members.values()
        ]
        for pack, each in begun:
            self.turns.begin(each.trial, pack, each.heard)
        packed = [t for t in running if t.trial_id in self.turns.packs]
        first = [t for t in packed if self.turns.may(t.trial_id, self._next(t), 0.0)]
        new = [t for t in first if self._next(t) > self.turns.heard[t.trial_id]]  # not told once more
        assert first
        assert len(new) <= 1, "it depends on chance"
        return self.random.choice(first if self.ordered else packed)

    def _next(self, trial: Trial) -> int:
        """The time of a trial's next report."""
        missed = self.missed[trial.trial_id]
        if missed:
            return missed[0][1]
        run = self.disk.runs[trial.trial_id]
        mine = [row[1] for row in run.rows if row[0] == len(run.parents) - 1]
        parent = run.parents[-1]
        return (mine[-1] if mine else parent[1] if parent else 0) + 1


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median"])
def test_a_packed_sweep_stops_the_same_trials_at_the_same_steps(tmp_path: Path, scheduler: str) -> None:
    """As one whose trials run one at a time, or several in rounds."""
    packed, _ = swept(tmp_path / "packed", scheduler, 4, kind=Packed)
    assert min(packed.ends.values()) < max(packed.ends.values()) == STEPS
    for slots in (1, 2, 4):
        apart, _ = swept(tmp_path / f"{slots}", scheduler, slots)
        assert packed.ends == apart.ends, slots


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "pbt"])
def test_a_packed_sweep_that_is_interrupted_decides_as_an_undisturbed_one(
    tmp_path: Path, scheduler: str
) -> None:
    slots = len(RATES) if scheduler == "pbt" else 4
    kind = type("Packed", (Packed,), {"size": slots})
    whole, events = swept(tmp_path / "whole", scheduler, slots, kind=kind)
    if scheduler == "pbt":
        assert any(len(run.parents) > 1 for run in whole.runs.values())
    for event in range(1, events, 9):
        moment = ("before", "decided", "done")[event % 3]
        kills = ((event, moment), (3, "decided"))
        disk, _ = swept(tmp_path / f"{event}", scheduler, slots, kills, kind=kind)
        assert (disk.ends, disk.runs) == (whole.ends, whole.runs), kills


def test_without_turns_chance_decides(tmp_path: Path) -> None:
    """So that the tests above are known to see it."""
    found = []
    for seed in range(6):
        kind = type("Packed", (Packed,), {"seed": seed, "ordered": False})
        found.append(swept(tmp_path / f"{seed}", "asha", 4, kind=kind)[0].ends)
    assert any(ends != found[0] for ends in found)
