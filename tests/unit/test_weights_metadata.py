"""Weights files with harmless metadata, and prefixes that frameworks give to every name."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import os
import uuid
import zoneinfo
from pathlib import Path, PurePosixPath, PureWindowsPath
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
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    datetime.timezone(datetime.timedelta(hours=2)),
    datetime.time(12),
    collections.defaultdict(list, {"losses": [0.5, np.float64(1)]}),
    collections.defaultdict(float),
    collections.deque([1.0, 2.0], maxlen=3),
    collections.Counter("aab"),
    {1, 2},
    frozenset({"road", "car"}),
    decimal.Decimal("0.9"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=7),
    PurePosixPath("runs/a"),
    PureWindowsPath("C:/runs"),
    np.datetime64("2020-01-01T10:00:00"),
    np.timedelta64(3, "s"),
    np.arange("2020-01", "2020-04", dtype="datetime64[M]"),
    1j,
    range(3),
    b"\x00\xff",
    bytearray(b"ab"),
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


class Colour(enum.Enum):
    RED = 1


Score = collections.namedtuple("Score", "miou")

FOREIGN = [
    (Code(), "posix.system"),
    (np.array([Code()], dtype=object), "posix.system|NumPy array of objects"),
    (np.array([None], dtype=object), "NumPy array of objects"),
    (np.array(["a", 1, None], dtype=object), "NumPy array of objects"),
    (np.zeros(2, dtype=[("miou", "f4"), ("step", "i4")]), "NumPy array of structures"),
    (Colour.RED, "Colour"),
    (Score(0.5), "Score"),
    (collections.ChainMap({}), "ChainMap"),
    (zoneinfo.ZoneInfo("UTC"), "getattr|ZoneInfo"),
    (collections.deque([Code()]), "posix.system"),
]


@pytest.mark.parametrize(("extra", "named"), FOREIGN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("zipped", [False, True])
def test_code_is_still_refused_and_named(tmp_path: Path, extra: Any, named: str, zipped: bool) -> None:
    torch.save(
        {"state_dict": STATE, "best": extra}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(WeightsError, match=rf"w\.pth: holds Python objects besides tensors \(.*({named})"):
        read_state(tmp_path / "w.pth")


def test_another_pickle_protocol_is_said(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "best": {1}}, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(WeightsError, match=r"w\.pth: is pickled with protocol 4"):
        read_state(tmp_path / "w.pth")


def test_paths_of_other_pythons_are_read(tmp_path: Path) -> None:
    torch.save({"w": STATE["conv.weight"], "out": Path("runs")}, tmp_path / "new.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    content = (tmp_path / "new.pth").read_bytes()
    for module, name in ((b"pathlib._local", b"PosixPath"), (b"pathlib", b"WindowsPath")):
        other = content.replace(b"cpathlib\nPosixPath", b"c%s\n%s" % (module, name))
        assert other != content
        (tmp_path / "old.pth").write_bytes(other)
        assert list(read_state(tmp_path / "old.pth")[0]) == ["w"]


PREFIXES = ["model.", "student.", "module.", "module.student.", "model.module.", "student.model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off(prefix: str) -> None:
    assert strip_prefixes({prefix + name: value for name, value in STATE.items()}).keys() == STATE.keys()
    mixed = {prefix + "a": STATE["conv.bias"], "b": STATE["conv.bias"]}
    assert strip_prefixes(mixed).keys() == mixed.keys()
