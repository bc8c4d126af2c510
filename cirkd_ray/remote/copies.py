"""Working copies: what lies behind a URL, as files of this machine at a place that follows from the URL."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirkd_ray.errors import ConfigError
from cirkd_ray.remote.address import url


def scratch() -> Path:
    """The folder of all working copies: CIRKD_SCRATCH, or one in the user's cache."""
    usual = f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/cirkd-runs"
    found = os.environ.get("CIRKD_SCRATCH") or usual
    return Path(os.path.expanduser(found)).absolute()  # noqa: PTH111 - Path's raises where there is no home


def copy_of(place: str | Path) -> Path:
    """Where the working copy of a URL lies; other places as they are.

    Raises:
        ConfigError: the URL does not name one place.
    """
    found = url(place)
    if found is None:
        return Path(place)
    scheme, _, rest = found.partition("://")
    parts = rest.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{found}: is no place; write it without empty parts and without '..'")
    return scratch().joinpath(scheme, *parts)


def url_of(path: Path) -> str | None:
    """The URL that a path of this machine is a working copy of."""
    try:
        scheme, *parts = path.absolute().relative_to(scratch()).parts
    except ValueError:
        return None
    return f"{scheme}://{'/'.join(parts)}" if parts and not scheme.startswith(".") else None


def address(path: str | Path) -> str:
    """What names the same place on every machine: the URL of a working copy; other paths as they are."""
    return url(path) or url_of(Path(path)) or str(path)


def _like(value: Any, items: list[Any]) -> Any:
    """A list or tuple of the value's type, which may have named fields."""
    return value._make(items) if hasattr(value, "_make") else type(value)(items)


def addressed(value: Any) -> Any:
    """The same value with the `address` of each working copy in it."""
    if isinstance(value, str):
        return (url_of(Path(value)) or value) if value.startswith("/") else value
    if isinstance(value, Mapping):
        return {key: addressed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return _like(value, [addressed(item) for item in value])
    return value


def copy_id() -> str:
    """A number that no other machine's folder of working copies has."""
    file = scratch() / ".id"
    try:
        return file.read_text()
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".id.{secrets.token_hex(8)}")
    draft.write_text(secrets.token_hex(8))
    try:
        os.link(draft, file)  # the first wins
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text()
