"""`cirkd train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cirkd_ray.commands._options import out as out_option
from cirkd_ray.commands._options import settings

if TYPE_CHECKING:
    from cirkd_ray.config import RunSpec
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.train.stages import Runner


@click.command()
@click.argument("recipe", required=False, metavar="[RECIPE]", help="A shipped recipe or a YAML file.")
@settings()
@out_option
@click.option("--name", help="Name of the run's directory (default: recipe, time and four digits).")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Resume RUN; without RUN: the run of --name (started if it does not exist yet), or this recipe's "
    "latest unfinished run.",
)
@click.option("--local", is_flag=True, help="Run in this process, without Ray.")
def command(
    recipe: str | None,
    overrides: tuple[str, ...],
    out: str,
    name: str | None,
    resume: str | None,
    local: bool,
) -> None:
    """Train a student from a teacher, a teacher, or a baseline.

    Without a recipe this runs `quickstart`: a small teacher is trained on drawn street scenes, then distilled
    into a smaller student. Runs on the cluster of RAY_ADDRESS (or of the job that it is part of), else on
    this machine.
    """
    from cirkd_ray.report.console import output
    from cirkd_ray.report.summary import print_outcome
    from cirkd_ray.train.stages import run_recipe

    console = output()
    say = partial(console.print, highlight=False)
    place = Path(out).expanduser().absolute()
    if resume:
        spec, directory = _resumed(resume, recipe, overrides, place, name)
    else:
        spec, directory = _chosen(recipe, overrides, place, name, latest=resume is not None)
    say(f"{spec.name} -> {directory.path}")
    if spec.published and spec.model.weights is None and not spec.model.settings.get("pretrained"):
        say("the student starts from random weights; the published figure took --set model.weights=FILE")
    outcome = run_recipe(spec, directory, place, _runner(local), resume=resume is not None, say=say)
    print_outcome(outcome, console)


def _resumed(
    run: str, recipe: str | None, overrides: tuple[str, ...], out: Path, name: str | None
) -> tuple[RunSpec, RunDirectory]:
    """A run by its path or its name; its own recipe counts."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.train.rundir import RunDirectory

    found = [RunDirectory(path) for path in (Path(run), out / run) if (path / "run.yaml").is_file()]
    if not found:
        raise ConfigError(f"--resume {run}: no run there or in {out} (a run's folder holds run.yaml)")
    if overrides:
        raise ConfigError("--resume RUN takes the run's own recipe; --set goes with --resume --name NAME")
    spec = found[0].spec()
    if name or recipe not in (None, spec.name):
        raise ConfigError(f"--resume {run}: continues {spec.name}; leave the recipe and --name out")
    return spec, found[0]


def _chosen(
    recipe: str | None, overrides: tuple[str, ...], out: Path, name: str | None, latest: bool
) -> tuple[RunSpec, RunDirectory]:
    """The recipe and the directory: that of the name, of the latest unfinished run, or a new one."""
    from cirkd_ray.config import load_run
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.train.stages import latest_run, named_folder, run_name

    spec = load_run(recipe or "quickstart", overrides)
    if name is not None:
        return spec, RunDirectory(named_folder(out, name))
    if not latest:
        return spec, RunDirectory(out / run_name(spec.name))
    found = latest_run(out, spec.name)
    if found is None:
        raise ConfigError(
            f"--resume: no unfinished run of {spec.name} in {out}; leave --resume out to start one"
        )
    return spec, found


def _runner(local: bool) -> Runner:
    if not local:
        from cirkd_ray.cluster.train import run_on_ray

        return run_on_ray

    def run_here(spec: RunSpec, directory: RunDirectory) -> dict[str, object]:
        from cirkd_ray.report.follow import RunLog
        from cirkd_ray.report.listeners import ProgressListener, TensorBoardListener
        from cirkd_ray.report.progress import Progress
        from cirkd_ray.train.local import run_local

        shown = ProgressListener(Progress(spec.train.steps))
        try:
            return run_local(spec, directory, [shown, RunLog(directory), TensorBoardListener(directory)])
        finally:
            shown.progress.close()

    return run_here
