"""Reading weights files without running code that they may hold."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cirkd_ray.errors import WeightsError

StateDict = dict[str, Tensor]

_NESTED = ("state_dict", "model", "model_state_dict", "model_state", "student", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "student.")


_NUMPY_ROOMS = ("core", "_core")  # before and since NumPy 2
_PATH_ROOMS = ("pathlib", "pathlib._local")  # before and in Python 3.13


def _harmless() -> list[Any]:
    """Types of the counters, scores and options that stand beside tensors: making one runs no code.

    Those that torch fills by no method of theirs are read as what it does fill: a dictionary, a list. Arrays
    of objects and of structures are not among them: a forged type would let bytes pass for objects.
    """
    makers: tuple[Any, ...] = (np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0])
    renamed = [(make, f"numpy.{room}.multiarray.{make.__name__}") for make in makers for room in _NUMPY_ROOMS]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSUMm"}
    kinds = (("", PurePosixPath), ("Posix", PurePosixPath), ("Windows", PureWindowsPath))
    renamed += [
        (path, f"{room}.{pure}{kind}Path")
        for room in _PATH_ROOMS
        for pure in ("", "Pure")
        for kind, path in kinds
    ]
    renamed += [(_dictionary, "collections.defaultdict"), (_list, "collections.deque")]
    plain = [argparse.Namespace, SimpleNamespace, date, datetime, time, timedelta, timezone]
    builtin = [set, frozenset, list, dict, tuple, int, float, str, bool, bytes, bytearray, range, slice]
    return [*renamed, np.ndarray, np.dtype, *dtypes, *plain, *builtin, complex, Decimal, Fraction, UUID]


def _dictionary(*factory: Any) -> dict[Any, Any]:
    """In place of an empty `defaultdict`, which is filled afterwards."""
    return {}


def _list(items: Iterable[Any] = (), longest: int | None = None) -> list[Any]:
    """In place of a `deque`, which is filled afterwards."""
    return list(items)


_HARMLESS = _harmless()
_SAID = {
    "numpy.dtypes.ObjectDType": "a NumPy array of objects",
    "numpy.dtypes.VoidDType": "a NumPy array of structures",
}


def read_state(path: str | Path, values: bool = True) -> tuple[StateDict, tuple[str, ...]]:
    """The tensors of a `.safetensors` file or of a PyTorch file, on the CPU, and what is beside them.

    Without `values`, names and shapes alone count: of a safetensors file the header is read, a PyTorch file
    is mapped into memory (one in the format before PyTorch 1.6 is read whole).

    A PyTorch file is read with `weights_only=True`: tensors and plain containers, beside them numbers, times,
    paths and options, which are not used. Where the tensors are nested (`state_dict`, `model`, ...), the
    inner mapping is returned; prefixes that wrappers and training frameworks give to every entry are taken
    off.

    Returns:
        The tensors by name, and the names of entries of the same mapping that are no tensors.

    Raises:
        WeightsError: there is no such file, it is truncated, it is no weights file, or it holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            names = list(file.keys())
            if values:
                return strip_prefixes({name: file.get_tensor(name) for name in names}), ()
            shapes = {name: file.get_slice(name).get_shape() for name in names}
            return strip_prefixes({name: torch.empty(s, device="meta") for name, s in shapes.items()}), ()
    state, others = tensors_of(_read_torch(path, values), path)
    return strip_prefixes(state), others


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: truncated or not a safetensors file ({error})") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty where it has none."""
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


def _read_torch(path: Path, values: bool) -> Any:
    """The object of a PyTorch file, refusing everything but tensors and plain containers."""
    reason, zipped, warned = "", False, list[warnings.WarningMessage]()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            zipped = zipfile.is_zipfile(path)
            with torch.serialization.safe_globals(_HARMLESS):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and not values)
    except pickle.UnpicklingError as error:
        what = _foreign(str(error), [str(warning.message) for warning in warned] if zipped else [])
        if what is not None:
            raise WeightsError(
                f"{path}: {what}; loading that could run any code: refused.\nWhere you trust its source, "
                "save only the tensors: torch.save(model.state_dict(), NEW_PATH)"
            ) from None
    except (RuntimeError, OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), "")
        reason = f" ({line[:120]})" if line else ""
    except (EOFError, LookupError, struct.error, TypeError, AttributeError, ArithmeticError):
        pass  # of the unpickler; what they say is not of the file
    raise WeightsError(f"{path}: truncated or not a PyTorch file{reason}")


def _foreign(error: str, warned: Sequence[str]) -> str | None:
    """What a file holds besides tensors that torch's reader refuses; None where it is no such file."""
    named = re.search(r"GLOBAL ([\w.]+\w)|got <class '([\w.]+)'>", error)
    if named is not None:
        name = named[1] or named[2]
        return f"holds Python objects besides tensors ({_SAID.get(name, name)})"
    protocol = re.search(r"pickle protocol (\d+)", " ".join(warned))
    if protocol is not None and "Unsupported operand" in error:
        return f"is pickled with protocol {protocol[1]}, whose parts cannot be told from code"
    return "holds Python objects besides tensors" if "unrecognized function" in error else None


def tensors_of(loaded: Any, source: str | Path) -> tuple[StateDict, tuple[str, ...]]:
    """The mapping from names to tensors in a loaded object, at most two levels down.

    A nested one goes before tensors beside it, which then are counters and the like.

    Returns:
        Its tensors, and the names of its entries that are no tensors.

    Raises:
        WeightsError: there is none.
    """
    found = _innermost(loaded, levels=2)
    if found is None:
        raise WeightsError(f"{source}: holds no mapping from names to tensors")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    return tensors, tuple(str(name) for name in found if str(name) not in tensors)


def _innermost(loaded: Any, levels: int) -> Mapping[Any, Any] | None:
    """The first mapping that holds tensors, as deep as it lies within the known names."""
    if not isinstance(loaded, Mapping):
        return None
    inner = (_innermost(loaded.get(key), levels - 1) for key in _NESTED if levels)
    holds_tensors = any(isinstance(value, Tensor) for value in loaded.values())
    return next((mapping for mapping in inner if mapping is not None), loaded if holds_tensors else None)


def strip_prefixes(state: Mapping[str, Tensor]) -> StateDict:
    """Names without the prefixes that wrappers add to every entry."""
    names = dict(state)
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            if names and all(name.startswith(prefix) for name in names):
                names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names
