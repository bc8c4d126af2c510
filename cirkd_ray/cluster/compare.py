"""Methods x seeds at one budget, data order and evaluator, always with a retrained baseline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from cirkd_ray.cluster.session import ray_session
from cirkd_ray.compare.budget import Budget
from cirkd_ray.compare.folder import COMPARISON, CompareData, read_comparison
from cirkd_ray.compare.plan import open_comparison, seeds_of
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.files import write_text
from cirkd_ray.remote.reading import fetch_all, is_figure
from cirkd_ray.report.loggers import require_loggers
from cirkd_ray.train.dry_run import check_run
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.locked import locked
from cirkd_ray.train.outcome import write_outcome
from cirkd_ray.train.patience import patient_writes
from cirkd_ray.train.rundir import RunDirectory, relative
from cirkd_ray.train.same_data import DataGuard, trained_in
from cirkd_ray.train.stages import train_once
from cirkd_ray.train.stall import told_where_it_stalls
from cirkd_ray.train.teacher import teacher_directory, teacher_recipe, used_teacher, with_weights
from cirkd_ray.train.validation import shared_scores

TEACHERS = "teachers.json"
ANEW = "give the comparison another --name"
Say = Callable[[str], None]


def run_comparison(
    methods: dict[str, RunSpec],
    seeds: int,
    folder: Path,
    out: Path,
    say: Say,
    at_a_time: int | None = None,
    accept_data: bool = False,
    apart: bool = False,
    budget: Budget = "steps",
) -> CompareData:
    """Run or continue a comparison; returns what its folder holds at the end.

    Args:
        methods: of `compare.plan.methods_of`.
        seeds: runs of each method, with seeds from the recipes' `seed` on; more may be asked for later.
        folder: where everything goes.
        out: where teachers are kept.
        say: hears what happens.
        at_a_time: runs at a time at most; default: what fits.
        accept_data: take data that changed since the comparison or a teacher was begun for the same.
        apart: train each run alone; by default the methods of a seed share batches and their teacher's
            forward pass where they can.
        budget: what is equal between the methods; with "time" their steps are set by a timing at the start.

    Raises:
        ConfigError: a run does not fit the cluster, or the folder holds another comparison or one of other
            data.
    """
    wanted = seeds_of(methods, seeds)
    for spec in methods.values():
        require_loggers(spec)
    with told_where_it_stalls(Heartbeat(), say):
        for note in check_run(*methods.values()):
            say(note)
        data = DataGuard.of(next(iter(methods.values())), accept_data, say)
    patient = patient_writes(folder, data.spec.cluster.storage_timeout, say)
    with locked(RunDirectory(folder), data.spec.cluster, say), patient:
        fetch_all(folder, is_figure)
        begun = (folder / COMPARISON).is_file() and trained_in(folder)
        open_comparison(methods, folder, budget)
        for name, spec in methods.items():  # of others only where --differ names the data
            place = folder if spec.data == data.spec.data else folder / "data" / name
            of_method = data.on(spec)
            of_method.hold(place, begun and place.is_dir(), ANEW)
            for seed in wanted:
                of_method.mark(folder / "runs" / f"{name}-s{seed}")
        shared_scores(folder)
        from cirkd_ray.cluster.capacity import wanted_cpus

        with ray_session(minimum_cpus=wanted_cpus(list(methods.values()))):
            _run(methods, wanted, folder, out, say, data, at_a_time, apart, budget)
    return read_comparison(folder)


def _run(
    methods: dict[str, RunSpec],
    seeds: range,
    folder: Path,
    out: Path,
    say: Say,
    data: DataGuard,
    at_a_time: int | None,
    apart: bool,
    budget: Budget,
) -> None:
    import ray

    from cirkd_ray.cluster.capacity import check_places, check_working_copies, cluster_capacity
    from cirkd_ray.cluster.equal_time import with_equal_time
    from cirkd_ray.cluster.pool import Job, run_jobs
    from cirkd_ray.cluster.resources import plan_run
    from cirkd_ray.cluster.room import fitting_cohorts
    from cirkd_ray.cluster.train import fit, fit_cohort

    check_working_copies(folder, passed_on=False)
    plans = [plan_run(spec, ray.cluster_resources()) for spec in methods.values()]
    for each, spec in zip(plans, methods.values(), strict=True):
        check_places(each, spec)
    plan = max(plans, key=lambda p: (p.workers * p.gpus, p.total_cpus))
    fits = cluster_capacity(plan, at_a_time)
    say(f"{len(methods)} methods x {len(seeds)} seeds, {fits.count} runs at a time ({fits.reason})")
    trained = _with_teachers(methods, folder, out, say, data)
    if budget == "time":
        trained = with_equal_time(trained, folder, plan, say)
    # No more share than leaves a cohort for each place: idle places would cost more time than sharing saves.
    parts = 1 if fits.count < 2 * len(seeds) else fits.count // len(seeds)
    cohorts = [[n] for n in trained] if apart else fitting_cohorts(trained, parts, plan, fits.count, say)
    shared = max(map(len, cohorts))
    if shared > 1:
        say(f"up to {shared} methods of a seed are trained together, with one teacher (not so: --apart)")
    jobs = []
    for seed in seeds:  # one by one: an interrupted comparison has as many whole rows as it can
        for number, names in enumerate(cohorts):
            for name in names:
                run = from_tree({**trained[name].to_dict(), "seed": seed, "name": f"{name}-s{seed}"})
                place = folder / "cohorts" / f"s{seed}-{number}"
                jobs.append(Job(f"{name}-s{seed}", run, folder / "runs" / f"{name}-s{seed}", place))
    found = run_jobs(jobs, fits.count, say, fit, None if apart else fit_cohort)
    write_outcome(folder, failures={name: how for name, how in found.items() if isinstance(how, str)})


def _with_teachers(
    methods: dict[str, RunSpec], folder: Path, out: Path, say: Say, data: DataGuard
) -> dict[str, RunSpec]:
    """The methods with their teachers' weights; a teacher is trained once, for all methods and seeds.

    Raises:
        ConfigError: a method was begun with another teacher.
    """
    from cirkd_ray.cluster.train import fit

    path = folder / TEACHERS
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    trains = {
        name: used_teacher(spec, out, known[name], folder, ANEW)
        if name in known
        else teacher_directory(spec, out, data)
        for name, spec in methods.items()
        if spec.distill is not None and spec.teacher is not None and spec.teacher.train is not None
    }
    for name, directory in {d.path: (name, d) for name, d in trains.items()}.values():
        recipe = teacher_recipe(methods[name])
        train_once(f"teacher {recipe.model.name}", recipe, directory, fit, say, data)
    found = {
        name: with_weights(spec, trains[name].path) if name in trains else spec
        for name, spec in methods.items()
    }
    weights = {n: s.teacher.weights for n, s in found.items() if s.teacher is not None and s.teacher.weights}
    write_text(path, json.dumps({**known, **{name: relative(w, folder) for name, w in weights.items()}}))
    return found
