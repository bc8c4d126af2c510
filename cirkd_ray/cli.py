"""The `cirkd` command: its subcommands, each imported only when it is used, and its exit codes.

A subcommand is a module of `cirkd_ray.commands` with a click command named `command`. It imports what is
heavy inside functions, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from cirkd_ray import __version__
from cirkd_ray.errors import StorageError, UserError, nearest
from cirkd_ray.train.stop import Stopped, follows_another, line_to_continue

COMMANDS = {
    "train": "train a student from a teacher, a teacher, or a baseline",
    "tune": "search settings of a recipe on a cluster",
    "compare": "compare methods over seeds, with intervals and tests",
    "report": "write the report of a sweep or a comparison",
    "eval": "evaluate a trained network on a data set",
    "predict": "predict images: colour masks, blends, ids, Cityscapes submissions",
    "data": "check, prepare, get and show data sets",
    "models": "table of the networks: parameters, multiply-adds, maps; with --bench their speed",
    "heads": "list and show segmentation heads with their settings",
    "losses": "list and show losses with their settings",
    "weights": "inspect, import, verify and get weights",
    "export": "export a trained network to ONNX, TorchScript or torch.export",
    "doctor": "say whether this machine or cluster is fit for a run, and what to do",
    "bench": "measure losses, data, models and evaluation on this machine",
    "recipes": "list and show recipes, print their JSON Schema",
    "submit": "run a command as a job of a Ray cluster",
    "status": "show how far a run, a sweep or a comparison is",
    "runs": "list the runs, sweeps and comparisons of a folder",
}


class Commands(click.Group):
    """The subcommands by name; their list is shown without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of that name."""
        if cmd_name not in COMMANDS:
            ctx.fail(f"no command {cmd_name!r}{nearest(cmd_name, COMMANDS)}")
        command: click.Command = importlib.import_module(f"cirkd_ray.commands.{cmd_name}").command
        return with_debug(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.obj["debug"] = True
        os.environ["CIRKD_RAY_LOGS"] = "1"


DEBUG = click.Option(
    ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
)


def with_debug(command: click.Command) -> click.Command:
    """Give `--debug` to a command and to its own subcommands."""
    if DEBUG not in command.params:
        command.params.append(DEBUG)
        for child in command.commands.values() if isinstance(command, click.Group) else ():
            with_debug(child)
    return command


@click.command(
    cls=Commands,
    params=[DEBUG],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(__version__, message="cirkd_ray %(version)s")
def cirkd() -> None:
    """Distil small segmentation networks from large ones on a Ray cluster, and tune how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (2 for an error of the user's making)."""
    options = {"debug": False}
    # Before torch is imported: waiting threads leave their core to others, or busy cores are much slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        with cirkd.make_context("cirkd", words, obj=options) as context:
            return int(cirkd.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        _tell(error)
        return 2
    except UserError as error:
        if options["debug"]:
            raise
        sys.stderr.write(f"cirkd: {error}\n")
        if isinstance(error, StorageError) and error.again is not None:
            sys.stderr.write(f"{line_to_continue(words, error.again)}\n")
        return 2
    except Stopped as stopped:
        if not follows_another():
            sys.stderr.write(f"cirkd: {stopped.line(words)}\n")
        return stopped.code
    except KeyboardInterrupt:
        sys.stderr.write("cirkd: interrupted\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a folder that is not writable, wherever it is met
        unnamed = error.filename is None and error.errno != errno.ENOSPC
        if options["debug"] or error.strerror is None or unnamed:
            raise
        sys.stderr.write(f"cirkd: {error.filename or 'a file'}: {error.strerror}\n")
        return 2


def run_and_leave() -> NoReturn:
    """The console command: ends the process as soon as all is written and Ray is shut down.

    The interpreter is not taken down: native threads that still run then have crashed a finished command.
    """
    code = 1
    try:
        code = main()
    except BaseException as error:
        code = _code_of(error)
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():  # of a loader; waiting for their end takes seconds
            child.kill()
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _code_of(error: BaseException) -> int:
    """What Python itself would do with an exception that ends it: say it, and 1 or the code it carries."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return error.code or 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    sys.excepthook(type(error), error, error.__traceback__)
    return 1


def _tell(error: click.UsageError) -> None:
    """Say in two lines what is wrong with the command line; the whole help where it is empty."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    text = error.format_message()
    if isinstance(error, click.BadParameter) and error.param is not None and error.message:
        text = f"{error.param.opts[0]}: {error.message}"
    path = error.ctx.command_path if error.ctx else "cirkd"
    sys.stderr.write(f"cirkd: {text}\n`{path} --help` shows what it takes\n")
