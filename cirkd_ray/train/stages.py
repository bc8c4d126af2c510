"""What stands around a run: its directory and name, its teacher's and baseline's runs, resuming it."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cirkd_ray.config import RunSpec
from cirkd_ray.errors import CheckpointError, ConfigError
from cirkd_ray.remote.copies import address, url_of
from cirkd_ray.remote.reading import fetch_near
from cirkd_ray.train.baseline import baseline_block, baseline_directory, baseline_recipe, has_baseline
from cirkd_ray.train.checkpoint import none_is_whole
from cirkd_ray.train.disk import checkpoint_bytes, require_room
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.locked import locked
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import Runner, Together, train_together
from cirkd_ray.train.same_data import DataGuard
from cirkd_ray.train.stall import told_where_it_stalls
from cirkd_ray.train.teacher import slug, teacher_of, teacher_recipe, with_weights

ANEW = "start a new run under another --name"


@dataclass(frozen=True)
class Outcome:
    """A finished run, its teacher's and its baseline's.

    Attributes:
        teacher: the directory of the teacher's run, where the recipe trains its teacher.
        baseline: the directory of the run without distillation, where the recipe asks for one.
        reused: those that had been trained before.
    """

    directory: RunDirectory
    result: dict[str, Any]
    teacher: RunDirectory | None = None
    baseline: RunDirectory | None = None
    reused: tuple[RunDirectory, ...] = ()


def run_name(recipe: str) -> str:
    """A unique name: the recipe, the time and four random digits."""
    return f"{slug(recipe)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def named_folder(out: Path, name: str) -> Path:
    """The folder that `--name` names.

    Raises:
        ConfigError: it is not the name of one folder in `out`.
    """
    if name.strip() in ("", ".", "..") or "/" in name or len(name.encode()) > 200:
        raise ConfigError(f"--name {name[:40]!r}: give the name of one folder, without '/'")
    if "?" in name and url_of(out) is not None:
        raise ConfigError(f"--name {name[:40]!r}: a URL ends at a '?'; leave it out")
    return out / name


def run_recipe(
    spec: RunSpec,
    directory: RunDirectory,
    out: Path,
    runner: Runner,
    *,
    resume: bool = False,
    restart: bool = False,
    accept_data: bool = False,
    say: Callable[[str], None] = lambda text: None,
    together: Together | None = None,
) -> Outcome:
    """Train what the recipe says and nobody has yet, the teacher and the baseline, then the run itself.

    The result's block `baseline` says where that is and how it scored.

    Args:
        spec: a resolved recipe.
        directory: of this run.
        out: where teachers and baselines are kept.
        runner: trains one recipe in one directory.
        resume: continue `directory` where it holds a run already.
        restart: start a run over whose checkpoints are all damaged.
        accept_data: take data that changed since a run or teacher was begun for the same.
        say: hears what happens.
        together: trains the run and its baseline at once, as a cohort; by default one is trained after the
            other.

    Raises:
        ConfigError: the directory holds a run already, or one of another recipe or of other data.
    """
    with told_where_it_stalls(Heartbeat(), say):
        notes = _check(spec, directory, say)
        stages = _Stages(out, runner, say, DataGuard.of(spec, accept_data, say), restart)
    with locked(directory, spec.cluster, say):
        _open(spec, directory, stages.data, resume, restart)
        for note in notes:
            directory.log(note)
        spec, teacher = stages.teacher(spec, directory)
        result = directory.read_finished()
        if result is not None:
            say(f"{address(directory.path)} is finished; this is its result")
            together = None
        baseline, trained = stages.baseline(spec, directory, together)
        result = result or trained
        if result is None:
            if teacher is not None or baseline is not None:
                say(_training(spec, directory))
            result = runner(spec, directory)
        if baseline is not None:
            result = {**result, "baseline": baseline_block(baseline, directory.path)}
            directory.write_result(result)
    return Outcome(directory, result, teacher, baseline, tuple(stages.reused))


@dataclass
class _Stages:
    """What a run shares with others; arguments of `run_recipe`.

    Attributes:
        reused: what had been trained before.
    """

    out: Path
    runner: Runner
    say: Callable[[str], None]
    data: DataGuard
    restart: bool
    reused: list[RunDirectory] = field(default_factory=list)

    def teacher(self, spec: RunSpec, directory: RunDirectory) -> tuple[RunSpec, RunDirectory | None]:
        """The recipe with its teacher's weights, and the run that trained them if the recipe asks for one."""
        if spec.distill is None or spec.teacher is None or spec.teacher.train is None:
            return spec, None
        place = teacher_of(spec, directory.path, self.out, self.data, ANEW)
        plan = teacher_recipe(spec)
        with self._untrained(f"teacher {plan.model.name}", plan, place) as new:
            if new:
                self.runner(plan, place)
        return with_weights(spec, place.path), place

    def baseline(
        self, spec: RunSpec, directory: RunDirectory, together: Together | None
    ) -> tuple[RunDirectory | None, dict[str, Any] | None]:
        """The baseline's run if the recipe asks for one, and the run's own result if both were trained
        together."""
        if not has_baseline(spec):
            return None, None
        plan, result = baseline_recipe(spec), None
        place = RunDirectory(self.data.on(plan).shared(baseline_directory(plan, self.out).path))
        with self._untrained(f"student alone, {plan.model.name}", plan, place) as new:
            if new and together is not None:
                self.say(f"{_training(spec, directory)}, together with the student alone")
                result = train_together([(spec, directory), (plan, place)], together, self.say)[0]
            elif new:
                self.runner(plan, place)
        return place, result

    @contextmanager
    def _untrained(self, name: str, plan: RunSpec, place: RunDirectory) -> Iterator[bool]:
        with untrained(name, plan, place, self.say, self.data, self.restart) as new:
            if not new:
                self.reused.append(place)
            yield new


def _training(spec: RunSpec, directory: RunDirectory) -> str:
    return f"student {spec.model.name}: training for {spec.train.steps} steps in {address(directory.path)}"


def _open(spec: RunSpec, directory: RunDirectory, data: DataGuard, resume: bool, restart: bool) -> None:
    """Make a run's directory, or check that it holds this very run, on the same data, and sound.

    Raises:
        UserError: it does not.
    """
    begun = directory.begun()
    open_directory(directory, spec, resume)
    data.hold(directory.path, begun, ANEW)
    require_whole(directory, restart)


def _check(spec: RunSpec, directory: RunDirectory, say: Callable[[str], None]) -> tuple[str, ...]:
    """A dry run of the recipe, and whether the disk has room for what is still to be trained; says and
    returns its notes."""
    dry = DryRun()
    dry.check(spec)
    if dry.built is not None and not directory.result.exists():
        require_room(spec, checkpoint_bytes(spec, *dry.built), directory.path)
    for note in dry.notes:
        say(note)
    return tuple(dry.notes)


def train_once(
    name: str,
    spec: RunSpec,
    directory: RunDirectory,
    runner: Runner,
    say: Callable[[str], None],
    data: DataGuard | None = None,
    restart: bool = False,
) -> bool:
    """Train what several runs share unless it is there; returns whether it was.

    Args and errors are those of `untrained`.
    """
    with untrained(name, spec, directory, say, data, restart) as new:
        if new:
            runner(spec, directory)
    return not new


@contextmanager
def untrained(
    name: str,
    spec: RunSpec,
    directory: RunDirectory,
    say: Callable[[str], None],
    data: DataGuard | None = None,
    restart: bool = False,
) -> Iterator[bool]:
    """Hold the directory of what several runs share; the block trains it where it gets True.

    Args:
        name: what messages call it.
        spec: a resolved recipe.
        directory: where it is trained, or was.
        say: hears what happens.
        data: what it is trained on, and must have been.
        restart: as of `run_recipe`.

    Raises:
        ConfigError: it was begun there on other data than `data`, and is not finished.
    """

    def wait() -> None:
        say(f"{name}: waiting for the process that trains {address(directory.path)}")

    with locked(directory, spec.cluster, say, wait):
        finished, begun = directory.read_finished() is not None, directory.begun()
        if finished:
            if data is not None:
                data.on(spec).adopt(directory.path, begun)
            say(f"{name}: trained before, in {address(directory.path)}")
        else:
            open_directory(directory, spec, resume=True)
            if data is not None:
                data.on(spec).hold(directory.path, begun, "move that folder away to train it anew")
            require_whole(directory, restart)
            say(f"{name}: training for {spec.train.steps} steps in {address(directory.path)}")
        yield not finished


def require_whole(directory: RunDirectory, restart: bool) -> None:
    """Refuse an unfinished run whose checkpoints are all damaged; with `restart`, delete these instead.

    Raises:
        CheckpointError: with what is there.
    """
    problem = None if directory.result.exists() else none_is_whole(directory.checkpoints)
    if problem is None:
        return
    if not restart:
        raise CheckpointError(f"{directory.checkpoints}: {problem}")
    shutil.rmtree(directory.checkpoints)


def latest_run(out: Path, recipe: str) -> RunDirectory | None:
    """The newest unfinished run of a recipe in `out` that `run_name` named, or None."""
    name = re.compile(re.escape(slug(recipe)) + r"-\d{8}-\d{6}-[0-9a-f]{4}")
    fetch_near(out / slug(recipe), lambda found: name.fullmatch(found) is not None)
    found = [RunDirectory(path.parent) for path in out.glob("*/run.yaml")]
    unfinished = [run for run in found if name.fullmatch(run.path.name) and not run.result.exists()]
    return max(unfinished, key=lambda run: run.path.name, default=None)
