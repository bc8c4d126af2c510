"""A sweep from its file to its result: teacher, trials, controls, finalists. The same call resumes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cirkd_ray.cluster.donors import release_all
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.cluster.space_on_disk import check_disk
from cirkd_ray.config import RunSpec, from_tree, load_tree
from cirkd_ray.config.applied import changed
from cirkd_ray.config.composition import apply_overrides, read_yaml
from cirkd_ray.errors import ConfigError, TrainingError
from cirkd_ray.files import write_text
from cirkd_ray.remote.reading import fetch_all, is_figure
from cirkd_ray.report.loggers import require_loggers
from cirkd_ray.sweep.folder import EXPIRED, SPACE, SweepData, is_expired, read_sweep, write_expired
from cirkd_ray.sweep.space import PAUSING, SweepSpec, is_kept
from cirkd_ray.sweep.space_check import apart, check_space
from cirkd_ray.sweep.space_file import SpaceFile
from cirkd_ray.train.cohort import cohorts_of
from cirkd_ray.train.disk import checkpoint_bytes
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.locked import locked
from cirkd_ray.train.outcome import OUTCOME, write_outcome
from cirkd_ray.train.patience import patient_writes
from cirkd_ray.train.rundir import RunDirectory, movable_tree, moved_spec
from cirkd_ray.train.same_data import DataGuard
from cirkd_ray.train.stages import train_once
from cirkd_ray.train.stall import told_where_it_stalls
from cirkd_ray.train.stop import Stopped, asked
from cirkd_ray.train.teacher import TEACHER, fingerprint, teacher_of, teacher_recipe, with_weights
from cirkd_ray.train.validation import shared_scores

BASE, TUNE = "base.yaml", "tune"
ANEW = "give the sweep another --name, or start it anew with --fresh"
RETRIES = 2
"""Of a trial whose process was lost; what its workers lose is retried by Ray Train."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """A sweep that is under way.

    Attributes:
        spec: its space.
        base: the resolved recipe of a trial before its own values.
        folder: where everything goes.
        out: where teachers are kept.
        data: of the recipe.
    """

    spec: SweepSpec
    base: RunSpec
    folder: Path
    out: Path
    say: Say
    data: DataGuard

    @property
    def pack(self) -> int:
        """Members of a pack at most."""
        return self.spec.pack


def run_sweep(
    space: SpaceFile, folder: Path, out: Path, say: Say, fresh: bool = False, accept_data: bool = False
) -> SweepData:
    """Run or resume a sweep; returns what its folder holds at the end.

    Raises:
        ConfigError: the space is wrong, does not fit, or the folder holds another sweep or other data.
        TrainingError: no trial has finished.
    """
    with told_where_it_stalls(Heartbeat(), say):
        base = check_space(space)
        require_loggers(base)
        dry = DryRun()
        dry.check(base)
        for note in dry.notes:
            say(note)
        if dry.built is not None:
            say(check_disk(space.spec, base, checkpoint_bytes(base, *dry.built), folder, fresh))
        sweep = Sweep(space.spec, base, folder, out, say, DataGuard.of(base, accept_data, say))
    patient = patient_writes(folder, base.cluster.storage_timeout, say)
    with locked(RunDirectory(folder), base.cluster, say), patient:
        fetch_all(folder, is_figure)
        _open(sweep, fresh)
        from cirkd_ray.cluster.capacity import wanted_cpus

        with ray_session(minimum_cpus=wanted_cpus([base])):
            _run(sweep)
    return read_sweep(folder)


def _open(sweep: Sweep, fresh: bool) -> None:
    """Make the folder, or check that it holds this very sweep."""
    path = sweep.folder / SPACE
    if not path.is_file() and any(sweep.folder.glob("[!.]*")):
        raise ConfigError(
            f"{sweep.folder}: holds something else than a sweep; choose another --name or --out"
        )
    if fresh and sweep.folder.exists():
        aside = sweep.folder.with_name(f"{sweep.folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        sweep.folder.rename(aside)
        sweep.say(f"the sweep before is now {aside}")
    if not (sweep.folder / TUNE).exists():  # a start that failed
        (sweep.folder / TEACHER).unlink(missing_ok=True)
    elif path.is_file():
        known = read_yaml(path)
        for key, (before, now) in changed(known, sweep.spec.model_dump(mode="json"), is_kept).items():
            raise ConfigError(f"{sweep.folder}: was started with {key}={before!r}, not {now!r}; {ANEW}")
        if fingerprint(moved_spec(read_yaml(sweep.folder / BASE), sweep.folder)) != fingerprint(sweep.base):
            raise ConfigError(
                f"{sweep.folder}: the recipe {sweep.spec.recipe!r} is not what it was when the sweep began; "
                f"{ANEW}"
            )
        hours = known["budget"]["hours"]
        if hours != sweep.spec.budget.hours and is_expired(sweep.folder):
            raise ConfigError(
                f"{sweep.folder}: {EXPIRED}, which ended its search; leave budget.hours at "
                f"{hours}, or start it anew with --fresh"
            )
    begun = path.is_file() and (sweep.folder / TUNE).exists()
    sweep.data.hold(sweep.folder, begun, ANEW)
    shared_scores(sweep.folder)
    trees = {SPACE: sweep.spec.model_dump(mode="json"), BASE: movable_tree(sweep.base, sweep.folder)}
    for name, tree in trees.items():
        write_text(sweep.folder / name, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _run(sweep: Sweep) -> None:
    """All that needs Ray."""
    import ray

    from cirkd_ray.cluster import capacity
    from cirkd_ray.cluster.latency import LATENCY, measure_students
    from cirkd_ray.cluster.room import fitted

    capacity.check_working_copies(sweep.folder, sweep.spec.scheduler.name == "pbt")
    plan = capacity.largest_plan(sweep.spec, sweep.base, ray.cluster_resources())
    capacity.check_places(plan, sweep.base)
    fits = capacity.cluster_capacity(plan, sweep.spec.resources.concurrent, sweep.pack)
    base = capacity.placed(sweep.spec, sweep.base, plan)
    sweep = replace(sweep, spec=fitted(sweep.spec, base, plan, fits.count, sweep.folder, sweep.say))
    packs = f" packs of {sweep.pack}" if sweep.pack > 1 else ""
    sweep.say(f"{sweep.spec.trials} trials, {fits.count}{packs} at a time ({fits.reason})")
    if packs and apart(sweep.spec):
        sweep.say(f"trials of another {' or '.join(apart(sweep.spec))} are in another pack")
    started = time.perf_counter()
    base = capacity.placed(sweep.spec, _with_teacher(sweep), plan)
    measure_students(sweep.spec, base, sweep.folder / LATENCY)
    _search(sweep, base, fits.count)
    trials = read_sweep(sweep.folder)
    if not trials.ranked:
        reasons = sorted({trial.reason for trial in trials.trials if trial.reason})
        raise TrainingError(f"{sweep.folder}: no trial has come to a result; {'; '.join(reasons[:3])}")
    _controls_and_finalists(sweep, base, trials, fits.count)
    if not is_expired(sweep.folder):
        write_outcome(sweep.folder, status="finished", reason="")
    write_outcome(sweep.folder, ended=time.time(), seconds_of_the_last_call=time.perf_counter() - started)


def _with_teacher(sweep: Sweep) -> RunSpec:
    """Train the teacher once for all trials, unless that has been done."""
    base = sweep.base
    if base.distill is None or base.teacher is None or base.teacher.train is None:
        return base
    from cirkd_ray.cluster.train import fit

    directory = teacher_of(base, sweep.folder, sweep.out, sweep.data, ANEW)
    recipe = teacher_recipe(base)
    train_once(f"teacher {recipe.model.name}", recipe, directory, fit, sweep.say, sweep.data)
    return with_weights(base, directory.path)


def _search(sweep: Sweep, base: RunSpec, at_a_time: int) -> None:
    """Run the trials by Ray Tune."""
    from cirkd_ray.cluster.packs import packed
    from cirkd_ray.cluster.train import fit, fit_pack
    from cirkd_ray.cluster.trial import TrialPlan

    plan = TrialPlan(str(sweep.folder), sweep.spec.model_dump(mode="json"), base.to_dict())
    steps, every = longest(sweep.spec, base), base.train.validate_every
    started, hours = time.monotonic(), sweep.spec.budget.hours
    alone = nullcontext(fit)
    with packed(sweep.folder, sweep.spec, at_a_time, fit_pack) if sweep.pack > 1 else alone as train:
        tuner = make_tuner(plan, sweep.spec, steps, every, at_a_time * sweep.pack, train)
        _set_aside(sweep.folder, {Path(result.path).name for result in tuner.fit()})
    ended = len(list(sweep.folder.glob(f"trials/*/{OUTCOME}")))
    if ended < sweep.spec.trials:
        if hours is not None and time.monotonic() - started >= 3600 * hours:
            write_expired(sweep.folder)
        if asked():
            raise Stopped(f"stopped with {ended} of {sweep.spec.trials} trials ended")
        if not is_expired(sweep.folder):
            raise KeyboardInterrupt  # Tune returns quietly when it is interrupted
        _cut_off(sweep.folder)
    release_all(sweep.folder / "trials")


def _set_aside(folder: Path, known: set[str]) -> None:
    """Move away trials that Tune does not know: begun after it last wrote its state and before its end."""
    for path in (folder / "trials").glob("*/"):
        if path.name not in known:
            (folder / "lost").mkdir(exist_ok=True)
            path.rename(folder / "lost" / path.name)


def _cut_off(folder: Path) -> None:
    """Write down what became of the trials that the end of `budget.hours` has stopped."""
    for path in (folder / "trials").glob("*/"):
        if not (path / OUTCOME).is_file():
            write_expired(path)


def longest(spec: SweepSpec, base: RunSpec) -> int:
    """Steps of the longest trial."""
    parameter = spec.parameters.get("train.steps")
    if parameter is None:
        return base.train.steps
    return int(max(parameter.setting(value) for value in parameter.extremes()))


def make_tuner(plan: Any, spec: SweepSpec, steps: int, report_every: int, at_a_time: int, train: Any) -> Any:
    """The Tuner: restored from the sweep's folder where that holds one, else new.

    Args:
        plan: the TrialPlan.
        spec: the space.
        steps: of the longest trial.
        report_every: steps between its validations.
        at_a_time: trials that run at a time.
        train: `cluster.train.fit`; tests take a stand-in.
    """
    # Read when Tune starts: paths stay as they are, and TrialLog alone says what happens.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    from cirkd_ray.cluster.capacity import driver_resources
    from cirkd_ray.cluster.decisions import LastingScheduler
    from cirkd_ray.cluster.outcomes import TrialLog
    from cirkd_ray.cluster.search import make_scheduler, make_searcher, population_space
    from cirkd_ray.cluster.trial import make_trainable

    trainable = tune.with_resources(make_trainable(plan, train), driver_resources(spec, at_a_time))
    state = Path(plan.folder) / TUNE
    limit = None if spec.scheduler.name in PAUSING else at_a_time
    seconds = spec.budget.hours * 3600 if spec.budget.hours else None
    log, resumed = TrialLog(plan.folder, spec.primary, spec.trials), tune.Tuner.can_restore(str(state))
    scheduler = make_scheduler(spec, steps, report_every)
    if spec.scheduler.name != "none":
        hear, fits = getattr(train, "hear", None), spec.trials <= at_a_time
        scheduler = LastingScheduler(scheduler, plan.folder, spec.searcher.seed, resumed, hear, fits)
    if resumed:
        tuner = tune.Tuner.restore(str(state), trainable, resume_unfinished=True, resume_errored=True)
        # These may differ when a sweep is resumed; Ray has no public way to say so.
        held = tuner._local_tuner._tune_config
        held.max_concurrent_trials, held.time_budget_s, held.scheduler = limit, seconds, scheduler
        tuner._local_tuner._run_config.callbacks = [log]  # of the folder's place now
        return tuner
    single = None if spec.multi_objective else spec.primary
    return tune.Tuner(
        trainable,
        param_space=population_space(spec),
        tune_config=tune.TuneConfig(
            metric=single,
            mode=spec.metric[single] if single else None,
            search_alg=make_searcher(spec),
            scheduler=scheduler,
            num_samples=spec.trials,
            max_concurrent_trials=limit,
            time_budget_s=seconds,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[log],
            verbose=0,
        ),
    )


def _controls_and_finalists(sweep: Sweep, base: RunSpec, trials: SweepData, at_a_time: int) -> None:
    """The recipe's own values, and no distillation, at one budget and the same seeds; the best with all."""
    from cirkd_ray.cluster.pool import Job, run_jobs
    from cirkd_ray.cluster.train import fit, fit_cohort

    jobs = []
    controls = control_runs(base, longest(sweep.spec, base)) if sweep.spec.controls else {}
    for seed in sweep.spec.seeds:
        for name, spec in controls.items():
            jobs.append((f"controls/{name}-s{seed}", spec, seed))
    for trial in trials.ranked[: sweep.spec.finalists]:
        spec = from_tree(apply_overrides(base.to_dict(), trial.settings))
        jobs += [(f"finalists/{trial.id}-s{seed}", spec, seed) for seed in sweep.spec.seeds[1:]]
    runs = {name: from_tree({**spec.to_dict(), "seed": seed, "name": name}) for name, spec, seed in jobs}
    packs = [
        group[i : i + sweep.pack] for group in cohorts_of(runs) for i in range(0, len(group), sweep.pack)
    ]
    results = run_jobs(
        [
            Job(name, runs[name], sweep.folder / name, sweep.folder / "packs" / f"c{number}")
            for number, names in enumerate(packs)
            for name in names
        ],
        at_a_time,
        sweep.say,
        fit,
        fit_cohort if sweep.pack > 1 else None,
    )
    failed = {name: reason for name, reason in results.items() if isinstance(reason, str)}
    write_outcome(sweep.folder, failures=failed)


def control_runs(base: RunSpec, steps: int) -> dict[str, RunSpec]:
    """Name -> recipe of the controls: `defaults`, and `baseline` where there is distillation to leave out.

    Both train for `steps`, those of the longest trial.
    """
    tree = apply_overrides(base.to_dict(), {"train.steps": steps})
    runs = {"defaults": from_tree(tree)}
    if base.distill is not None:
        runs["baseline"] = from_tree({**tree, "distill": None, "teacher": None})
    return runs


def best_recipe(spec: SweepSpec, settings: dict[str, Any]) -> RunSpec:
    """A configuration as a recipe of full length: the space's recipe and `set`, without the budget."""
    tree = apply_overrides(load_tree(spec.recipe), {**spec.set, **settings})
    tree["name"], tree["description"] = (
        f"{spec.name}-best",
        f"the best configuration of the sweep {spec.name}",
    )
    return from_tree(tree)
