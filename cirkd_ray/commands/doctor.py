"""`cirkd doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click import argument, option

from cirkd_ray.commands._options import Words, require_file, set_option
from cirkd_ray.commands._options import local as on_disk

if TYPE_CHECKING:
    from cirkd_ray.config import RunSpec
    from cirkd_ray.doctor.checks import Finding, Question

Seen = tuple["list[Finding]", "dict[str, dict[str, Any]]"]


@click.command()
@argument(
    "recipe", required=False, metavar="[RECIPE]", help="A run that is to fit: its workers and its data."
)
@set_option()
@option("--data", metavar="DIR", help="The data set's root, in place of data.root.")
@option("--out", metavar="DIR", default="runs", help="Where runs would be written; a URL is tried, too.")
@option("--local", is_flag=True, help="Look at this machine alone, without Ray.")
@option("--strict", is_flag=True, help="End with exit code 1 where there are warnings.")
@option(
    "--json",
    "json_file",
    metavar="FILE",
    callback=on_disk,
    help="Also write the findings and all figures there.",
)
def command(
    recipe: str | None,
    overrides: Words,
    data: str | None,
    out: str,
    local: bool,
    strict: bool,
    json_file: str | None,
) -> int:
    """Say whether this machine, or every node of the cluster of RAY_ADDRESS, is fit for a run.

    Looks at versions, GPUs and NCCL, CPUs, memory, shared memory, disk, limits, the token, the clocks and the
    network between nodes, at --out and at the data. For each finding it says what to do. Nothing is changed;
    a small file is written to --out and deleted.

    Exit code 0: a run can start (warnings included, unless --strict makes them 1); 2: there are errors.
    """
    import json
    from pathlib import Path

    from cirkd_ray.doctor.checks import Level, as_json, worst
    from cirkd_ray.files import write_text
    from cirkd_ray.report.console import output
    from cirkd_ray.report.doctor import print_findings

    require_file("--json", json_file)
    spec, question = _question(recipe, overrides, data, out)
    findings, facts = _look(question, spec, local)
    console = output(highlight=False)
    print_findings(console, findings, len(facts))
    level = worst(findings)
    if json_file is not None:
        write_text(Path(json_file), json.dumps(as_json(findings, facts), indent=2) + "\n")
    return {Level.OK: 0, Level.WARNING: int(strict), Level.ERROR: 2}[level]


def _question(
    recipe: str | None, overrides: Words, data: str | None, out: str
) -> tuple[RunSpec | None, Question]:
    """The run that is to fit, if one is named, and what is asked of each node."""
    import secrets
    from pathlib import Path

    from cirkd_ray.config import load_run
    from cirkd_ray.doctor.checks import Question

    spec = load_run(recipe or "quickstart/baseline", list(overrides)) if recipe or overrides else None
    root = data or (spec.data.root if spec is not None else None)
    places = [
        each if each is None or "://" in each else str(Path(each).expanduser().absolute())
        for each in (out, root)
    ]
    loaders = spec.data.workers if spec is not None else 0
    return spec if recipe else None, Question(str(places[0]), places[1], loaders, secrets.token_hex(6))


def _look(question: Question, spec: RunSpec | None, local: bool) -> Seen:
    """On the cluster, if there is one, else here."""
    import os

    from cirkd_ray.doctor.network import ask_head, token
    from cirkd_ray.errors import ConfigError

    address = os.environ.get("RAY_ADDRESS", "")
    if local or not address:
        findings, facts = _here(question)
        return [*findings, *token(os.environ)], facts
    if address.startswith(("http://", "https://")):
        findings, facts = _here(question)
        mine = {**os.environ, "RAY_ADDRESS": ""}  # what asks by HTTP sends the token in any case
        return [*findings, *token(mine), *ask_head(address, os.environ)], facts
    try:
        findings, facts = _there(question, spec)
        return [*findings, *token(os.environ, joined=True)], facts
    except ConfigError as error:  # it cannot be joined: what is so here may say why
        findings, facts = _here(question)
        return [*findings, *token(os.environ), _unjoined(error)], facts


def _here(question: Question) -> Seen:
    from cirkd_ray.doctor.catalogue import CHECKS
    from cirkd_ray.doctor.checks import examine, judge
    from cirkd_ray.doctor.places import clean_out

    facts = {"here": examine(CHECKS, question)}
    clean_out(question, made=facts["here"]["--out"].get("made", False))
    return judge(CHECKS, facts, question), facts


def _there(question: Question, spec: RunSpec | None) -> Seen:
    from cirkd_ray.cluster.session import joined

    with joined(minimum_cpus=1):
        from cirkd_ray.cluster.doctor import visit

        return visit(question, spec)


def _unjoined(error: Exception) -> Finding:
    from cirkd_ray.doctor.checks import Finding, Level

    text = str(error).splitlines()[0]
    return Finding(
        "head",
        Level.ERROR,
        text,
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...   # the head's, if it has one",
    )
