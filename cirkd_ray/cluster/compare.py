"""Methods x seeds at one budget, data order and evaluator, always with a retrained baseline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cirkd_ray.cluster.session import ray_session
from cirkd_ray.compare.folder import COMPARISON, CompareData, read_comparison
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.applied import paths_of
from cirkd_ray.config.composition import flatten, read_yaml
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.files import write_text
from cirkd_ray.train.outcome import write_outcome
from cirkd_ray.train.preflight import check_run
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import locked, train_teacher
from cirkd_ray.train.teacher import (
    CHANGEABLE,
    FREE,
    fingerprint,
    slug,
    teacher_directory,
    teacher_recipe,
    with_weights,
)

EQUAL = ("train.", "data.", "model.", "optim.", "task.")
"""What must not differ between methods: else it is not the methods that are compared."""
BASELINE, TEACHERS = "baseline", "teachers.json"
Say = Callable[[str], None]


def methods_of(specs: Sequence[tuple[str, RunSpec]], allow: Sequence[str] = ()) -> dict[str, RunSpec]:
    """Name -> recipe of what is compared, the baseline first: the one without distillation, or one made.

    Args:
        specs: (recipe as the user named it, resolved recipe).
        allow: paths (or their beginnings) that may differ between the methods.

    Raises:
        ConfigError: two recipes differ in more than the method.
    """
    names = _short([name for name, _ in specs])
    methods = {names[index]: spec for index, (_, spec) in enumerate(specs)}
    if len(methods) < len(specs):
        raise ConfigError("RECIPE: two recipes have the same name; give each once")
    plain = [name for name, spec in methods.items() if spec.distill is None]
    if len(plain) > 1:
        raise ConfigError(
            f"{plain[0]} and {plain[1]}: both train without distillation; one baseline is enough"
        )
    first_name, first = next(iter(methods.items()))
    for name, spec in methods.items():
        _check_equal(first_name, first, name, spec, allow)
    made = from_tree({**first.to_dict(), "distill": None, "teacher": None})
    control = methods.pop(plain[0]) if plain else made
    if BASELINE in methods:
        raise ConfigError(
            f"RECIPE: a recipe that distils is named {BASELINE!r}, as the one without distillation is in a "
            "comparison; give its file another name"
        )
    return {BASELINE: control, **methods}


def _short(names: Sequence[str]) -> list[str]:
    """Names without the folders that all share; of files, their stems where these differ."""
    files = [name.endswith((".yaml", ".yml")) for name in names]
    paths = [Path(name).with_suffix("") if f else Path(name) for name, f in zip(names, files, strict=True)]
    parts = [(p.name,) if f else p.parts for p, f in zip(paths, files, strict=True)]
    if len(set(parts)) < len(parts):
        parts = [p.parts for p in paths]
    shared = 0
    while all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [slug("-".join(p[shared:]).strip("/")) for p in parts]


def _check_equal(first_name: str, first: RunSpec, name: str, spec: RunSpec, allow: Sequence[str]) -> None:
    before, now = flatten(first.to_dict()), flatten(spec.to_dict())
    free = (*CHANGEABLE, *allow)
    for key in sorted({**before, **now}, key=lambda k: (not k.endswith(".name"), k)):
        if not key.startswith(EQUAL) or key.startswith(free) or before.get(key) == now.get(key):
            continue
        equal = shlex.quote(f"{key}={before.get(key)}")
        raise ConfigError(
            f"{key}: is {before.get(key)!r} in {first_name} and {now.get(key)!r} in {name}; methods are "
            f"compared at one setting: --set {equal}, or --differ {key} if it is the method"
        )


def run_comparison(
    methods: dict[str, RunSpec], seeds: int, folder: Path, out: Path, say: Say, at_a_time: int | None = None
) -> CompareData:
    """Run or continue a comparison; returns what its folder holds at the end.

    Args:
        methods: of `methods_of`.
        seeds: runs of each method, with the seeds 0, 1, ...; more may be asked for later.
        folder: where everything goes.
        out: where teachers are kept.
        say: hears what happens.
        at_a_time: runs at a time at most; default: what fits.

    Raises:
        ConfigError: a run does not fit the cluster, or the folder holds another comparison.
    """
    for spec in methods.values():
        check_run(spec)
    with locked(RunDirectory(folder)):
        _open(methods, folder)
        from cirkd_ray.cluster.capacity import wanted_cpus

        with ray_session(minimum_cpus=wanted_cpus(list(methods.values()))):
            _run(methods, seeds, folder, out, say, at_a_time)
    return read_comparison(folder)


def _open(methods: dict[str, RunSpec], folder: Path) -> None:
    """Make the folder, or check that what it has of these methods is the same (more may be added)."""
    path = folder / COMPARISON
    known: dict[str, Any] = read_yaml(path)["methods"] if path.is_file() else {}
    for name, spec in methods.items():
        if name in known and fingerprint(from_tree(known[name])) != fingerprint(spec):
            before, now = flatten(known[name]), flatten(spec.to_dict())
            changed = [k for k in {**before, **now} if before.get(k) != now.get(k) and not k.startswith(FREE)]
            key = min(changed, default="recipe")
            raise ConfigError(
                f"{folder}: has {name} with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                "choose another --name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"methods": {**known, **{name: spec.to_dict() for name, spec in methods.items()}}}
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _run(
    methods: dict[str, RunSpec], seeds: int, folder: Path, out: Path, say: Say, at_a_time: int | None
) -> None:
    import ray

    from cirkd_ray.cluster.capacity import check_places, cluster_capacity
    from cirkd_ray.cluster.pool import Job, run_jobs
    from cirkd_ray.cluster.resources import plan_run
    from cirkd_ray.cluster.train import fit

    plans = [plan_run(spec, ray.cluster_resources()) for spec in methods.values()]
    for each, spec in zip(plans, methods.values(), strict=True):
        check_places(each, spec)
    plan = max(plans, key=lambda p: (p.workers * p.gpus, p.total_cpus))
    fits = cluster_capacity(plan, at_a_time)
    say(f"{len(methods)} methods x {seeds} seeds, {fits.count} runs at a time ({fits.reason})")
    jobs = []
    trained = _with_teachers(methods, folder, out, say)
    for seed in range(seeds):  # seed by seed: an interrupted comparison has as many whole rows as it can
        for name, spec in trained.items():
            run = from_tree({**spec.to_dict(), "seed": seed, "name": f"{name}-s{seed}"})
            jobs.append(Job(f"{name}-s{seed}", run, folder / "runs" / f"{name}-s{seed}"))
    failed = {name: r for name, r in run_jobs(jobs, fits.count, say, fit).items() if isinstance(r, str)}
    write_outcome(folder, failures=failed)


def _with_teachers(methods: dict[str, RunSpec], folder: Path, out: Path, say: Say) -> dict[str, RunSpec]:
    """The methods with their teachers' weights; a teacher is trained once, for all methods and seeds.

    Raises:
        ConfigError: a method was begun with another teacher.
    """
    from cirkd_ray.cluster.train import fit

    path = folder / TEACHERS
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    trains = {
        name: teacher_directory(spec, out)
        for name, spec in methods.items()
        if spec.distill is not None and spec.teacher is not None and spec.teacher.train is not None
    }
    for name, directory in trains.items():
        if known.get(name, str(directory.path)) != str(directory.path):
            raise ConfigError(
                f"{folder}: began {name} with the teacher in {known[name]}, whose recipe has changed since; "
                "give the comparison another --name"
            )
    for name, directory in {d.path: (name, d) for name, d in trains.items()}.values():
        train_teacher(teacher_recipe(methods[name]), directory, fit, say)
    found = {
        name: with_weights(spec, trains[name].path) if name in trains else spec
        for name, spec in methods.items()
    }
    weights = {n: s.teacher.weights for n, s in found.items() if s.teacher is not None and s.teacher.weights}
    write_text(path, json.dumps({**known, **weights}))
    return found


def check_differ(paths: Sequence[str], spec: RunSpec) -> None:
    """`--differ` names settings that exist.

    Raises:
        ConfigError: one does not.
    """
    known = paths_of(spec)
    for path in paths:
        if path not in known:
            raise ConfigError(f"--differ {path}: no such setting{nearest(path, known)}")
