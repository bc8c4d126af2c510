"""`cirkd train`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click import argument, option

from cirkd_ray.commands._options import Words, accept_data_option, out_option, set_option

if TYPE_CHECKING:
    from cirkd_ray.config import RunSpec
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.train.runner import Together


@click.command()
@argument("recipe", required=False, metavar="[RECIPE]", help="A shipped recipe or a YAML file.")
@set_option()
@out_option(default="runs")
@option("--name", help="Name of the run's directory (default: recipe, time and four digits).")
@option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Resume RUN; without RUN: the run of --name (started if it does not exist yet), or this recipe's "
    "latest unfinished run.",
)
@option("--restart", is_flag=True, help="Resume; where all checkpoints are damaged, start over at step 0.")
@accept_data_option
@option("--local", is_flag=True, help="Run without Ray, in this process (under torchrun always).")
def command(
    recipe: str | None,
    overrides: Words,
    out: str,
    name: str | None,
    resume: str | None,
    restart: bool,
    accept_data: bool,
    local: bool,
) -> None:
    """Train a student from a teacher, a teacher, or a baseline.

    Without a recipe this runs `quickstart`: a small student learns drawn street scenes alone, and once more
    from a teacher that comes with the package. Runs on the cluster of RAY_ADDRESS (or of the job that it is
    part of), else on this machine; `torchrun -m cirkd_ray train --local` runs it on the processes that
    torchrun starts.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint, prints the line that resumes the run and ends
    with exit code 130 (Ctrl-C) or 143 (SIGTERM). A second one leaves at once.
    """
    from cirkd_ray.report.console import output
    from cirkd_ray.report.summary import print_outcome
    from cirkd_ray.train.choose import choose_run
    from cirkd_ray.train.runner import each_alone
    from cirkd_ray.train.stages import run_recipe
    from cirkd_ray.train.stop import follows_another, launched_by_torchrun, stoppable

    local = local or launched_by_torchrun()  # whose own parser takes `--local` for one of its options
    console = output(quiet=local and follows_another())
    say = partial(console.print, highlight=False)
    place = Path(out).expanduser().absolute()
    resume = "" if restart and resume is None else resume
    spec, directory = choose_run(recipe, overrides, place, name, resume)
    say(f"{spec.name} -> {directory.path}")
    workers = spec.cluster.workers
    if local and not launched_by_torchrun() and workers not in ("auto", 1):
        say(f"cluster.workers: {workers} is for Ray and torchrun; --local trains in this one process")
    if spec.published and spec.model.weights is None and not spec.model.settings.get("pretrained"):
        say("the student starts from random weights; the published figure took --set model.weights=FILE")
    with stoppable("--name", directory.path.name, "--resume"), _trainer(local, spec) as together:
        if together is None:
            return
        outcome = run_recipe(
            spec,
            directory,
            place,
            each_alone(together),
            resume=resume is not None,
            restart=restart,
            accept_data=accept_data,
            say=say,
            together=together,
        )
    print_outcome(outcome, console)


def _trainer(local: bool, spec: RunSpec) -> AbstractContextManager[Together | None]:
    if not local:
        from cirkd_ray.cluster.run import ray_runner

        return ray_runner()
    from cirkd_ray.train.local import led_by_first_rank
    from cirkd_ray.train.stop import follows_another

    return led_by_first_rank(spec.cluster, _unseen if follows_another() else _shown)


def _unseen(
    runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path
) -> Sequence[dict[str, object] | Exception]:
    from cirkd_ray.train.local import run_together

    return run_together(runs, [()] * len(runs))


def _shown(
    runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path
) -> Sequence[dict[str, object] | Exception]:
    from cirkd_ray.report.listeners import RunLog
    from cirkd_ray.report.loggers import chosen_loggers
    from cirkd_ray.report.progress import Beside, RunProgress
    from cirkd_ray.train.local import run_together

    progress = RunProgress(runs[0][0].train.steps)
    shown = [progress, *(Beside(spec.name, progress) for spec, _ in runs[1:])]
    listeners = [
        [first, RunLog(directory, 0), *chosen_loggers(spec, directory)]
        for first, (spec, directory) in zip(shown, runs, strict=True)
    ]
    try:
        return run_together(runs, listeners)
    finally:
        progress.finish()
