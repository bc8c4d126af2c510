"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_recipe(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """RECIPE and `--set`."""
    parser.add_argument("recipe", nargs="?" if optional else None, help="a shipped recipe or a YAML file")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set PATH=VALUE`, repeatable."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override a setting",
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """`--out DIR`."""
    parser.add_argument(
        "--out", default="runs", metavar="DIR", help="where runs are written (default: runs/)"
    )


def require_size(size: Sequence[int]) -> None:
    """Refuse a `--size HEIGHT WIDTH` that no image has.

    Raises:
        ConfigError: a side is below one pixel.
    """
    from cirkd_ray.errors import ConfigError

    if min(size) < 1:
        raise ConfigError("--size takes a height and a width of at least 1 pixel")
