"""List the shipped recipes, show one with every setting resolved, or print the JSON Schema of recipes."""

from __future__ import annotations

import argparse
import json

from cirkd_ray.commands._common import add_recipe

HELP = "list, show and describe recipes"


def configure(parser: argparse.ArgumentParser) -> None:
    """`list`, `show RECIPE`, `schema`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="all shipped recipes with their published figures")
    add_recipe(actions.add_parser("show", help="a recipe as it would run, every default written out"))
    actions.add_parser("schema", help="JSON Schema of a recipe, for editors")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    return {"list": _list, "show": _show, "schema": _schema}[args.action](args)


def _list(_: argparse.Namespace) -> int:
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
        teacher = (
            (spec.teacher.train or spec.teacher.weights or spec.teacher.module or "-")
            if spec.teacher
            else "-"
        )
        figure = f"{spec.published.miou:.2f} ({spec.published.split})" if spec.published else "-"
        table.add_row(name, spec.model.name, teacher, losses, str(spec.train.steps), figure)
    Console(width=200, soft_wrap=True).print(table)
    return 0


def _show(args: argparse.Namespace) -> int:
    from cirkd_ray.config import load_run

    spec = load_run(args.recipe, args.overrides)
    if spec.published:
        note = f"; {spec.published.note}" if spec.published.note else ""
        figure = f"{spec.published.miou:.2f} mIoU ({spec.published.split})"
        print(f"# published: {figure}, {spec.published.source}{note}")
    print(spec.to_yaml(), end="")
    return 0


def _schema(_: argparse.Namespace) -> int:
    from cirkd_ray.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0
