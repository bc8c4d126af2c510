"""Every error of the user's making that the package raises begins with what it is about."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest

from cirkd_ray.errors import UserError
from tests.paths import REPO

PACKAGE = REPO / "cirkd_ray"
HOLE = "\0"  # an expression in braces
NAMED = rf"[\w.,/\-'\[\]={HOLE}]+"
"""A setting (`optim.lr`), a file, an option or an argument (`--data`, `MODEL`): no sentence, no blank."""

SUBJECT = re.compile(rf"(loss |--[\w-]+ |{HOLE}, )?{NAMED}(, --[\w-]+|, split {HOLE}|, {HOLE}_tap)?")
"""One name; with an option's value, `loss KIND`, or two options that go together."""

PASSED_ON = {"error"}
"""Names of variables that hold another error of the user's making, whose subject stays."""


def kinds() -> set[str]:
    """Names of all error classes of the user's making."""
    found, rest = set(), [UserError]
    for path in PACKAGE.rglob("*.py"):
        if re.search(r"class \w+\(\w*Error\)", path.read_text()) and path.name != "__main__.py":
            importlib.import_module(".".join(path.relative_to(REPO).with_suffix("").parts))
    while rest:
        found.add(rest[-1].__name__)
        rest += rest.pop().__subclasses__()
    return found


def raised() -> Iterator[tuple[str, ast.expr]]:
    """Where such an error is made, and its message."""
    names = kinds()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{path.relative_to(REPO)}:{node.lineno}", node.args[0]


def text_of(message: ast.expr) -> str | None:
    """A literal or an f-string with a hole for every expression; None for what is made elsewhere."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in message.values)
    return None


def subject_of(text: str) -> str:
    """The text before the first ": " of the first line."""
    return UserError(text).subject


def passes_on(message: ast.expr) -> bool:
    """Whether a message begins with that of another error of the user's making."""
    first = message.values[0] if isinstance(message, ast.JoinedStr) else None
    return isinstance(first, ast.FormattedValue) and ast.unparse(first.value) in PASSED_ON


def test_every_error_of_the_user_begins_with_its_subject() -> None:
    texts = [(where, text_of(message)) for where, message in raised() if not passes_on(message)]
    assert sum(text is not None for _, text in texts) > 200
    wrong = [f"{where}: {text}" for where, text in texts if text and not SUBJECT.fullmatch(subject_of(text))]
    assert not wrong, "\n".join(wrong).replace(HOLE, "{}")


@pytest.mark.parametrize(
    "text",
    ["nothing at \0; expected: a file", "the network scores 2: too few", "no colon", "\0 is wrong: \0"],
)
def test_a_sentence_is_no_subject(text: str) -> None:
    assert not SUBJECT.fullmatch(subject_of(text))


@pytest.mark.parametrize("text", ["optim.lr: \0", "--data \0: \0", "\0: \0", "loss \0: \0", "--a, --b: c"])
def test_names_are_subjects(text: str) -> None:
    assert SUBJECT.fullmatch(subject_of(text))


def test_messages_made_elsewhere_are_few_and_known() -> None:
    made = sorted({where.rpartition(":")[0] for where, message in raised() if text_of(message) is None})
    assert made == [
        "cirkd_ray/config/registry.py",  # one `PATH: ...` for each setting
        "cirkd_ray/data/folder.py",
        "cirkd_ray/data/loader.py",
        "cirkd_ray/data_tools/get.py",
        "cirkd_ray/losses/base.py",
        "cirkd_ray/sweep/space_file.py",  # one `FILE:LINE: PATH: ...` for each setting
        "cirkd_ray/weights/fit.py",
    ]
