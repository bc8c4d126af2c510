"""Many runs on one cluster, as many at a time as fit; runs that are finished already are not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import ray

from cirkd_ray.cluster.bridge import TrainFunction
from cirkd_ray.cluster.capacity import HEAD
from cirkd_ray.cluster.stopping import part_of, patient_start, this_call, uploaded_run
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import UserError
from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import Together, lacks_memory
from cirkd_ray.train.stop import Stopped, asked
from cirkd_ray.train.teacher import fingerprint

ON_HEAD: dict[str, Any] = {"num_cpus": 0, "resources": {HEAD: 1e-3}}
"""What a process takes that waits for others."""
RETRIES = 2
"""Of a run whose driver was lost; what its workers lose is retried by Ray Train."""


Found = dict[str, dict[str, Any] | str]
"""Name of a job -> its result, or why there is none."""


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        name: for messages.
        spec: its resolved recipe.
        folder: its directory.
        cohort: the folder of the cohort that it may be trained in; jobs with the same one can share.
    """

    name: str
    spec: RunSpec
    folder: Path
    cohort: Path | None = None


def run_jobs(
    jobs: Sequence[Job],
    at_a_time: int,
    say: Callable[[str], None],
    train: TrainFunction,
    together: Together | None = None,
) -> Found:
    """Run all jobs on the Ray that this process has joined; name -> result, or why there is none.

    A folder that holds the run of another recipe is left as it is: that job fails. A job that lacked memory
    in a cohort is run alone afterwards.

    Args:
        jobs: what is run, those of a cohort after one another.
        at_a_time: runs, or cohorts, at a time.
        say: hears of each that has ended.
        train: trains one.
        together: trains those with the same `cohort`; by default each is trained alone.

    Raises:
        Stopped: this process was asked to stop; all that ran has stopped.
    """
    done: Found = {}
    waiting = [
        [*group] for _, group in groupby(jobs, lambda job: (job.cohort or job.name) if together else job.name)
    ]
    running: dict[Any, list[Job]] = {}
    remote = ray.remote(_run).options(**ON_HEAD, max_retries=RETRIES)
    while running or (waiting and not asked()):
        while waiting and len(running) < at_a_time and not asked():
            group = [job for job in waiting.pop(0) if not _is_done(job, done)]
            if group:
                call, work = this_call(), [(job.name, job.spec.to_dict(), str(job.folder)) for job in group]
                cohort = group[0].cohort if len(group) > 1 else None
                running[remote.remote(call, work, train, together, cohort)] = group
        if running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            group = running.pop(ready)
            try:
                found = _result(ready, group)
            except Stopped as stopped:
                say(f"{', '.join(job.name for job in group)}: {stopped}")
                continue
            for job in group:
                how = found[job.name]
                if isinstance(how, str) and _is_done(job, done):  # before the others failed
                    how = done[job.name]
                if len(group) > 1 and lacks_memory(how):
                    say(f"{job.name}: there was too little memory beside the others; it is run alone")
                    waiting.append([job])
                    continue
                done[job.name] = how
                say(f"{job.name}: {_summary(how)} ({len(done)} of {len(jobs)})")
    if asked() and len(done) < len(jobs):
        raise Stopped(f"stopped with {len(done)} of {len(jobs)} runs finished")
    return {job.name: done[job.name] for job in jobs}


def _is_done(job: Job, done: Found) -> bool:
    """Whether a job's folder holds its result, which is put to the others then."""
    directory = RunDirectory(job.folder)
    result = directory.read_result()
    if result is None or fingerprint(directory.spec()) != fingerprint(job.spec):
        return False
    done[job.name] = result
    return True


def _run(
    call: str,
    work: Sequence[tuple[str, dict[str, Any], str]],
    train: TrainFunction,
    together: Together | None,
    cohort: Path | None,
) -> Found:
    found: Found = {}
    runs: dict[str, tuple[RunSpec, RunDirectory]] = {}
    with part_of(call), ExitStack() as held:
        for name, tree, folder in work:
            spec, directory = from_tree(tree), RunDirectory(folder)
            try:
                held.enter_context(uploaded_run(directory, spec))
                with patient_start(directory.path, spec):
                    open_directory(directory, spec, resume=True)
            except UserError as error:
                found[name] = str(error)
            else:
                runs[name] = spec, directory
        if together is None or cohort is None or len(runs) == 1:
            for name, (spec, directory) in runs.items():
                found[name] = train(spec, directory, [], None)
        elif runs:
            for name, how in zip(runs, together([*runs.values()], cohort), strict=True):
                found[name] = str(how) if isinstance(how, Exception) else how
    return found


def _result(reference: Any, group: Sequence[Job]) -> Found:
    """What the jobs of a group returned, or why they failed.

    Raises:
        Stopped: they were asked to stop.
    """
    try:
        found: Found = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Stopped):
            raise cause from None
        reason = str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
        return {job.name: reason for job in group}
    except ray.exceptions.RayError as error:
        return {job.name: str(error).strip().splitlines()[0] for job in group}
    return found


def _summary(result: dict[str, Any] | str) -> str:
    if isinstance(result, str):
        return f"failed: {result.splitlines()[0]}"
    classes = over_classes(result["last"])
    return f"mIoU {100 * result['last']['miou']:.2f} %" + (f" ({classes})" if classes else "")
