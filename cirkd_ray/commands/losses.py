"""`cirkd losses`."""

from __future__ import annotations

import click
from click import argument, option

_json = option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Losses, with the teacher and with the labels: list them, or show one with all its settings."""


@command.command("list")
@_json
def list_losses(as_json: bool) -> None:
    """Every loss: what `distill.losses.NAME.kind` and `task.losses.NAME.kind` may be."""
    from cirkd_ray.commands._described import show_list
    from cirkd_ray.config.described import entry_of
    from cirkd_ray.config.registry import LOSSES, TASK_LOSSES

    groups = (("distill.losses", LOSSES), ("task.losses", TASK_LOSSES))
    show_list(
        [(title, [entry_of(known, name) for name in known.names()]) for title, known in groups], as_json
    )


@command.command()
@argument("name", help="A loss, or package.module:Class.")
@_json
def show(name: str, as_json: bool) -> None:
    """One loss: equation, source, terms with their published weights, and every setting."""
    from cirkd_ray.commands._described import show_entry
    from cirkd_ray.config.described import entry_of
    from cirkd_ray.config.registry import LOSSES, TASK_LOSSES
    from cirkd_ray.errors import ConfigError, nearest

    for known in (TASK_LOSSES, LOSSES):
        if name in known.names():
            return show_entry(entry_of(known, name), as_json)
    if ":" in name or "." in name:
        return show_entry(entry_of(LOSSES, name), as_json)
    both = [*LOSSES.names(), *TASK_LOSSES.names()]
    raise ConfigError(f"{name}: no loss of that name{nearest(name, both)}")
