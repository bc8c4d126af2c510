"""Opening a run's directory: a new one, or the same run's to resume. Needs no torch: trials start fast."""

from __future__ import annotations

from cirkd_ray.config import RunSpec
from cirkd_ray.config.composition import flatten
from cirkd_ray.errors import ConfigError
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.teacher import FREE


def open_directory(directory: RunDirectory, spec: RunSpec, resume: bool) -> None:
    """Make the run's directory, or check that it holds this very run.

    Raises:
        ConfigError: it holds a run and `resume` is off, or a run of another recipe.
    """
    if not (resume and directory.recipe.exists()):
        directory.create(spec)
        return
    before, now = flatten(directory.spec().to_dict()), flatten(spec.to_dict())
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k) and not k.startswith(FREE)]
    if changed:
        key = sorted(changed)[0]
        raise ConfigError(
            f"{directory.path}: was started with {key}={before.get(key)!r}, not {now.get(key)!r}; "
            "resume it with its own settings, or start a new run"
        )
