"""Starts the trainings that `bench scale` compares, and gives them their turns."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from cirkd_ray.bench import _scale_rank
from cirkd_ray.bench._scale_model import BLOCK
from cirkd_ray.bench._scale_turns import Block, Paced, Turns
from cirkd_ray.bench._step_build import classes_of
from cirkd_ray.cluster.session import in_cluster
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.teacher import with_weights
from cirkd_ray.train.untrained import untrained_teacher
from cirkd_ray.weights import save_model


@dataclass(frozen=True)
class Found:
    """What a training's turns showed: each turn, and the last words of its processes."""

    blocks: list[Block]
    figures: list[dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """Processes that train beside each other.

    Attributes:
        name: of it.
        spec: the recipe.
        ranks: processes that exchange gradients.
        copies: so many such trainings at once, which do not know of each other.
        timed: with a clock at the parts of a step.
    """

    name: str
    spec: RunSpec
    ranks: int = 1
    copies: int = 1
    timed: bool = True


def prepared(spec: RunSpec, folder: Path) -> RunSpec:
    """The recipe with an untrained teacher where it trains one first."""
    if spec.teacher is None or spec.teacher.train is None or spec.distill is None:
        return spec
    classes = classes_of(spec)
    teacher = untrained_teacher(spec, classes)
    assert teacher is not None
    save_model(teacher, folder / "teacher", classes)
    return with_weights(spec, folder / "teacher")


def check_machine(workers: int, place: torch.device, ray: bool) -> None:
    """Whether the trainings find what they need here.

    Raises:
        ConfigError: there are fewer GPUs than workers, or the environment names a cluster.
    """
    if place.type == "cuda" and workers > torch.cuda.device_count():
        raise ConfigError(f"--workers: {workers} workers on {torch.cuda.device_count()} GPUs; ask for fewer")
    if ray and in_cluster():
        raise ConfigError(
            "RAY_ADDRESS: Ray's part of a step is measured on a Ray of this command's own; unset it, or "
            "leave that out with --no-ray"
        )


def groups(specs: Mapping[int, RunSpec], folder: Path, turns: int) -> dict[str, Found]:
    """Trainings of so many workers, and of the least of several also as many that are each alone."""
    trainings = [Training(str(n), spec, ranks=n) for n, spec in specs.items()]
    several = [n for n in specs if n > 1]
    if several and 1 in specs:
        trainings.append(Training(f"{several[0]} apart", specs[1], copies=several[0]))
    threads = max(1, len(os.sched_getaffinity(0)) // max(specs))
    with processes(trainings, folder, threads) as referee:
        referee.gather()
        _take_turns(referee, turns)
        return {t.name: Found(referee.blocks[t.name], referee.end(t.name)) for t in trainings}


def beside_ray(spec: RunSpec, folder: Path, turns: int) -> dict[str, Any]:
    """The same training in a plain process and in a worker of Ray Train on this machine.

    Returns:
        Of `plain` and `Ray` what was `Found`; `own`: processors that Ray's other processes kept busy.
    """
    found: dict[str, Any] = {}
    errors: list[BaseException] = []

    def judge(referee: Turns) -> None:
        try:
            referee.gather()
            before, since = _own_seconds(), time.monotonic()
            _take_turns(referee, turns)
            found["own"] = (_own_seconds() - before) / (time.monotonic() - since)
            found["plain"] = Found(referee.blocks["plain"], referee.end("plain"))
            found["Ray"] = Found(referee.blocks["Ray"], referee.end("Ray", figures=False))
        except BaseException as error:
            errors.append(error)
            referee.close()  # those that wait for a turn end, too

    plain = Training("plain", spec, timed=False)
    with processes([plain], folder, 1, also={"Ray": 1}) as referee:
        judging = Thread(target=judge, args=(referee,), name="turns")
        judging.start()
        try:
            _under_ray(spec, folder, partial(Paced, referee.address, "Ray", BLOCK))
        except BaseException:
            referee.problem = "the training under Ray ended before its time"
            raise
        finally:
            judging.join()
    for error in errors:
        raise error
    return found


def _under_ray(spec: RunSpec, folder: Path, heartbeat: Callable[[], Paced]) -> None:
    from cirkd_ray.cluster.capacity import wanted_cpus
    from cirkd_ray.cluster.session import ray_session
    from cirkd_ray.cluster.train import fit

    directory = RunDirectory(folder / "ray")
    directory.create(spec)
    with ray_session(minimum_cpus=wanted_cpus([spec])):
        fit(spec, directory, heartbeat=heartbeat)


def _take_turns(referee: Turns, turns: int) -> None:
    """Each training has so many turns; the order is turned round each time."""
    names = [*referee.leaders]
    for number in range(turns):
        for name in names if number % 2 == 0 else reversed(names):
            referee.turn(name)


@contextmanager
def processes(
    trainings: list[Training], folder: Path, threads: int, also: Mapping[str, int] | None = None
) -> Iterator[Turns]:
    """Start the trainings' processes; they end with the block at the latest.

    Args:
        trainings: what is started.
        folder: for their runs.
        threads: of each process.
        also: trainings that others start, which take turns, too.
    """
    context, started = get_context("spawn"), list[Any]()

    def alive() -> str:
        failed = [p.name for p in started if p.exitcode not in (None, 0)]
        return f"{failed[0]} ended with exit code {_code(started, failed[0])}; see above" if failed else ""

    leaders = {t.name: t.copies for t in trainings} | dict(also or {})
    place = folder / secrets.token_hex(4)
    place.mkdir()
    short = tempfile.mkdtemp(prefix="cirkd-")  # a socket's path must not be long, as that of --out may be
    referee = Turns(Path(short), leaders, alive)
    try:
        for training in trainings:
            for copy in range(training.copies):
                directory = RunDirectory(place / f"{training.name}-{copy}".replace(" ", "-"))
                directory.create(training.spec)
                config = {
                    "spec": training.spec.to_dict(),
                    "directory": str(directory.path),
                    "ranks": training.ranks,
                    "place": copy,
                    "threads": threads,
                    "meeting": str(place / f"meeting-{len(started)}"),
                    "address": referee.address,
                    "name": training.name,
                    "block": BLOCK,
                    "timed": training.timed,
                }
                for rank in range(training.ranks):
                    name = f"rank {rank} of {training.name}"
                    process = context.Process(target=_scale_rank.main, args=(rank, config), name=name)
                    process.start()
                    started.append(process)
        yield referee
        for process in started:
            process.join(timeout=60)
    finally:
        referee.close()
        for process in started:
            process.kill()
            process.join()
        shutil.rmtree(short, ignore_errors=True)


def _code(started: list[Any], name: str) -> int | None:
    return next((process.exitcode for process in started if process.name == name), None)


def _own_seconds() -> float:
    """Seconds of a processor that Ray's processes of this session have taken, the training's worker apart."""
    parents: dict[int, int] = {}
    taken: dict[int, float] = {}
    ours = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            words = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        number = int(stat.parent.name)
        parents[number] = int(fields[1])
        taken[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if b"RayTrainWorker" in words or b"multiprocessing" in words:
            ours.add(number)
    total = 0.0
    for number, seconds in taken.items():
        above = number
        while above in parents and above != os.getpid() and above not in ours:
            above = parents[above]
        if above == os.getpid() and number != above:
            total += seconds
    return total
