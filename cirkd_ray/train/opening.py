"""Opening a run's directory: a new one, or the same run's to resume. Needs no torch: trials start fast."""

from __future__ import annotations

from cirkd_ray.config import RunSpec
from cirkd_ray.config.applied import changed
from cirkd_ray.errors import ConfigError
from cirkd_ray.remote.copies import address
from cirkd_ray.train.rundir import RunDirectory


def open_directory(directory: RunDirectory, spec: RunSpec, resume: bool) -> None:
    """Make the run's directory, or check that it holds this very run.

    Raises:
        ConfigError: it holds a run and `resume` is off, or a run of another recipe.
    """
    if not (resume and directory.recipe.exists() and directory.begun()):
        directory.create(spec)
        return
    place = address(directory.path)
    for key, (before, now) in changed(directory.spec().to_dict(), spec.to_dict()).items():
        raise ConfigError(
            f"{place}: was started with {key}={before!r}, not {now!r}; resume it as it is,"
            f"\nor start a new one (another --name; from its weights: --set model.weights={place})"
        )
