"""The doctor's findings as a table, and what to do as lines that can be copied."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cirkd_ray.doctor.checks import Finding, Level

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


def print_findings(console: Console, findings: Sequence[Finding], nodes: int) -> None:
    """Print them, the worst last.

    Args:
        console: takes it.
        findings: what is printed.
        nodes: how many were looked at; nothing is said of where on a single one.
    """
    table = Table("", "check", *(["where"] if nodes > 1 else []), "found", box=None)
    for found in findings:
        where = [_where(found, nodes)] if nodes > 1 else []
        state = Text(found.level.name.lower(), STYLES[found.level])
        table.add_row(state, found.check, *(Text(cell) for cell in (*where, found.text)))
    console.print(table)
    for found in sorted((each for each in findings if each.advice), key=lambda each: each.level):
        on = f" on {', '.join(found.nodes)}" if found.nodes and nodes > 1 else ""
        console.print(
            f"{found.level.name.lower()}, {found.check}{on}: {found.text}", highlight=False, markup=False
        )
        console.print(f"    {found.advice}", highlight=False, markup=False)


def _where(found: Finding, nodes: int) -> str:
    if not found.nodes:
        return "between nodes"
    return "all nodes" if len(found.nodes) == nodes else ", ".join(found.nodes)
