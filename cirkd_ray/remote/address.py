"""Addresses: URLs as text, and what must not be seen of them.

A URL may hold a password (`s3://KEY:SECRET@bucket/...`) or a signature (`https://...?X-Amz-Signature=...`).
Everything stores and shows the URL without them. What was left out stays in this process, and in those that
it starts, until a connection is opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cirkd_ray.errors import ConfigError, parts_of

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
_TABLE = "CIRKD_ADDRESSES"
"""Environment variable: JSON, URL without secrets -> the URL that was given."""
SHIPPED = "package"
"""Scheme of what comes with the package; such a name is no address."""


def url(place: str | Path) -> str | None:
    """The URL that a text or a path is, without its secrets; None for a path of this machine.

    A `Path` made of a URL has one slash of the two; that is mended.

    Raises:
        ConfigError: it begins as a URL does, and is none.
    """
    text = str(place)
    found = _URL.match(text)
    if found is None or found[1].lower() == SHIPPED:
        return None
    bare, full = _split(f"{found[1]}://{text[found.end() :]}")
    if bare != full.rstrip("/") and ("?" in full or "@" in full):
        learn({bare: full})
    return bare


def is_url(place: str | Path) -> bool:
    """Whether it lies behind a URL."""
    return url(place) is not None


def _split(full: str) -> tuple[str, str]:
    """A URL without its secrets, and as a connection is opened with it.

    Raises:
        ConfigError: it is none.
    """
    parts, netloc = parts_of(full, allow_fragments=False)
    return parts._replace(netloc=netloc, query="").geturl().rstrip("/"), parts.geturl()


def with_secrets(bare: str) -> str:
    """The URL that a connection is opened with: the one that was given for it, or for a folder above it."""
    known = known_secrets()
    for root in sorted(known, key=len, reverse=True):
        if bare == root:
            return known[root]
        if bare.startswith(f"{root}/"):
            parts = urlsplit(known[root], allow_fragments=False)
            return urlunsplit(parts._replace(path=parts.path.rstrip("/") + bare[len(root) :]))
    return bare


def known_secrets() -> dict[str, str]:
    """What was left out of URLs, for processes on other machines that open them."""
    found: dict[str, str] = json.loads(os.environ.get(_TABLE) or "{}")
    return found


def learn(secrets: Mapping[str, str]) -> None:
    """Take what `known_secrets` gave in another process."""
    if secrets and (now := known_secrets()) != (more := {**now, **secrets}):
        os.environ[_TABLE] = json.dumps(more)


def without_secrets(value: Any) -> Any:
    """The same text, list or mapping with no secret in any URL."""
    if isinstance(value, str):
        return (url(value) or value) if "://" in value[:40] and ("?" in value or "@" in value) else value
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_secrets(item) for item in value)
    return value


def shown(text: str) -> str:
    """A line of text, such as a command line, with no secret in any URL."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"]+", lambda found: _shown(found[0]), text)


def _shown(found: str) -> str:
    if "?" not in found and "@" not in found:
        return found
    try:
        return _split(found)[0]
    except ConfigError:
        return f"{found.partition('://')[0]}://..."
