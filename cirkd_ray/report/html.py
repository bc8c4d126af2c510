"""One self-contained HTML page: text, tables and pictures, nothing from the network."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from cirkd_ray.files import save_text
from cirkd_ray.report.tables import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; background: #fff; max-width: 1180px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note { color: #57606a; white-space: pre-line; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid #e3e6ea; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f5f6f8; }
pre { background: #f5f6f8; padding: 0.8rem 1rem; overflow-x: auto; font-size: 12.5px; border-radius: 6px; }
img { max-width: 100%; height: auto; }
details summary { cursor: pointer; color: #0a58ca; }
"""


class Page:
    """Collects sections, then writes `index.html` and the pictures beside it.

    Args:
        folder: where the files go.
        title: the page's.
        subtitle: a line below it.
    """

    def __init__(self, folder: Path, title: str, subtitle: str = "") -> None:
        self.folder, self.title = folder, title
        self.parts = [f"<h1>{html.escape(title)}</h1>"]
        self.note(subtitle)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def note(self, text: str) -> None:
        """A paragraph."""
        if text:
            self.parts.append(f'<p class="note">{html.escape(text)}</p>')

    def table(self, sheet: Sheet) -> None:
        """A table with its title."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in sheet.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in sheet.rows
        )
        self.note(sheet.title)
        self.parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )

    def code(self, text: str, summary: str = "") -> None:
        """A file's text, folded away under `summary` if one is given."""
        body = f"<pre>{html.escape(text)}</pre>"
        if summary:
            body = f"<details><summary>{html.escape(summary)}</summary>{body}</details>"
        self.parts.append(body)

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """A picture, in the page and as `NAME.png` beside it."""
        file = io.BytesIO()
        figure.savefig(file, format="png")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.png").write_bytes(file.getvalue())
        encoded = base64.b64encode(file.getvalue()).decode()
        self.parts.append(f'<img alt="{html.escape(caption or name)}" src="data:image/png;base64,{encoded}">')
        self.note(caption)

    def write(self) -> Path:
        """Write the page; returns its path."""
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>'
        path = self.folder / "index.html"
        save_text(
            path,
            f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(self.parts)}</body></html>\n",
        )
        return path
