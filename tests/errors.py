"""How tests ask for errors of the user's making: by what they are about, not by their wording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cirkd_ray.errors import UserError


@contextmanager
def refuses(
    subject: str | Path, kind: type[UserError] = UserError, *facts: object, lines: int = 2
) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The block raises an error of that kind about `subject` that states the facts, in at most `lines` lines.

    Facts are what a reader acts on: numbers, names of files and settings, the name that was meant. After
    `with refuses("optim.lr", ConfigError, -1) as error: ...`, `error.value` is the error.
    """
    with pytest.raises(kind) as caught:
        yield caught
    assert len(str(caught.value).splitlines()) <= lines, str(caught.value)
    require_error(str(caught.value), subject, *facts)


def require_error(text: str, subject: str | Path, *facts: object) -> None:
    """Check that a message, or what a command printed on stderr, is about `subject` and states the facts.

    A fact stands after the subject as a word of its own: 4 is not found in 48.
    """
    message = UserError(re.split(r"(?m)^cirkd: ", text)[-1])
    assert message.subject == str(subject), text
    said = str(message)[len(message.subject) :]
    for fact in map(str, facts):
        before = r"(?<!\w)" if fact[0].isalnum() else ""
        after = r"(?!\w)" if fact[-1].isalnum() else ""
        assert re.search(before + re.escape(fact) + after, said), f"{fact!r} is not in {text!r}"
