"""A comparison's files: `index.html`, `comparison.png`, `comparison.md`, `runs.csv`."""

from __future__ import annotations

from pathlib import Path

import yaml

from cirkd_ray.compare.folder import CompareData
from cirkd_ray.files import save_text
from cirkd_ray.report.compare import comparison_figure, csv_text, markdown, methods_table, notes
from cirkd_ray.report.page import Page


def write_comparison(data: CompareData) -> Path:
    """Write everything into the comparison's `report` folder; returns the page."""
    folder = data.folder / "report"
    page = Page(folder, "Methods compared", f"{data.folder.name}: {len(data.recipes)} methods")
    page.table(methods_table(data))
    page.note(notes(data))
    page.figure("comparison", comparison_figure(data))
    page.heading("Recipes")
    for name, recipe in data.recipes.items():
        page.code(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), name)
    save_text(folder / "comparison.md", markdown(data))
    save_text(folder / "runs.csv", csv_text(data))
    return page.write()
