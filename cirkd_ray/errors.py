"""Errors of the user's making: one or two lines that name the thing and say what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, quote, urlsplit


class UserError(Exception):
    """Bad input. The command line prints the message without a traceback and exits with code 2.

    A message reads `SUBJECT: WHAT IS WRONG; WHAT TO DO`. Its subject is the setting (`optim.lr`), the file or
    the option that the error is about. A message about several settings has one such line for each.
    """

    @property
    def subject(self) -> str:
        """What the error is about: the text before the first ": ", or "" where the message names nothing."""
        before, colon, _ = str(self).split("\n", 1)[0].partition(": ")
        return before if colon else ""


class ConfigError(UserError):
    """A recipe, an override or a search space is wrong."""


class DataError(UserError):
    """A data set, one of its files or a label is wrong."""


class TransientError(DataError):
    """Data could not be had for a reason that may pass: a loader process died, the storage did not answer."""


class StorageError(UserError):
    """Storage is full or away, and was waited for in vain.

    Attributes:
        again: words that the command line needs to resume; None where that is not known.
    """

    again: tuple[str, ...] | None = None


class WeightsError(UserError):
    """A weights file does not exist, is damaged or does not fit the network."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read."""


class TrainingError(UserError):
    """A run cannot go on, for example after a non-finite loss."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'miou'?` or, when nothing is close, the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; known: {shown}"


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:limit] for line in lines if line), type(error).__name__)


_SIGNED = re.compile(
    r"(?i)(^|&)[^=&]*(sig|token|expires|credential|key|policy|auth|pass|secret|session|jwt)[^=&]*="
)
"""In the query of a URL that lets everybody in who has it."""


_SLASHED = re.compile(r"([^:]+://[^/@:?[]+:)(?!\d+/)([^@?]*/[^@?]*)@")
"""A URL whose password has a slash in it, as secret keys of S3 do."""


def parts_of(url: str, allow_fragments: bool = True) -> tuple[SplitResult, str]:
    """The parts of a URL, and its host without a user that lets in who has it.

    A password may have slashes in it. Azure's `container@account` lets nobody in.

    Raises:
        ConfigError: it is none.
    """
    if found := _SLASHED.match(url):
        url = f"{found[1]}{quote(found[2], safe='')}{url[found.end(2) :]}"
    try:
        parts = urlsplit(url, allow_fragments=allow_fragments)
    except ValueError as error:
        begins = f"{url.partition('://')[0]}://..."
        raise ConfigError(f"{begins}: is no URL ({error})") from None
    user, _, host = parts.netloc.rpartition("@")
    return parts, host if ":" in user or parts.scheme.startswith("http") else parts.netloc


def public(url: str) -> str:
    """A URL as it is stored and shown: without a signed query, a password and a fragment.

    Raises:
        ConfigError: it is none.
    """
    parts, netloc = parts_of(url)
    query = "" if _SIGNED.search(parts.query) else parts.query
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()
