"""`cirkd submit`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import argument, option

from cirkd_ray.commands._options import Words, repeatable
from cirkd_ray.errors import ConfigError, public
from cirkd_ray.remote.address import shown

if TYPE_CHECKING:
    from cirkd_ray.cluster.submit import Cluster

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@click.command()
@argument("words", nargs=-1, metavar="[-- COMMAND ...]", help="A command of `cirkd` with its arguments.")
@option(
    "--address",
    envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
    help="The cluster's dashboard, as http://head:8265 (default: RAY_ADDRESS).",
)
@option("--dir", "root", default=".", metavar="DIR", help="The working directory that goes up.")
@option(
    "--env",
    envvar="CIRKD_ENV",
    default="pip",
    metavar="ENV",
    help="What the nodes run it in: pip (they install what this package depends on), image (they have it) or "
    "the file of a Ray runtime environment.",
)
@repeatable("--var", "variables", metavar="NAME[=VALUE]", help="An environment variable of the job.")
@option("--detach", is_flag=True, help="Do not follow the log.")
@option("--follow", metavar="ID", help="Follow a job that was submitted before.")
@option("--stop", metavar="ID", help="Ask a job to write a checkpoint and end.")
def command(
    words: Words,
    address: str | None,
    root: str,
    env: str,
    variables: Words,
    detach: bool,
    follow: str | None,
    stop: str | None,
) -> int:
    """Run a command on a Ray cluster: `cirkd submit --address http://head:8265 -- train RECIPE --out ...`.

    Packs the working directory (without .git, data, runs, links, and what .gitignore and .rayignore name),
    follows the log and ends with the job's own exit code; 75 where the head does not answer. The same line
    again resumes the run, or follows it if it is still under way. Ctrl-C stops following, not the job.

    Results go to storage that all nodes see: --out is an absolute path or a URL, or CIRKD_OUT is. With token
    authentication set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or keep the token in ~/.ray/auth_token.
    """
    if len([given for given in (words, follow, stop) if given]) != 1:
        raise click.UsageError("give one of: -- COMMAND ..., --follow ID, --stop ID")
    if not address:
        raise ConfigError("--address: give the cluster's dashboard, as http://head:8265, or set RAY_ADDRESS")
    place = Path(root).expanduser().resolve()
    if not place.is_dir():
        raise ConfigError(f"--dir {root}: is no folder; give the working directory that goes up")
    line = _resumable(words, place) if words else []
    given = dict(_variable(each) for each in variables)
    _use_token()
    from cirkd_ray.cluster.submit import UNKNOWN, Cluster, HeadAway

    cluster = Cluster(address, _say)
    try:
        if stop:
            cluster.stop(stop)
            return 0
        job = follow or cluster.submit(line, place, env, given)
    except HeadAway as error:
        _say(f"--address {address}: the head does not answer ({error}); nothing was submitted")
        return UNKNOWN
    return 0 if detach else _follow(cluster, job)


def _follow(cluster: Cluster, job: str) -> int:
    from cirkd_ray.cluster.submit import follow_line

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return cluster.follow(job, write)
    except KeyboardInterrupt:
        _say(f"job {job} goes on; {follow_line(job)} follows it, cirkd submit --stop {job} ends it")
        return 130


def _say(text: str) -> None:
    sys.stderr.write(f"cirkd: {shown(text)}\n")


def _use_token() -> None:
    """Turn token authentication on where there is a token; Ray reads the mode when it is imported."""
    kept = Path.home() / ".ray" / "auth_token"
    if any(os.environ.get(name) for name in TOKENS) or kept.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _variable(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, or `NAME` with the value that it has here.

    Raises:
        ConfigError: it has none.
    """
    name, given, value = text.partition("=")
    if not given and name not in os.environ:
        raise ConfigError(f"--var {name}: is not set here; set it, or write {name}=VALUE")
    return name, value if given else os.environ[name]


def _resumable(words: Sequence[str], root: Path) -> list[str]:
    """The command line that the job runs: checked, with its --out, and for `train` with what resumes it.

    Raises:
        click.UsageError, ConfigError: it is none, or it would write where nobody finds it.
    """
    _refuse_secrets(words)
    command, values = _parsed(words)
    if command == "submit":
        raise click.UsageError("a job does not submit itself")
    line = list(words)
    out = values.get("out")
    if out is not None and "://" not in out and not Path(out).is_absolute():
        place = os.environ.get("CIRKD_OUT", "")
        if any(word == "--out" or word.startswith("--out=") for word in words) or not place:
            raise ConfigError(
                f"--out {out}: lies in the job's own folder, which ends with it; give an absolute path on "
                "storage\nthat all nodes see, or a URL, or set CIRKD_OUT"
            )
        line += ["--out", place]
    _check(command, values, root)
    return [*line, *_names(values)] if command == "train" else line


def _refuse_secrets(words: Sequence[str]) -> None:
    """A job's command line is read by everybody who may see the cluster's jobs.

    Raises:
        ConfigError: an address in it holds a password or a signature.
    """
    for url in (found for word in words for found in re.findall(r"[A-Za-z][\w+.-]*://\S+", word)):
        if public(url) != url:
            raise ConfigError(
                f"{public(url)}: holds a password or a signature, which all who see the cluster's jobs would "
                "read;\ngive the nodes the credentials, as variables or files of the provider's own tools"
            )


def _parsed(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand, and the values of its arguments and options."""
    from cirkd_ray.cli import cirkd

    settings = cirkd.context_settings  # a command keeps the help option that it is first asked for
    context, rest = click.Context(cirkd, info_name="cirkd", obj={}, **settings), list(words)
    while isinstance(context.command, click.Group) and rest:
        step, command, rest = context.command.resolve_command(context, rest)
        if command is not None and not isinstance(command, click.Group):
            return words[0], command.make_context(step, rest, context).params
        context = click.Context(command or context.command, context, step)
    raise click.UsageError(f"{words[0]}: name one of its commands")


def _check(command: str, values: dict[str, Any], root: Path) -> None:
    """Recipes and spaces that go up, or are shipped, are valid; others are absolute paths on the nodes."""
    from cirkd_ray.config import load_run
    from cirkd_ray.sweep.space_file import load_space

    given = {
        "train": [values.get("recipe")],
        "tune": [values.get("space")],
        "compare": values.get("recipes", ()),
    }
    for name in given.get(command, ()):
        if name is None or Path(name).is_absolute():
            continue
        found = name if not name.endswith((".yaml", ".yml")) else os.path.normpath(root / name)
        if found != name and not Path(found).is_relative_to(root):
            raise ConfigError(f"{name}: lies outside of {root}, which goes up; give a --dir that holds it")
        (load_space if command == "tune" else load_run)(found, values["overrides"])


def _names(values: dict[str, Any]) -> list[str]:
    """The words that `train` lacks to be resumed by the same line: `--resume`, and a name."""
    from cirkd_ray.train.stages import run_name

    if values["resume"]:
        return []
    resume = [] if values["resume"] is not None or values["restart"] else ["--resume"]
    if values["name"]:
        return resume
    name = run_name(Path(values["recipe"] or "quickstart").stem)
    _say(f"--name {name}: submit again with this name to resume the run")
    return ["--name", name, *resume]
