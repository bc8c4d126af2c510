"""Train a student from a teacher, a teacher, or a baseline.

Without a recipe this runs `quickstart`: a small student learns drawn street scenes alone, and once more
from a teacher that comes with the package. Runs on the cluster of RAY_ADDRESS (or of the job that it is
part of), else on this machine.
"""

from __future__ import annotations

import argparse
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from cirkd_ray.commands._common import add_out, add_recipe

if TYPE_CHECKING:
    from cirkd_ray.config import RunSpec
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.train.stages import Runner

HELP = "train a student from a teacher, a teacher, or a baseline"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_recipe(parser, optional=True)
    add_out(parser)
    parser.add_argument("--name", help="name of the run's directory (default: recipe, time and four digits)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="continue RUN; without RUN: the run of --name (started if it does not exist yet), "
        "or this recipe's latest unfinished run",
    )
    parser.add_argument("--local", action="store_true", help="run in this process, without Ray")


def run(args: argparse.Namespace) -> int:
    """Train, then show the result."""
    # Before torch is imported: threads that wait must leave their core to others, or busy cores are slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from cirkd_ray.report.console import output
    from cirkd_ray.train.stages import run_recipe

    console = output()
    out = Path(args.out).expanduser().absolute()
    spec, directory = _choose(args, out)
    console.print(f"{spec.name} -> {directory.path}", highlight=False)
    if spec.published and spec.model.weights is None and not spec.model.settings.get("pretrained"):
        console.print(
            "the student starts from random weights; the published figure took --set model.weights=FILE",
            highlight=False,
        )
    with _runner(args.local) as runner:
        outcome = run_recipe(
            spec,
            directory,
            out,
            runner,
            resume=args.resume is not None,
            say=lambda text: console.print(text, highlight=False),
        )
    from cirkd_ray.report.summary import print_outcome

    print_outcome(outcome, console)
    return 0


def _choose(args: argparse.Namespace, out: Path) -> tuple[RunSpec, RunDirectory]:
    """The recipe and the directory: of a new run, or of the one to continue."""
    from cirkd_ray.config import load_run
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.train.stages import latest_run, named_folder, run_name

    if args.resume:  # a run by its path or its name; its own recipe counts
        found = [
            RunDirectory(path)
            for path in (Path(args.resume), out / args.resume)
            if (path / "run.yaml").is_file()
        ]
        if not found:
            raise ConfigError(
                f"--resume {args.resume}: no run there or in {out} (a run's folder holds run.yaml)"
            )
        if args.overrides:
            raise ConfigError("--resume RUN takes the run's own recipe; --set goes with --resume --name NAME")
        own = found[0].spec()
        if args.name or args.recipe not in (None, own.name):
            raise ConfigError(
                f"--resume {args.resume}: continues {own.name}; leave the recipe and --name out"
            )
        return own, found[0]
    spec = load_run(args.recipe or "quickstart", args.overrides)
    if args.name is not None:
        return spec, RunDirectory(named_folder(out, args.name))
    if args.resume is None:
        return spec, RunDirectory(out / run_name(spec.name))
    latest = latest_run(out, spec.name)
    if latest is None:
        raise ConfigError(
            f"--resume: no unfinished run of {spec.name} in {out}; leave --resume out to start one"
        )
    return spec, latest


def _runner(local: bool) -> AbstractContextManager[Runner]:
    if not local:
        from cirkd_ray.cluster.train import ray_runner

        return ray_runner()

    def run_here(spec: RunSpec, directory: RunDirectory) -> dict[str, object]:
        from cirkd_ray.report.listeners import RunLog, TensorBoardListener
        from cirkd_ray.report.progress import RunProgress
        from cirkd_ray.train.local import run_local

        shown = RunProgress(spec.train.steps)
        try:
            return run_local(spec, directory, [shown, RunLog(directory), TensorBoardListener(directory)])
        finally:
            shown.finish()

    return nullcontext(run_here)
