"""Pages that MkDocs makes from the code: a page a loss, all settings of a recipe, the published networks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from cirkd_ray.config import RunSpec
from cirkd_ray.config.described import Described, Entry, entry_of, settings_of
from cirkd_ray.config.registry import DATASETS, HEADS, LOSSES, TASK_LOSSES, Registry
from cirkd_ray.config.roles import Role, Setting
from cirkd_ray.config.settings import fields_of, role_of
from cirkd_ray.models.build import NetworkSettings

KINDS = (
    ("Losses with the teacher", "losses", "`distill.losses.NAME.kind`", LOSSES),
    ("Losses with the labels", "task-losses", "`task.losses.NAME.kind`", TASK_LOSSES),
    ("Heads", "heads", "`HEAD:TIMM_NAME`", HEADS),
    ("Data sets", "data-sets", "`data.name`", DATASETS),
)


def on_config(config: Any) -> Any:
    """Add the made pages to the navigation, and to the part on clusters those that it does not name."""
    named = str(config["nav"])
    others = sorted(page.name for page in Path(config["docs_dir"]).glob("*.md") if page.name not in named)
    next(part for part in config["nav"] if "Clusters" in part)["Clusters"] += others
    for title, folder, _, registry in KINDS:
        section = "Training" if registry is not DATASETS else "Start"
        pages = [f"{folder}/index.md", *(f"{folder}/{name}.md" for name in registry.names())]
        next(part for part in config["nav"] if section in part)[section].append({title: pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Make the pages."""
    for title, folder, where, registry in KINDS:
        entries = [entry_of(registry, name) for name in registry.names()]
        lines = [f"# {title}", "", f"What {where} may be.", "", "| name | |", "|---|---|"]
        lines += [f"| [`{e.name}`]({e.name}.md) | {e.summary} |" for e in entries]
        _add(files, config, f"{folder}/index.md", lines)
        for entry in entries:
            _add(files, config, f"{folder}/{entry.name}.md", _page(entry, registry))
    _add(files, config, "settings.md", _settings())
    return files


def _add(files: Files, config: Any, name: str, lines: Iterable[str]) -> None:
    files.append(File.generated(config, name, content="\n".join(lines) + "\n"))


def _page(entry: Entry, registry: Registry[Any]) -> list[str]:
    """One class."""
    lines = [f"# {entry.name}", "", entry.text, ""]
    if entry.terms:
        lines += ["| term | published weight |", "|---|---|"]
        lines += [f"| `{term}` | {weight:g} |" for term, weight in entry.terms.items()] + [""]
    settings = [*entry.settings, *(settings_of(NetworkSettings) if registry is HEADS else ())]
    return lines + _table(settings)


def _table(settings: Iterable[Described]) -> list[str]:
    lines = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for item in settings:
        values = item.values.replace("|", "\\|")
        lines.append(f"| `{item.name}` | {item.default} | {values} | {item.meaning} |")
    return lines if len(lines) > 2 else ["It has no settings."]


def _settings() -> list[str]:
    """Every field of a recipe, a section a table."""
    lines = [
        "# Settings of a recipe",
        "",
        "Paths as `--set` and sweeps take them; `*` stands for a free name. Losses, heads and data sets add",
        "their own ([losses](losses/index.md), [heads](heads/index.md), [data sets](data-sets/index.md)).",
        "*Resume*: may change when a run is resumed. *Population*: a population may change it.",
        "",
    ]
    known: dict[str, list[str]] = {}
    for path, _ in fields_of(Setting(section=RunSpec)):
        known.setdefault(path.partition(".")[0] if "." in path else "", []).append(path)
    for section, paths in known.items():
        lines += [
            f"## {section or 'The run'}",
            "",
            "| setting | default | values | meaning | |",
            "|---|---|---|---|---|",
        ]
        for path in paths:
            item = _described(path)
            roles = role_of(path.replace("*", "x"))
            notes = ["resume"] * (Role.COMPUTES not in roles) + ["population"] * (Role.MUTABLE in roles)
            values = item.values.replace("|", "\\|")
            lines.append(f"| `{path}` | {item.default} | {values} | {item.meaning} | {', '.join(notes)} |")
        lines.append("")
    return lines


def _described(path: str) -> Described:
    """The field at a path of RunSpec."""
    at = Setting(section=RunSpec)
    *sections, last = path.split(".")
    for name in sections:
        at = at.inside()[name]
    if at.section is None:  # a free name's value
        return Described(last, "by free names", "number", "")
    return next(item for item in settings_of(at.section) if item.name == last)
