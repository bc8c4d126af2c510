"""Search settings of a recipe on a cluster: every trial is a run of its own under Ray Tune.

The same command again continues a sweep that was interrupted; finished trials are not run again. Besides the
trials, the recipe without distillation and the recipe's own values are run with the same budget and seeds.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cirkd_ray.commands._common import add_out, add_set

HELP = "search settings of a recipe on a cluster"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument(
        "space", nargs="?", default="smoke", help="a shipped search space or a YAML file (default: smoke)"
    )
    add_set(parser)
    add_out(parser)
    parser.add_argument("--name", help="name of the sweep's directory (default: the space's name)")
    parser.add_argument("--fresh", action="store_true", help="start anew; what is there is moved aside")
    parser.add_argument(
        "--export", metavar="FILE", help="write the best configuration as a recipe of full length"
    )
    parser.add_argument("--list", action="store_true", help="list the shipped search spaces")
    parser.add_argument(
        "--check", action="store_true", help="check the space and its recipe, without data, and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Run or continue the sweep, then show its ranking; 1 if a control or finalist failed."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.console import output
    from cirkd_ray.sweep.space_check import check_space
    from cirkd_ray.sweep.space_file import load_space
    from cirkd_ray.train.stages import named_folder
    from cirkd_ray.train.teacher import slug

    console = output()
    if args.list:
        return _list(console)
    space = load_space(args.space, args.overrides)
    if args.check:
        from cirkd_ray.cluster.sweep import longest

        notes: list[str] = []
        steps = longest(space.spec, check_space(space, notes))
        text = f"{space.path}: valid; {space.spec.trials} trials of {steps} steps at most"
        for line in (text, *notes):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    from cirkd_ray.cluster.sweep import best_recipe, run_sweep
    from cirkd_ray.files import save_text
    from cirkd_ray.report.sweep import ranking, summary

    out = Path(args.out).expanduser().absolute()
    folder = named_folder(out, slug(space.spec.name) if args.name is None else args.name)
    export = Path(args.export).expanduser().absolute() if args.export else None
    if export is not None and (export.is_dir() or not os.access(export.parent, os.W_OK)):
        raise ConfigError(f"--export {args.export}: cannot be written; name a file in a folder that is there")
    console.print(f"{space.spec.name} -> {folder}", highlight=False)
    data = run_sweep(
        space, folder, out, lambda text: console.print(text, highlight=False, markup=False), args.fresh
    )
    console.print(ranking(data, limit=10).rich())
    console.print(summary(data), highlight=False, markup=False)
    best = best_recipe(space.spec, data.ranked[0].settings).to_yaml()
    files = [folder / "best.yaml", *([export] if export else [])]
    for file in files:
        save_text(file, best)
    console.print(f"best recipe  {files[-1]} (cirkd train {files[-1]} trains it in full)", highlight=False)
    console.print(f"report       cirkd report {folder}", highlight=False)
    return 1 if data.failures else 0


def _list(console: object) -> int:
    from rich.console import Console
    from rich.table import Table

    from cirkd_ray.sweep.space_file import load_space, space_names

    table = Table("space", "recipe", "trials", "scheduler", "searcher", "what", box=None)
    for name in space_names():
        spec = load_space(name).spec
        table.add_row(
            name, spec.recipe, str(spec.trials), spec.scheduler.name, spec.searcher.name, spec.description
        )
    assert isinstance(console, Console)
    console.print(table)
    return 0
