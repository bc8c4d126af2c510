"""`cirkd heads`."""

from __future__ import annotations

import click
from click import argument, option

_json = option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """The segmentation heads: list them, or show one with all settings of a network that has it."""


@command.command("list")
@_json
def list_heads(as_json: bool) -> None:
    """Every head: HEAD:TIMM_NAME is a network (`cirkd models` lists those of the published tables)."""
    from cirkd_ray.commands._described import show_list
    from cirkd_ray.config.described import entry_of
    from cirkd_ray.config.registry import HEADS

    show_list([("head", [entry_of(HEADS, name) for name in HEADS.names()])], as_json)


@command.command()
@argument("name", help="A head, or package.module.Class.")
@_json
def show(name: str, as_json: bool) -> None:
    """One head: source, its settings, and those of every network."""
    from cirkd_ray.commands._described import show_entry
    from cirkd_ray.config.described import entry_of, settings_of
    from cirkd_ray.config.registry import HEADS
    from cirkd_ray.models.build import NetworkSettings

    show_entry(entry_of(HEADS, name), as_json, settings_of(NetworkSettings))
