"""Options that several subcommands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

COUNT = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)


class Several(click.Option):
    """An option that takes all words up to the next option: `--scales 0.75 1 1.25`.

    click's own options take a fixed number of words. So this one is declared `multiple`, and each further
    word is read as if the flag stood before it, too.
    """

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser see the flag before every word."""
        super().add_to_parser(parser, ctx)
        parse = parser.parse_args
        parser.parse_args = lambda args: parse(list(_with_flags(args, self.opts)))


def _with_flags(words: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """`--scales 1 2 --flip` as `--scales 1 --scales 2 --flip`."""
    flag, count = "", 0
    for position, word in enumerate(words):
        if word == "--":
            yield from words[position:]
            return
        if word.startswith("-") and word != "-":
            flag, count = word if word in flags else "", 0
        elif flag:
            count += 1
            if count > 1:
                yield flag
        yield word


def together(*options: Decorator) -> Decorator:
    """Several decorators as one; the options stand in this order in the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def settings(name: str = "PATH=VALUE", help: str = "Override a setting (repeatable).") -> Decorator:
    """`--set NAME=VALUE`, repeatable."""
    return click.option("--set", "overrides", multiple=True, metavar=name, help=help)


def size(help: str, default: tuple[int, int] | None = None, least: int = 1) -> Decorator:
    """`--size HEIGHT WIDTH` in pixels."""
    kind = click.IntRange(min=least)
    return click.option("--size", type=kind, nargs=2, default=default, metavar="HEIGHT WIDTH", help=help)


out = click.option("--out", default="runs", metavar="DIR", help="Where runs are written.")
device = click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto")
