"""Which run `cirkd train` means: a new one, or one to resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cirkd_ray.config import RunSpec, load_run
from cirkd_ray.errors import ConfigError
from cirkd_ray.remote.address import shown
from cirkd_ray.remote.copies import address, copy_of
from cirkd_ray.remote.reading import fetch_folder
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stages import latest_run, named_folder, run_name


def choose_run(
    recipe: str | None,
    overrides: Sequence[str],
    out: Path,
    name: str | None = None,
    resume: str | None = None,
) -> tuple[RunSpec, RunDirectory]:
    """The settings of a run and its directory.

    Args:
        recipe: a shipped recipe or a YAML file; None for `quickstart`, or for that of the run to resume.
        overrides: `PATH=VALUE` of `--set`.
        out: the folder of runs.
        name: of the run's directory.
        resume: the path or name of a run to resume; empty for the run of `name`, or the recipe's latest
            unfinished one; None for a new run.

    Raises:
        ConfigError: there is no such run or recipe, or the run to resume is one of another recipe.
    """
    if resume:
        return _resumed(recipe, overrides, out, name, resume)
    spec = load_run(recipe or "quickstart", overrides)
    if name is not None:
        return spec, RunDirectory(named_folder(out, name))
    if resume is None:
        return spec, RunDirectory(out / run_name(spec.name))
    latest = latest_run(out, spec.name)
    if latest is None:
        raise ConfigError(
            f"--resume: no unfinished run of {spec.name} in {address(out)}; leave --resume out to start one"
        )
    return spec, latest


def _resumed(
    recipe: str | None, overrides: Sequence[str], out: Path, name: str | None, run: str
) -> tuple[RunSpec, RunDirectory]:
    """A run by its path or its name; its own recipe counts."""
    places = (copy_of(run), out / run)
    for place in places:
        fetch_folder(place)
    found = [RunDirectory(path) for path in places if (path / "run.yaml").is_file()]
    if not found:
        raise ConfigError(
            f"--resume {shown(run)}: no run there or in {address(out)} (a run's folder holds run.yaml)"
        )
    if overrides:
        raise ConfigError(
            f"--resume {run}: takes the run's own recipe; leave --set out (or resume with --name NAME),\n"
            f"or start a new run from its weights: --set model.weights={address(found[0].path)}"
        )
    spec = found[0].spec()
    if name or recipe not in (None, spec.name):
        raise ConfigError(f"--resume {run}: continues {spec.name}; leave the recipe and --name out")
    return spec, found[0]
