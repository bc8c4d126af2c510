"""`cirkd recipes`."""

from __future__ import annotations

import json

import click
from click import argument

from cirkd_ray.commands._options import Words, set_option


@click.group()
def command() -> None:
    """List the shipped recipes, show one with every setting resolved, or print the JSON Schema of recipes."""


@command.command("list")
def list_recipes() -> None:
    """All shipped recipes with their published figures."""
    from rich.console import Console
    from rich.table import Table

    from cirkd_ray.config import load_tree, parse
    from cirkd_ray.config.composition import recipe_names

    table = Table("recipe", "student", "teacher", "losses", "steps", "published mIoU", box=None)
    for column in table.columns:
        column.no_wrap = True  # names are for copying
    for name in recipe_names():
        spec = parse(load_tree(name), name)
        losses = ", ".join(k for k, loss in spec.distill.losses.items() if loss) if spec.distill else "-"
        teacher = spec.teacher and (spec.teacher.train or spec.teacher.weights or spec.teacher.module)
        figure = f"{spec.published.miou:.2f} ({spec.published.split})" if spec.published else "-"
        table.add_row(name, spec.model.name, teacher or "-", losses, str(spec.train.steps), figure)
    Console(width=200, soft_wrap=True).print(table)


@command.command()
@argument("recipe", metavar="RECIPE", help="A shipped recipe or a YAML file.")
@set_option()
def show(recipe: str, overrides: Words) -> None:
    """A recipe as it would run, every default written out."""
    from cirkd_ray.config import load_run

    spec = load_run(recipe, overrides)
    if spec.published:
        note = f"; {spec.published.note}" if spec.published.note else ""
        figure = f"{spec.published.miou:.2f} mIoU ({spec.published.split})"
        print(f"# published: {figure}, {spec.published.source}{note}")
    print(spec.to_yaml(), end="")


@command.command()
def schema() -> None:
    """JSON Schema of a recipe, for editors."""
    from cirkd_ray.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
