"""How tests look at a command line without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from cirkd_ray.cli import cirkd


def parsed(argv: Sequence[str]) -> dict[str, Any]:
    """The values of a subcommand's arguments and options; usage errors are raised."""
    words = list(argv)
    context = click.Context(cirkd, info_name="cirkd", obj={}, help_option_names=["-h", "--help"])
    while isinstance(context.command, click.Group):
        name, command, words = context.command.resolve_command(context, words)
        assert command is not None
        if isinstance(command, click.Group):
            context = click.Context(command, context, name)
        else:
            context = command.make_context(name, words, context)
    return context.params


def command_at(path: Sequence[str]) -> click.Command:
    """The command of these words: `("data", "check")`."""
    command: click.Command | None = cirkd
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    return command


def command_paths(path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command: `()`, `("train",)`, ..., `("data", "check")`, ..."""
    yield path
    command = command_at(path)
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from command_paths((*path, name))
