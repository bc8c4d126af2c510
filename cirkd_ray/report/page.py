"""One self-contained HTML page, from the template `page.html`: nothing comes from the network."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cirkd_ray.data.base import UInt8
from cirkd_ray.data_tools.pictures import save_picture
from cirkd_ray.files import save_text, told, write_bytes
from cirkd_ray.report.tables import TextTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATES = Environment(
    loader=PackageLoader("cirkd_ray.report", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Page:
    """Collects sections, then writes `index.html` and the pictures beside it.

    Args:
        folder: where the files go.
        title: the page's.
        subtitle: a line below it.
    """

    def __init__(self, folder: Path, title: str, subtitle: str = "") -> None:
        self.folder, self.title = folder, title
        self.parts: list[tuple[str, Any]] = []
        self.note(subtitle)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append(("heading", text))

    def note(self, text: str) -> None:
        """A paragraph; nothing for an empty text."""
        if text:
            self.parts.append(("note", text))

    def table(self, table: TextTable) -> None:
        """A table with its title."""
        self.note(table.title)
        self.parts.append(("table", table))

    def code(self, text: str, title: str) -> None:
        """A file's text, folded away under its title."""
        self.parts.append(("code", {"title": title, "text": text}))

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        """A picture, in the page and as `NAME.png` beside it.

        Raises:
            ConfigError: the disk is full or not writable.
        """
        file = io.BytesIO()
        figure.savefig(file, format="png")
        path = self.folder / f"{name}.png"
        with told(path):
            write_bytes(path, file.getvalue())
        self._image(name, file.getvalue(), caption)

    def picture(self, name: str, pixels: UInt8, caption: str = "") -> None:
        """The same of H x W x 3 RGB pixels."""
        path = self.folder / f"{name}.png"
        save_picture(path, pixels)
        self._image(name, path.read_bytes(), caption)

    def _image(self, name: str, png: bytes, caption: str) -> None:
        text = base64.b64encode(png).decode()
        self.parts.append(("figure", {"name": name, "caption": caption, "png": text}))
        self.note(caption)

    def write(self) -> Path:
        """Write the page; returns its path.

        Raises:
            ConfigError: the disk is full or not writable.
        """
        path = self.folder / "index.html"
        save_text(path, _TEMPLATES.get_template("page.html").render(title=self.title, parts=self.parts))
        return path
