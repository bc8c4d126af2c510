"""Fetch a file over HTTP: resumed where it stopped, checked, and put in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cirkd_ray.errors import WeightsError

CHUNK = 1 << 20
Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes there will be, where the server says so."""


def offline_requested() -> bool:
    """Whether the environment forbids the network: `CIRKD_OFFLINE` or `HF_HUB_OFFLINE` is set and not 0."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("CIRKD_OFFLINE", "HF_HUB_OFFLINE"))


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    offline: bool | None = None,
    attempts: int = 4,
    timeout: float = 30.0,
    pause: float = 1.0,
    progress: Progress | None = None,
) -> Path:
    """Fetch `url` into `target`; a file that is there already and passes its check is left as it is.

    What arrived stays in `target` + `.part`, so that the next attempt or call goes on from there. Proxies are
    taken from the environment (`https_proxy`, `no_proxy`, ...).

    Args:
        url: http or https.
        target: where the whole file goes; its folder is created.
        sha256: the checksum or its beginning, in hexadecimal.
        offline: use no network; by default what the environment says (see `offline_requested`).
        attempts: how often to try; a pause that doubles lies between two.
        timeout: seconds without an answer that count as a failure.
        pause: seconds before the second attempt.
        progress: told after every chunk.

    Raises:
        WeightsError: offline, another kind of URL, refused by the server, interrupted too often, or a wrong
            checksum.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(f"{url} is not an http or https address")
    if target.is_file() and _matches(target, sha256):
        return target
    if offline_requested() if offline is None else offline:
        raise WeightsError(f"offline, and no whole {target} is there: fetch {url} elsewhere and put it there")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    _persist(url, part, attempts, timeout, pause, progress)
    if not _matches(part, sha256):
        found = _digest(part)
        part.unlink()
        raise WeightsError(f"{url}: the file's SHA-256 is {found[:16]}..., not {sha256[:16]}: not kept")
    part.replace(target)
    return target


def _persist(
    url: str, part: Path, attempts: int, timeout: float, pause: float, progress: Progress | None
) -> None:
    """Try until `part` is whole, or `attempts` times; what a second try cannot mend is told at once."""
    for attempt in range(attempts):
        try:
            return _fetch(url, part, timeout, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise WeightsError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < attempts - 1:
            time.sleep(pause * 2**attempt)
    have = part.stat().st_size if part.is_file() else 0
    raise WeightsError(
        f"{url}: {reason} (tried {attempts} times); {have} bytes are kept, the next call goes on from there"
    )


def _fetch(url: str, part: Path, timeout: float, progress: Progress | None) -> None:
    """One attempt: append to `part` what it lacks."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "cirkd_ray", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        # A new opener, as the shared one would keep the proxies of its first use.
        response = urllib.request.build_opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is lacking
        part.unlink()
        raise OSError("the kept part does not belong to this file") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise WeightsError(f"{url} answers with a web page, not a file: fetch it in a browser")
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, sha256: str) -> bool:
    return not sha256 or _digest(path).startswith(sha256.lower())
