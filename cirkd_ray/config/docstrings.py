"""What the docstring of a class says: its text, and the meaning of its arguments."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$", re.M)
_ARGUMENT = re.compile(r"^    ([a-z_0-9]+(?:, [a-z_0-9]+)*): ?", re.M)


def text_of(cls: type) -> str:
    """The docstring before its sections; empty where the class has none of its own."""
    return _SECTION.split(inspect.cleandoc(vars(cls).get("__doc__") or ""))[0].strip()


def arguments_of(cls: type) -> dict[str, str]:
    """Argument -> its meaning in one line, from the sections `Args` and (of models) `Attributes`."""
    _, *parts = _SECTION.split(inspect.cleandoc(vars(cls).get("__doc__") or ""))
    found: dict[str, str] = {}
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        if title not in ("Args", "Attributes"):
            continue
        _, *items = _ARGUMENT.split(body)
        for names, meaning in zip(items[::2], items[1::2], strict=True):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found
