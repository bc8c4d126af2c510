"""Many runs on one cluster, as many at a time as fit; runs that are finished already are not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cirkd_ray.cluster.bridge import TrainFunction
from cirkd_ray.cluster.capacity import HEAD
from cirkd_ray.cluster.stopping import part_of, this_call
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import UserError
from cirkd_ray.evaluate.evaluation import over_classes
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped, asked
from cirkd_ray.train.teacher import fingerprint

RETRIES = 2
"""Of a run whose driver was lost; what its workers lose is retried by Ray Train."""


@dataclass(frozen=True)
class Job:
    """A run: a name for messages, its resolved recipe and its folder."""

    name: str
    spec: RunSpec
    folder: Path


def run_jobs(
    jobs: Sequence[Job], at_a_time: int, say: Callable[[str], None], train: TrainFunction
) -> dict[str, dict[str, Any] | str]:
    """Run all jobs on the Ray that this process has joined; name -> result, or why there is none.

    A folder that holds the run of another recipe is left as it is: that job fails.

    Raises:
        Stopped: this process was asked to stop; all that ran has stopped.
    """
    done: dict[str, dict[str, Any] | str] = {}
    waiting = list(jobs)
    running: dict[Any, Job] = {}
    remote = ray.remote(_run).options(num_cpus=0, resources={HEAD: 1e-3}, max_retries=RETRIES)
    while running or (waiting and not asked()):
        while waiting and len(running) < at_a_time and not asked():
            job = waiting.pop(0)
            directory = RunDirectory(job.folder)
            result = directory.read_result()
            if result is not None and fingerprint(directory.spec()) == fingerprint(job.spec):
                done[job.name] = result
            else:
                running[remote.remote(this_call(), job.spec.to_dict(), str(job.folder), train)] = job
        if running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ready)
            try:
                done[job.name] = _result(ready)
            except Stopped as stopped:
                say(f"{job.name}: {stopped}")
                continue
            say(f"{job.name}: {_summary(done[job.name])} ({len(done)} of {len(jobs)})")
    if asked() and len(done) < len(jobs):
        raise Stopped(f"stopped with {len(done)} of {len(jobs)} runs finished")
    return {job.name: done[job.name] for job in jobs}


def _run(call: str, tree: dict[str, Any], folder: str, train: TrainFunction) -> dict[str, Any]:
    spec, directory = from_tree(tree), RunDirectory(folder)
    open_directory(directory, spec, resume=True)
    with part_of(call):
        return train(spec, directory, [], None)


def _result(reference: Any) -> dict[str, Any] | str:
    """What a run returned, or why it failed.

    Raises:
        Stopped: it was asked to stop.
    """
    try:
        result: dict[str, Any] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Stopped):
            raise cause from None
        return str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[0]
    return result


def _summary(result: dict[str, Any] | str) -> str:
    if isinstance(result, str):
        return f"failed: {result.splitlines()[0]}"
    classes = over_classes(result["last"])
    return f"mIoU {100 * result['last']['miou']:.2f} %" + (f" ({classes})" if classes else "")
