"""Where tests find real data and golden numbers; they skip, with a reason, where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def data_root(name: str = "") -> Path:
    """The folder of real data (`camvid`, `samples/voc`, ...), from CIRKD_DATA or beside the repository."""
    root = Path(os.environ.get("CIRKD_DATA", REPO.parent / "shared" / "data")) / name
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}; set CIRKD_DATA")
    return root


def golden(name: str) -> Path:
    """A file of reference numbers: from `tests/golden`, CIRKD_GOLDEN or beside the repository."""
    folders = [
        REPO / "tests" / "golden",
        Path(os.environ.get("CIRKD_GOLDEN", REPO.parent / "shared" / "golden")),
    ]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    return pytest.skip(f"golden file {name} not found in {', '.join(map(str, folders))}; set CIRKD_GOLDEN")
