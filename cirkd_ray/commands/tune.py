"""`cirkd tune`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
from click import argument, option

from cirkd_ray.commands._options import (
    Words,
    accept_data_option,
    anywhere,
    local,
    out_folder,
    out_option,
    require_file,
    set_option,
)


@click.command()
@argument("space", default="smoke", metavar="[SPACE]", help="A shipped search space or a YAML file.")
@set_option()
@out_option(default="runs", callback=anywhere)
@option("--name", help="Name of the sweep's directory (default: the space's name).")
@option("--fresh", is_flag=True, help="Start anew; what is there is moved aside.")
@accept_data_option
@option(
    "--export",
    callback=local,
    metavar="FILE",
    help="Write the best configuration as a recipe of full length.",
)
@option("--list", "list_only", is_flag=True, help="List the shipped search spaces.")
@option("--check", is_flag=True, help="Check the space and its recipe, without data, and stop.")
def command(
    space: str,
    overrides: Words,
    out: str,
    name: str | None,
    fresh: bool,
    accept_data: bool,
    export: str | None,
    list_only: bool,
    check: bool,
) -> int:
    """Search settings of a recipe on a cluster: every trial is a run of its own under Ray Tune.

    The same command again continues a sweep that was interrupted; finished trials are not run again. Besides
    the trials, the recipe without distillation and the recipe's own values are run with the same budget and
    seeds. The exit code is 1 if one of these, or a finalist, failed.

    Ctrl-C or SIGTERM has all trials write a checkpoint, prints the line that continues and ends with exit
    code 130 (Ctrl-C) or 143 (SIGTERM). A second one leaves at once.
    """
    if list_only:
        return _list()
    if check:
        return _check(space, overrides)
    from cirkd_ray.cluster.sweep import best_recipe, run_sweep
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.files import save_text
    from cirkd_ray.remote.address import is_url
    from cirkd_ray.remote.copies import address
    from cirkd_ray.remote.mirror import send
    from cirkd_ray.report.console import output
    from cirkd_ray.report.sweep import ranking, summary
    from cirkd_ray.sweep.space_file import load_space
    from cirkd_ray.train.stages import named_folder
    from cirkd_ray.train.stop import stoppable
    from cirkd_ray.train.teacher import slug

    console, loaded = output(), load_space(space, overrides)
    place = out_folder(out)
    if fresh and is_url(out):
        raise ConfigError(f"--fresh: does not move what is in {out} aside; choose another --name")
    folder = named_folder(place, slug(loaded.spec.name) if name is None else name)
    require_file("--export", export)
    console.print(f"{loaded.spec.name} -> {address(folder)}", highlight=False)
    say = partial(console.print, highlight=False, markup=False)
    with stoppable("--name", folder.name):
        data = run_sweep(loaded, folder, place, say, fresh, accept_data)
    console.print(ranking(data, limit=10).rich())
    console.print(summary(data), highlight=False, markup=False)
    best = best_recipe(loaded.spec, data.ranked[0].settings).to_yaml()
    files = [folder / "best.yaml", *([Path(export).expanduser().absolute()] if export else [])]
    for file in files:
        save_text(file, best)
        send(file)
    console.print(f"best trial   {files[-1]} (cirkd train {files[-1]} trains it in full)", highlight=False)
    console.print(f"report       cirkd report {address(folder)}", highlight=False)
    return 1 if data.failures else 0


def _check(space: str, overrides: Words) -> int:
    from cirkd_ray.cluster.sweep import longest
    from cirkd_ray.report.console import output
    from cirkd_ray.sweep.space_check import check_space
    from cirkd_ray.sweep.space_file import load_space

    loaded = load_space(space, overrides)
    notes: list[str] = []
    steps = longest(loaded.spec, check_space(loaded, notes))
    text = f"{loaded.path}: valid; {loaded.spec.trials} trials of {steps} steps at most"
    for line in (text, *notes):
        output().print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _list() -> int:
    from rich.table import Table

    from cirkd_ray.report.console import output
    from cirkd_ray.sweep.space_file import load_space, space_names

    table = Table("space", "recipe", "trials", "scheduler", "searcher", "what", box=None)
    for name in space_names():
        spec = load_space(name).spec
        table.add_row(
            name, spec.recipe, str(spec.trials), spec.scheduler.name, spec.searcher.name, spec.description
        )
    output().print(table)
    return 0
