"""Options that several subcommands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cirkd_ray.errors import ConfigError
from cirkd_ray.files import require_writable
from cirkd_ray.remote.address import shown, url

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

Words = tuple[str, ...]
"""The values of an argument or option that may be given several times."""


class Number(click.IntRange):
    """A whole number from `min`, which the help calls N."""

    name = "n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Say the bound in words."""
        number = click.INT.convert(value, param, ctx)
        if self.min is not None and number < self.min:
            self.fail(f"must be at least {self.min:g}, not {number}", param, ctx)
        return number


COUNT = Number(min=1)
NOT_NEGATIVE = Number(min=0)


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


def several(*names: str, **settings: Any) -> Decorator:
    """`click.option` for a `Several`."""
    return click.option(*names, cls=Several, multiple=True, **settings)


def repeatable(*names: str, help: str, **settings: Any) -> Decorator:
    """An option that may be given several times, with one word each."""
    return click.option(*names, multiple=True, help=f"{help} Repeatable.", **settings)


def choice(name: str, *values: str, default: str = "", help: str) -> Decorator:
    """An option of a few values; the first is the default, if no other is named."""
    return click.option(name, type=click.Choice(values), default=default or values[0], help=help)


def together(*options: Decorator) -> Decorator:
    """Several decorators as one; the options stand in this order in the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def set_option(name: str = "PATH=VALUE", help: str = "Override a setting.") -> Decorator:
    """`--set NAME=VALUE`, repeatable."""
    return repeatable("--set", "overrides", metavar=name, help=help)


def size_option(help: str, default: tuple[int, int] | None = None, least: int = 1) -> Decorator:
    """`--size HEIGHT WIDTH` in pixels."""
    return click.option(
        "--size", type=Number(least), nargs=2, default=default, metavar="HEIGHT WIDTH", help=help
    )


accept_data_option = click.option(
    "--accept-data",
    is_flag=True,
    help="Go on, and reuse a network, though the data have changed since.",
)


def local(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of what is written and can only be on a file system.

    Raises:
        ConfigError: it is a URL.
    """
    if value is not None and "://" in value:
        name = param.opts[0] if isinstance(param, click.Option) else param.opts[0].upper()
        place = f"{name} {shown(value)}"
        raise ConfigError(f"{place}: is written on this machine, not to a URL; name a path, perhaps a mount")
    return value


def require_file(option: str, value: str | None) -> None:
    """Look, before long work, whether the file of an option can be written when it has ended.

    No callback: a command line that is submitted is parsed on another machine, too.

    Raises:
        ConfigError: it cannot.
    """
    if value is None:
        return
    target = Path(value).expanduser()
    if target.is_dir():
        raise ConfigError(f"{option}: {value} is a folder; name a file")
    try:
        require_writable(target.parent)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def anywhere(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of where runs and results go: a path, or a URL, from which secrets are taken."""
    found = None if value is None else url(value)
    return found or local(ctx, param, value)


def out_option(help: str = "Where runs are written: a folder or URL.", **settings: Any) -> Decorator:
    """`--out`: a path; with `callback=anywhere`, a URL, too."""
    return click.option("--out", help=help, **{"metavar": "DIR", "callback": local, **settings})


def out_folder(out: str) -> Path:
    """A folder of this machine: where `--out` is a URL, its working copy."""
    from cirkd_ray.remote.copies import copy_of

    return copy_of(out).expanduser().absolute()


@contextmanager
def uploaded(folder: Path) -> Iterator[None]:
    """Upload what the block writes to a working copy's folder; of other folders nothing.

    Raises:
        StorageError: what is behind the URL cannot be read or written.
    """
    from cirkd_ray.remote.mirror import EVERY, mirrored

    def say(text: str) -> None:
        sys.stderr.write(f"cirkd: {text}\n")

    with mirrored(folder, EVERY, 60.0, say):
        yield


device_option = choice("--device", "auto", "cpu", "cuda", help="Where it runs.")
