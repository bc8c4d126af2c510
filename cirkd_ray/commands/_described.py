"""Tables of registered classes and of their settings, for several commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cirkd_ray.config.described import Described, Entry


def show_list(groups: Sequence[tuple[str, Sequence[Entry]]], as_json: bool) -> None:
    """Names with what each is, a group under its title."""
    from rich.table import Table

    from cirkd_ray.report.console import output

    if as_json:
        print(json.dumps({title: {e.name: e.summary for e in entries} for title, entries in groups}))
        return
    console = output(highlight=False)
    for title, entries in groups:
        table = Table(title, "", box=None, pad_edge=False)
        for entry in entries:
            table.add_row(entry.name, entry.summary)
        console.print(table)


def show_entry(entry: Entry, as_json: bool, more: Sequence[Described] = ()) -> None:
    """All of one class: its text, its terms with their published weights, and its settings."""
    from rich.table import Table

    from cirkd_ray.report.console import output

    settings = [*entry.settings, *more]
    if as_json:
        listed = [setting._asdict() for setting in settings]
        print(json.dumps({**entry._asdict(), "settings": listed, "terms": dict(entry.terms)}))
        return
    console = output(highlight=False, markup=False)
    console.print(f"{entry.name}: {entry.text}\n")
    if entry.terms:
        table = Table("term", "published weight", box=None, pad_edge=False)
        for term, weight in entry.terms.items():
            table.add_row(term, f"{weight:g}")
        console.print(table)
        console.print()
    table = Table("setting", "default", "values", "meaning", box=None, pad_edge=False)
    for setting in settings:
        table.add_row(setting.name, setting.default, setting.values, setting.meaning)
    console.print(table if settings else "It has no settings.")
