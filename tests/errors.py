"""How tests ask for errors of the user's making: by what they are about, not by their wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cirkd_ray.errors import UserError


@contextmanager
def refuses(
    subject: str | Path, kind: type[UserError] = UserError
) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The block raises an error of that kind about `subject`, of one or two lines.

    After `with refuses("optim.lr") as error: ...`, `error.value` is the error.
    """
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.subject == str(subject), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2, str(caught.value)
