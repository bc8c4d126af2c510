"""`cirkd compare`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click
from click import argument, option

from cirkd_ray.commands._options import (
    COUNT,
    Words,
    accept_data_option,
    anywhere,
    out_folder,
    out_option,
    repeatable,
    set_option,
    uploaded,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cirkd_ray.compare.budget import Budget
    from cirkd_ray.config import RunSpec


@click.command()
@argument("recipes", nargs=-1, metavar="RECIPE...", help="Shipped recipes or YAML files.")
@option(
    "--seeds",
    type=COUNT,
    default=3,
    help="Runs of each method, with seeds from the recipes' on.",
)
@set_option()
@out_option(default="runs", callback=anywhere)
@option("--name", help="Name of the comparison's directory (default: compare-RECIPE...).")
@option("--resume", metavar="NAME", help="Continue this comparison as it was begun, without RECIPE.")
@repeatable("--differ", metavar="PATH", help="A setting of the methods, which may differ between them.")
@option(
    "--budget",
    type=click.Choice(["steps", "time"]),
    default="steps",
    help="What is equal: the steps, or the time that each method trains. With `time` a step of each is timed "
    "at the start, and all train as long as the baseline's steps take.",
)
@accept_data_option
@option("--concurrent", type=COUNT, help="Runs at a time at most (default: what fits).")
@option("--apart", is_flag=True, help="Train each run alone; else the methods of a seed share one teacher.")
def command(
    recipes: Words,
    seeds: int,
    overrides: Words,
    out: str,
    name: str | None,
    resume: str | None,
    differ: Words,
    budget: Budget,
    accept_data: bool,
    concurrent: int | None,
    apart: bool,
) -> int:
    """Compare methods over several seeds: intervals, paired tests against a retrained baseline, cost.

    All recipes must share student, data, schedule and length. A recipe without distillation among them is the
    baseline; otherwise one is made. The same command again continues, and a higher --seeds adds runs.

    Ctrl-C or SIGTERM has all runs write a checkpoint, prints the line that continues and ends with exit code
    130 (Ctrl-C) or 143 (SIGTERM). A second one leaves at once.
    """
    from cirkd_ray.cluster.compare import run_comparison
    from cirkd_ray.remote.copies import address
    from cirkd_ray.report.compare import methods_table, notes
    from cirkd_ray.report.compare_page import write_comparison
    from cirkd_ray.report.console import output
    from cirkd_ray.train.stop import stoppable

    console, place = output(), out_folder(out)
    if resume is not None:
        methods, seeds, budget, folder = _begun(place, resume, recipes, overrides)
    else:
        methods, folder = _asked(recipes, overrides, differ, place, name)
    console.print(f"comparison -> {address(folder)}", highlight=False)
    say = partial(console.print, highlight=False, markup=False)
    with stoppable("--name", folder.name):
        data = run_comparison(methods, seeds, folder, place, say, concurrent, accept_data, apart, budget)
    with uploaded(folder / "report"):
        page = write_comparison(data)
    console.print(methods_table(data).rich())
    console.print(notes(data), highlight=False, markup=False)
    console.print(f"report       {address(page)}", highlight=False)
    return 1 if data.failures else 0


def _asked(
    recipes: Words, overrides: Words, differ: Words, place: Path, name: str | None
) -> tuple[dict[str, RunSpec], Path]:
    """The methods of these recipes, and the folder of their comparison."""
    from cirkd_ray.compare.plan import check_differ, methods_of
    from cirkd_ray.config import load_run
    from cirkd_ray.train.stages import named_folder
    from cirkd_ray.train.teacher import slug

    if not recipes:
        raise click.UsageError("Missing argument 'RECIPE...'.")
    specs = [(recipe, load_run(recipe, overrides)) for recipe in recipes]
    check_differ(differ, specs[0][1])
    methods = methods_of(specs, differ)
    usual = slug("compare-" + "-".join(method for method in methods if method != "baseline"))[:100]
    return methods, named_folder(place, usual if name is None else name)


def _begun(
    place: Path, resume: str, recipes: Words, overrides: Words
) -> tuple[dict[str, RunSpec], int, Budget, Path]:
    """Methods, seeds, budget and folder of a comparison to continue."""
    from cirkd_ray.compare.plan import begun_comparison
    from cirkd_ray.remote.reading import fetch_all, is_figure
    from cirkd_ray.train.stages import named_folder

    if recipes or overrides:
        raise click.UsageError("--resume continues a comparison as it was begun: leave RECIPE and --set out")
    folder = named_folder(place, resume)
    fetch_all(folder, is_figure)
    return (*begun_comparison(folder), folder)
