"""The `cirkd` command: finds the subcommands in `cirkd_ray.commands` and runs one.

A subcommand is a module with `HELP`, `configure(parser)` and `run(args) -> exit code`; it imports what is
heavy inside `run`, so that `cirkd --help` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from cirkd_ray import __version__, commands
from cirkd_ray.errors import UserError

ORDER = (
    "train",
    "tune",
    "compare",
    "report",
    "eval",
    "predict",
    "data",
    "models",
    "weights",
    "export",
    "bench",
    "recipes",
)


def subcommands(package: ModuleType) -> dict[str, ModuleType]:
    """Name -> module of every subcommand in a package; `a_b` is `a-b` on the command line."""
    names = [
        module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")
    ]
    ranked = sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name.replace("_", "-"): importlib.import_module(f"{package.__name__}.{name}") for name in ranked}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="cirkd",
        description="Distil small segmentation networks from large ones on a Ray cluster, and tune how.",
    )
    parser.add_argument("--version", action="version", version=f"cirkd_ray {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in subcommands(commands).items():
        child = choices.add_parser(name, help=module.HELP, description=module.__doc__)
        module.configure(child)
        add_debug(child)
        child.set_defaults(run=module.run)
    return parser


def add_debug(parser: argparse.ArgumentParser) -> None:
    """`--debug` on a parser and on the parsers of its own subcommands."""
    if "--debug" not in parser._option_string_actions:
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                add_debug(child)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (2 for an error of the user's making)."""
    args = build_parser().parse_args(argv)
    if args.debug:
        os.environ["CIRKD_RAY_LOGS"] = "1"
    try:
        return int(args.run(args) or 0)
    except UserError as error:
        if args.debug:
            raise
        sys.stderr.write(f"cirkd: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("cirkd: interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a folder that is not writable, wherever it is met
        if args.debug or error.strerror is None or (error.filename is None and error.errno != errno.ENOSPC):
            raise
        sys.stderr.write(f"cirkd: {error.filename or 'a file'}: {error.strerror}\n")
        return 2
