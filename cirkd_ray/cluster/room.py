"""Whether trials and cohorts fit the memory of a worker, before any is placed; and how large a pack is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ray
import torch

from cirkd_ray.cluster.capacity import head_bytes, trials_on_head
from cirkd_ray.cluster.measuring import of_one_worker, on_a_worker
from cirkd_ray.cluster.resources import Plan, places_on
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import Tree
from cirkd_ray.device import share_of_gpu
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import read_json, size_text, write_text
from cirkd_ray.sweep.pack import choose, heaviest, memory_text, sharing
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.cohort import cohorts_of
from cirkd_ray.train.distributed import World
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.memory import Taken, counted, measured, most_that_fit, together

PACK = "pack.json"
"""The file of a sweep with the size of its packs, and why."""
MARGIN = 0.1
"""Share of the memory that stays free for what no measurement sees: fragments, workspaces, validation."""
NEAR = 0.25
"""Share of the memory up to which a count of tensors is enough to know that they fit."""
TRIAL = "a trial"
"""Stands for all of a sweep, as the heaviest."""
HOST = "its share of a node's RAM"
Say = Callable[[str], None]


class Room(NamedTuple):
    """What a worker has, and what runs take of it.

    Attributes:
        there: bytes, less the margin; None where nobody knows.
        place: of what.
        taken: name -> what a run takes; of one that does not fit by itself what its tensors count at least.
        full: those that do not.
    """

    there: int | None
    place: str
    taken: dict[str, Taken]
    full: frozenset[str] = frozenset()

    @property
    def told(self) -> str:
        """What a worker has, in words."""
        return f"a worker has {size_text(self.there or 0)} ({self.place}, less {MARGIN:.0%})"


def fitted(sweep: SweepSpec, base: RunSpec, plan: Plan, places: int, folder: Path, say: Say) -> SweepSpec:
    """The space with packs that fit: `auto` is chosen once, which the folder keeps.

    Args:
        sweep: the space.
        base: the recipe of a trial, with the workers and the device that the sweep planned.
        plan: what a trial, or a pack, takes.
        places: trials, or packs, at a time.
        folder: the sweep's.
        say: hears what is chosen.

    Raises:
        ConfigError: a pack of the size that is asked for, or a trial on its part of a GPU, does not fit; with
            the arithmetic.
    """
    pack = sweep.resources.pack
    if pack == 1 and not 0 < plan.gpus < 1:
        return sweep
    known = read_json(folder / PACK)
    if known is not None and (known["asked"], known["gpus"]) == (pack, plan.gpus):
        if pack == "auto":
            say(f"resources.pack: packs of {known['size']}, as when the sweep began: {known['reason']}")
        return _with_pack(sweep, known["size"])
    dry = DryRun()
    room = measure({TRIAL: heaviest(sweep, base, dry)}, plan, places, pack, dry, say)
    if pack == "auto":
        if room.full:
            raise ConfigError(f"train.batch_size: {_refused(room)}; lower it or data.crop")
        trials = sharing(sweep)
        bounds = {
            f"{trials} trials can share": trials,
            f"{places} packs at a time share the trials": -(-trials // places),
            "the head has room for the processes of no more": trials_on_head(head_bytes(), places),
        }
        size, reason = choose(room.taken[TRIAL], room.there, bounds)
        say(f"resources.pack: packs of {size}: {reason}")
    else:
        size, reason = pack, _checked(room, pack)
    write_text(
        folder / PACK,
        json.dumps({"asked": pack, "gpus": plan.gpus, "size": size, "reason": reason}, indent=1),
    )
    return _with_pack(sweep, size)


def _with_pack(sweep: SweepSpec, size: int) -> SweepSpec:
    return sweep.model_copy(update={"resources": sweep.resources.model_copy(update={"pack": size})})


def _checked(room: Room, pack: int) -> str:
    """What a pack takes.

    Raises:
        ConfigError: it does not fit.
    """
    each = room.taken[TRIAL]
    if room.there is not None and (room.full or together([each] * pack) > room.there):
        most = 0 if room.full else most_that_fit(each, room.there)
        advice = f"the largest pack that fits is {most}"
        if most == 0:
            advice = "not even one trial fits; lower train.batch_size or data.crop"
        if pack == 1:
            raise ConfigError(f"cluster.gpus_per_worker: {_refused(room)}; give it a larger part")
        raise ConfigError(f"resources.pack: {_refused(room, pack)}; {advice}")
    return memory_text(each, pack)


def _refused(room: Room, members: int = 1, name: str = TRIAL) -> str:
    take = f"{members} trials take" if members > 1 else f"{name} takes"
    least = " at least" if name in room.full else ""
    return f"{take}{least} {memory_text(room.taken[name], members)}, and {room.told}"


def fitting_cohorts(
    methods: Mapping[str, RunSpec], parts: int, plan: Plan, places: int, say: Say
) -> list[list[str]]:
    """`cohorts_of` runs, in as many more parts as it takes for each cohort to fit.

    Args:
        methods: name -> resolved recipe.
        parts: that each cohort is split into at least.
        plan: what a run takes.
        places: cohorts at a time.
        say: hears that cohorts are smaller for want of memory.

    Raises:
        ConfigError: a run does not fit its part of a GPU.
    """
    cohorts = cohorts_of(methods, parts)
    most, is_part = max(map(len, cohorts)), 0 < plan.gpus < 1
    if most == 1 and not is_part:
        return cohorts
    room = measure(methods, plan, places, most, DryRun(), say)
    if room.there is None:
        return cohorts
    for name in methods if is_part else ():
        if name in room.full or together([room.taken[name]]) > room.there:
            raise ConfigError(f"cluster.gpus_per_worker: {_refused(room, name=name)}; give it a larger part")
    while max(map(len, cohorts)) > 1:
        largest = max(together([room.taken[name] for name in names]) for names in cohorts if len(names) > 1)
        if largest <= room.there:
            break
        say(f"methods that are trained together take {size_text(largest)}, and {room.told}: fewer are")
        parts += 1
        cohorts = cohorts_of(methods, parts)
    return cohorts


def measure(
    specs: Mapping[str, RunSpec], plan: Plan, places: int, pack: int | str, dry: DryRun, say: Say
) -> Room:
    """What a worker has and what runs take of it.

    They are measured on a worker; on CPUs only where what is counted comes near to what is there, or where a
    pack's size asks for their time.

    Args:
        specs: name -> resolved recipe.
        plan: what a run takes.
        places: runs, or cohorts, at a time.
        pack: how many are held together, or "auto".
        dry: counts.
        say: hears that there is a measurement.
    """
    least, ones = dict[str, Taken](), dict[str, RunSpec]()
    for name, spec in specs.items():
        ones[name] = of_one_worker(spec, plan)
        dry.check(ones[name])
        least[name] = counted(ones[name], dry)
    there = None
    if not plan.gpus:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        there = ram_of_worker(plan, nodes, places * plan.workers)
        members = 1 if pack == "auto" else int(pack)
        heavy = max(together([each] * members) for each in least.values())
        if pack != "auto" and (there is None or heavy < NEAR * there):
            return Room(there, HOST, least)
    say(f"a step's memory {'and time are' if pack == 'auto' else 'is'} measured on a worker")
    trees = {name: spec.to_dict() for name, spec in ones.items()}
    return on_a_worker(
        _measure, plan, next(iter(ones.values())), trees, least, there, plan.gpus, pack == "auto"
    )


def ram_of_worker(plan: Plan, nodes: Sequence[Mapping[str, float]], workers: int) -> int | None:
    """Bytes of its node that a worker may take, without the margin; None where nodes do not say.

    Args:
        plan: what a run takes.
        nodes: their resources.
        workers: of all runs that are trained at a time.
    """
    shares = []
    for node in nodes:
        room = places_on([node], plan.cpus, plan.gpus)
        if room and node.get("memory"):
            shares.append(node["memory"] / min(room, max(1, workers)))
    return int((1 - MARGIN) * min(shares)) if shares else None


def _measure(
    device: torch.device,
    trees: Mapping[str, Tree],
    least: Mapping[str, Taken],
    there: int | None,
    gpus: float,
    timed: bool,
) -> Room:
    """What runs take, one after the other; in a task."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler that counts memory is chatty
    place = HOST
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        there = int((1 - MARGIN) * share_of_gpu(total, gpus))
        place = f"{gpus:g} x {torch.cuda.get_device_name(device)}"
    taken, full = dict(least), set()
    for name, tree in trees.items():
        try:
            if there is None or together([least[name]]) <= there:
                taken[name] = measured(from_tree(tree), World(device=device), timed)
                continue
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        full.add(name)
    return Room(there, place, taken, frozenset(full))
