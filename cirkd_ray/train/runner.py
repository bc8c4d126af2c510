"""What trains recipes for those who do not care where: in this process, torchrun's ranks or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cirkd_ray.config import RunSpec
from cirkd_ray.train.outcome import failure_told
from cirkd_ray.train.rundir import RunDirectory


class Runner(Protocol):
    """Runs a resolved recipe in a directory and returns its result."""

    def __call__(self, spec: RunSpec, directory: RunDirectory) -> dict[str, Any]: ...


Together = Callable[[Sequence[tuple[RunSpec, RunDirectory]], Path], Sequence[dict[str, Any] | Exception]]
"""Trains runs as a cohort and returns of each its result, or why it has none. The folder is for the log of
their workers. The error of a single run is raised."""


def each_alone(together: Together) -> Runner:
    """The same for one run."""

    def run(spec: RunSpec, directory: RunDirectory) -> dict[str, Any]:
        with failure_told(directory.path):
            (ended,) = together([(spec, directory)], directory.path)
            if isinstance(ended, Exception):
                raise ended
        return ended

    return run


def lacks_memory(ended: object) -> bool:
    """Whether a run has no result because memory was short; its error may have come as text from a worker."""
    return isinstance(ended, str | Exception) and "OutOfMemory" in f"{type(ended).__name__}: {ended}"


def train_together(
    runs: Sequence[tuple[RunSpec, RunDirectory]], together: Together, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The results of runs that are trained as a cohort, in the first one's directory.

    One that lacked memory beside the others is trained alone afterwards.

    Raises:
        Exception: what ended one of them; the others went on to their ends.
    """
    results, alone = [], each_alone(together)
    for (spec, directory), ended in zip(runs, together(runs, runs[0][1].path), strict=True):
        if lacks_memory(ended):
            say(f"{spec.name}: there was too little memory beside the other run; it is trained alone")
            results.append(alone(spec, directory))
        elif isinstance(ended, Exception):
            with failure_told(directory.path):
                raise ended
        else:
            results.append(ended)
    return results
