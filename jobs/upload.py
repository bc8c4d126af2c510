"""Measures what a job's working directory will upload: `python jobs/upload.py ROOT ENVIRONMENT`.

ENVIRONMENT is the file of the job's runtime environment. Links, `data/` and `runs/` of ROOT are added to its
`excludes`: Ray would follow links and send what they lead to. One line names what is left out, and one what
is large. Ends with 2 where the head would not take it; what .gitignore and .rayignore name never goes up.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

MIB = 2**20
LARGE = 10 * MIB
"""A file above this is named."""
LIMIT = 100 * MIB
"""What the head takes of one package."""
ENTRIES = 100_000
"""Files and folders after which measuring ends: no checkout has so many."""
APART = ("/data", "/runs")
"""Never code, whatever .gitignore says."""


class TooManyFiles(Exception):
    """There is more than anybody wants to upload."""


def measure(root: Path, excludes: list[str]) -> tuple[dict[str, int], list[str]]:
    """Bytes of each file that goes up, and the links that are to be left out; both relative to `root`.

    Raises:
        TooManyFiles: there are more than `ENTRIES`.
    """
    files: dict[str, int] = {}
    links: list[str] = []
    seen = 0

    def is_link(path: Path) -> bool:
        if path.is_symlink():
            links.append(str(path.relative_to(root)))
        return path.is_symlink()

    def look(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen > ENTRIES:
            raise TooManyFiles
        if path.is_file():
            files[str(path.relative_to(root))] = path.stat().st_size

    defaults = [*get_runtime_env_default_excludes(), *excludes]
    honoured = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(root, [_get_excludes(root, defaults), is_link], look, honoured, _Silent())
    return files, links


class _Silent:
    """Stands for a logger."""

    def info(self, *words: object) -> None: ...

    def error(self, *words: object) -> None: ...


def literal(path: str) -> str:
    """A pattern of .gitignore that means this very path."""
    return "/" + "".join(f"\\{c}" if c in "*?[]!#\\ " else c for c in path)


def shown(files: dict[str, int], count: int = 4) -> str:
    """The largest files and folders of the first level, with their sizes."""
    parts: dict[str, int] = {}
    for name, size in files.items():
        part = name if size > LARGE else name.split("/", 1)[0] + ("/" if "/" in name else "")
        parts[part] = parts.get(part, 0) + size
    largest = sorted(parts, key=lambda part: -parts[part])[:count]
    return ", ".join(f"{part} {parts[part] / MIB:.1f} MiB" for part in largest if parts[part] > MIB)


def main(root: Path, environment: Path) -> int:
    """Say what is left out and what is large; 2 where it cannot go up."""
    try:
        tree = yaml.safe_load(environment.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        sys.stderr.write(f"upload: CIRKD_ENV: the runtime environment is not YAML: {reason}\n")
        return 2
    if not isinstance(tree, dict) or not isinstance(tree.get("excludes") or [], list):
        sys.stderr.write("upload: CIRKD_ENV: give a mapping of settings, with a list as `excludes`\n")
        return 2
    excludes = [*(tree.get("excludes") or []), *APART]
    apart = [name.strip("/") for name in APART if (root / name.strip("/")).exists()]
    how = f"to leave a file out, add a line with its path to {root / '.rayignore'}"
    try:
        files, links = measure(root, excludes)
    except TooManyFiles:
        sys.stderr.write(f"upload: {root} holds over {ENTRIES} files; submit from a clean checkout ({how})\n")
        return 2
    if links or apart:
        names = ", ".join([*apart, *links][:6]) + (", ..." if len(apart) + len(links) > 6 else "")
        sys.stderr.write(f"upload: left out: {names} (data and runs stay; links are not followed)\n")
    environment.write_text(yaml.safe_dump({**tree, "excludes": [*excludes, *map(literal, links)]}))
    total = sum(files.values())
    if total > LIMIT:
        sys.stderr.write(
            f"upload: {total / MIB:.0f} MiB are too much, the head takes {LIMIT / MIB:.0f}: {shown(files)}; "
            f"{how}\n"
        )
        return 2
    if max(files.values(), default=0) > LARGE:
        sys.stderr.write(f"upload: {total / MIB:.0f} MiB, of these {shown(files)}; {how}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
