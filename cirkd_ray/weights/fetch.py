"""Fetch a file over HTTP: resumed where it stopped, checked, and put in place only when whole."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path

from cirkd_ray.errors import WeightsError, public
from cirkd_ray.files import write_text

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

    What arrived stays in `target` + `.part`, so that the next attempt or call goes on from there; what
    arrived from another address is begun again. Beside both lies where they came from (`.origin.json`):
    without a checksum, a whole file from another address is refused, and one without that note, which
    somebody put there by hand, is taken. Proxies are taken from the environment (`https_proxy`, ...).

    Args:
        url: http or https; what is stored and said of it is `public`.
        target: where the whole file goes; its folder is created.
        sha256: the checksum or its beginning, in hexadecimal.
        offline: use no network; by default what the environment says (see `offline_requested`).
        attempts: how often to try; a pause that doubles lies between two.
        timeout: seconds without an answer that count as a failure.
        pause: seconds before the second attempt.
        progress: told after every chunk.

    Raises:
        WeightsError: offline, another kind of URL, refused by the server, interrupted too often, a wrong
            checksum, or what is there was fetched from another address.
    """
    called, parts = public(url), urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise WeightsError(f"{called}: not an http or https address")
    if "@" in parts.netloc:
        raise WeightsError(
            f"{called}: holds a password, which is not sent; fetch it elsewhere and put it there"
        )
    url = urllib.parse.urldefrag(url).url
    if target.is_file() and sha256 and _matches(target, sha256):
        return target
    _require_origin(target, called)
    if target.is_file() and not sha256:
        return target
    if offline_requested() if offline is None else offline:
        raise WeightsError(f"{target}: no whole file, and offline; fetch {called} elsewhere and put it there")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    origin = read_origin(part)
    if origin is not None and origin["url"] != called:
        discard(part)
    _persist(url, part, attempts, timeout, pause, progress)
    if not _matches(part, sha256):
        found = _digest(part)
        discard(part)
        raise WeightsError(f"{called}: the file's SHA-256 is {found[:16]}..., not {sha256[:16]}: not kept")
    part.replace(target)
    _origin_file(part).replace(_origin_file(target))
    return target


def read_origin(path: Path) -> dict[str, str] | None:
    """Where a downloaded file came from: its `url` and what the server calls this version of it.

    None where that is not known.
    """
    try:
        origin = json.loads(_origin_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(origin, dict) and all(isinstance(origin.get(key), str) for key in ("url", "version"))
    return {"url": public(origin["url"]), "version": origin["version"]} if whole else None


def _origin_file(path: Path) -> Path:
    return path.with_name(path.name + ".origin.json")


def _require_origin(path: Path, url: str) -> None:
    """Refuse to take what was fetched from elsewhere for what lies at `url`."""
    origin = read_origin(path) if path.is_file() else None
    if origin is not None and origin["url"] != url:
        raise WeightsError(
            f"{path}: was fetched from {origin['url']}, not from {url};\n"
            "choose another folder, or remove it first"
        )


def discard(part: Path) -> None:
    """Remove a downloaded file, and the note of where it came from."""
    part.unlink(missing_ok=True)
    _origin_file(part).unlink(missing_ok=True)


def _persist(
    url: str, part: Path, attempts: int, timeout: float, pause: float, progress: Progress | None
) -> None:
    """Try until `part` is whole, or `attempts` times; what a second try cannot mend is told at once."""
    for attempt in range(attempts):
        try:
            return _fetch(url, part, timeout, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise WeightsError(f"{public(url)}: the server answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < attempts - 1:
            time.sleep(pause * 2**attempt)
    have = part.stat().st_size if part.is_file() else 0
    raise WeightsError(
        f"{public(url)}: {reason} (tried {attempts} times); "
        f"{have} bytes are kept, the next call goes on from there"
    )


def _fetch(url: str, part: Path, timeout: float, progress: Progress | None) -> None:
    """One attempt: append to `part` what it lacks; a part of unknown origin is begun again."""
    origin = read_origin(part)
    have = part.stat().st_size if origin is not None and part.is_file() else 0
    version = origin["version"] if origin is not None else ""
    headers = {"User-Agent": "cirkd_ray"}
    if have:
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": version} if version else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        # A new opener, as the shared one would keep the proxies of its first use.
        response = urllib.request.build_opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # nothing is lacking
        discard(part)
        raise OSError("the kept part does not belong to this file") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise WeightsError(f"{public(url)}: answers with a web page, not a file: fetch it in a browser")
        resumed = response.status == 206
        if resumed and not _goes_on(response.headers, have, version):
            discard(part)
            raise OSError("the server does not go on where the kept part ends")
        if not resumed:
            have = 0
            discard(part)
            note = {"url": public(url), "version": _version(response.headers)}
            write_text(_origin_file(part), json.dumps(note) + "\n")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")


def _version(headers: Message) -> str:
    """What tells this content from a later one at the same address, fit for `If-Range`; empty without."""
    tag = headers.get("ETag", "")
    return str(headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag)


def _goes_on(headers: Message, have: int, version: str) -> bool:
    """Whether a partial answer starts at byte `have` of the same content."""
    start = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return start is not None and int(start[1]) == have and _version(headers) in ("", version)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, sha256: str) -> bool:
    return not sha256 or _digest(path).startswith(sha256.lower())


def file_name(url: str) -> str:
    """What a file at that address is saved as.

    Raises:
        WeightsError: the address ends in no name.
    """
    name = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1] or "weights"
    if name in (".", ".."):
        raise WeightsError(f"{public(url)}: ends in {name!r}, which names no file")
    return name
