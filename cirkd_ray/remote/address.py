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

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
_TABLE = "CIRKD_ADDRESSES"
"""Environment variable: JSON, URL without secrets -> the URL that was given."""
SHIPPED = "package"
"""Scheme of what comes with the package; such a name is no address."""


def url(place: str | Path) -> str | None:
    """The URL that a text or a path is, without its secrets; None for a path of this machine.

    A `Path` made of a URL has one slash of the two; that is mended.
    """
    text = str(place)
    found = _URL.match(text)
    if found is None or found[1].lower() == SHIPPED:
        return None
    return _without_secrets(f"{found[1]}://{text[found.end() :]}")


def is_url(place: str | Path) -> bool:
    """Whether it lies behind a URL."""
    return url(place) is not None


def _without_secrets(full: str) -> str:
    parts = urlsplit(full, allow_fragments=False)
    user, _, host = parts.netloc.rpartition("@")
    netloc = parts.netloc if ":" not in user else host  # `container@account` of Azure is no secret
    bare = urlunsplit((parts.scheme, netloc, parts.path, "", "")).rstrip("/")
    if parts.query or netloc != parts.netloc:
        learn({bare: full})
    return bare


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
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"]+", lambda found: str(without_secrets(found[0])), text)
