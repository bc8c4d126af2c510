"""Methods x seeds at one budget, data order and evaluator, always with a retrained baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cirkd_ray.cluster.session import ray_session
from cirkd_ray.composition import flatten, read_yaml
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.engine.preflight import check_run
from cirkd_ray.engine.rundir import RunDirectory, write_atomically
from cirkd_ray.engine.stages import (
    fingerprint,
    locked,
    slug,
    teacher_directory,
    teacher_recipe,
    train_teacher,
    with_weights,
)
from cirkd_ray.errors import ConfigError, nearest
from cirkd_ray.report.compare_data import COMPARISON, CompareData, read_comparison

EQUAL = ("train.", "data.", "model.", "optim.", "task.")
"""What must not differ between methods: else it is not the methods that are compared."""
LOOSE = ("data.workers", "data.root", "train.log_every", "train.keep_checkpoints", "train.pictures")
BASELINE = "baseline"
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
    if plain:
        return {BASELINE: methods.pop(plain[0]), **methods}
    return {BASELINE: from_tree({**first.to_dict(), "distill": None, "teacher": None}), **methods}


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
    for key in sorted({**before, **now}):
        if not key.startswith(EQUAL) or key.startswith((*LOOSE, *allow)) or before.get(key) == now.get(key):
            continue
        raise ConfigError(
            f"{key}: is {before.get(key)!r} in {first_name} and {now.get(key)!r} in {name}; methods are "
            f"compared at one setting: --set {key}={before.get(key)}, or --differ {key} if it is the method"
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
            key = next(iter(sorted(k for k in {**before, **now} if before.get(k) != now.get(k))), "recipe")
            raise ConfigError(
                f"{folder}: has {name} with {key}={before.get(key)!r}, not {now.get(key)!r}; "
                "choose another --name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"methods": {**known, **{name: spec.to_dict() for name, spec in methods.items()}}}
    write_atomically(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _run(
    methods: dict[str, RunSpec], seeds: int, folder: Path, out: Path, say: Say, at_a_time: int | None
) -> None:
    import ray

    from cirkd_ray.cluster.capacity import cluster_capacity
    from cirkd_ray.cluster.pool import Job, run_jobs
    from cirkd_ray.cluster.resources import plan_run
    from cirkd_ray.cluster.train import fit

    plans = [plan_run(spec, ray.cluster_resources()) for spec in methods.values()]
    plan = max(plans, key=lambda p: (p.workers * p.gpus, p.total_cpus))
    fits = cluster_capacity(plan, at_a_time)
    say(f"{len(methods)} methods x {seeds} seeds, {fits.count} runs at a time ({fits.reason})")
    teachers: dict[str, str] = {}
    jobs = []
    trained = {}
    for name, spec in methods.items():
        if spec.distill is not None and spec.teacher is not None and spec.teacher.train is not None:
            directory = teacher_directory(spec, out)
            if str(directory.path) not in teachers.values():  # once, for all methods and seeds
                train_teacher(teacher_recipe(spec), directory, fit, say)
            spec = with_weights(spec, directory.path)
        if spec.teacher is not None and spec.teacher.weights is not None:
            teachers[name] = spec.teacher.weights
        trained[name] = spec
    write_atomically(folder / "teachers.json", json.dumps(teachers))
    for seed in range(seeds):  # seed by seed: an interrupted comparison has as many whole rows as it can
        for name, spec in trained.items():
            run = from_tree({**spec.to_dict(), "seed": seed, "name": f"{name}-s{seed}"})
            jobs.append(Job(f"{name}-s{seed}", run, folder / "runs" / f"{name}-s{seed}"))
    failed = {name: r for name, r in run_jobs(jobs, fits.count, say).items() if isinstance(r, str)}
    write_atomically(folder / "failures.json", json.dumps(failed, indent=2))


def check_differ(paths: Sequence[str], spec: RunSpec) -> None:
    """`--differ` names settings that exist.

    Raises:
        ConfigError: one does not.
    """
    from cirkd_ray.cluster.space_check import paths_of

    known = paths_of(spec)
    for path in paths:
        if path not in known:
            raise ConfigError(f"--differ {path}: no such setting{nearest(path, known)}")
