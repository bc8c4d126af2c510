"""Weights files with harmless metadata, and prefixes that frameworks give to every name."""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cirkd_ray.errors import WeightsError
from cirkd_ray.weights.files import read_state, strip_prefixes

STATE = {"conv.weight": torch.ones(2), "conv.bias": torch.zeros(2)}
HARMLESS = [
    np.float64(0.5),
    np.float32(0.5),
    np.float16(0.5),
    np.int64(3),
    np.bool_(True),
    np.complex64(1),
    np.str_("camvid"),
    np.arange(3.0),
    np.zeros(2, np.uint8),
    argparse.Namespace(lr=0.1, out=Path("runs"), best=np.float64(1)),
    datetime.datetime(2020, 1, 1),
    datetime.timedelta(1),
]


class Code:
    """Unpickling it would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("false",)


@pytest.mark.parametrize("extra", HARMLESS, ids=lambda extra: type(extra).__name__)
@pytest.mark.parametrize("zipped", [False, True])
def test_harmless_metadata_is_read(tmp_path: Path, extra: Any, zipped: bool) -> None:
    torch.save(
        {"state_dict": STATE, "best": extra}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    assert read_state(tmp_path / "w.pth")[0].keys() == STATE.keys()


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    torch.save({"w": STATE["conv.weight"], "best": np.float64(1)}, tmp_path / "new.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    content = (tmp_path / "new.pth").read_bytes()
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    (tmp_path / "old.pth").write_bytes(old)
    assert list(read_state(tmp_path / "old.pth")[0]) == ["w"]


@pytest.mark.parametrize("extra", [Code(), np.array([Code()], dtype=object)], ids=["code", "objects"])
def test_code_is_still_refused(tmp_path: Path, extra: Any) -> None:
    torch.save({"state_dict": STATE, "best": extra}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: "):
        read_state(tmp_path / "w.pth")


PREFIXES = ["model.", "student.", "module.", "module.student.", "model.module.", "student.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off(prefix: str) -> None:
    assert strip_prefixes({prefix + name: value for name, value in STATE.items()}).keys() == STATE.keys()
    mixed = {prefix + "a": STATE["conv.bias"], "b": STATE["conv.bias"]}
    assert strip_prefixes(mixed).keys() == mixed.keys()
