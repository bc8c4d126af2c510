"""Reading weights files without running code that they may hold."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cirkd_ray.errors import WeightsError

StateDict = dict[str, Tensor]

_NESTED = ("state_dict", "model", "model_state_dict", "model_state", "student", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "student.")


_NUMPY_ROOMS = ("core", "_core")  # before and since NumPy 2


def _harmless() -> list[Any]:
    """Types of the counters, scores and options that stand beside tensors: making one runs no code."""
    makers: tuple[Any, ...] = (np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0])
    renamed = [(make, f"numpy.{room}.multiarray.{make.__name__}") for make in makers for room in _NUMPY_ROOMS]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDGSU"}
    plain = [argparse.Namespace, SimpleNamespace, date, datetime, timedelta]
    return [*renamed, np.ndarray, np.dtype, *dtypes, *plain, PosixPath, PurePosixPath, PureWindowsPath]


_HARMLESS = _harmless()


def read_state(path: str | Path, values: bool = True) -> tuple[StateDict, tuple[str, ...]]:
    """The tensors of a `.safetensors` file or of a PyTorch file, on the CPU, and what is beside them.

    Without `values`, names and shapes alone count: of a safetensors file the header is read, a PyTorch file
    is mapped into memory (one in the format before PyTorch 1.6 is read whole).

    A PyTorch file is read with `weights_only=True`: tensors and plain containers, beside them numbers, times,
    paths and options. Where the tensors are nested (`state_dict`, `model`, ...), the inner mapping is
    returned; prefixes that wrappers and training frameworks give to every entry are taken off.

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
    reason = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is whether it can be read
            mapped = not values and path.open("rb").read(4) == b"PK\x03\x04"
            with torch.serialization.safe_globals(_HARMLESS):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        if wanted or "unrecognized function" in str(error):
            named = f" ({wanted[1]})" if wanted else ""
            raise WeightsError(
                f"{path}: holds Python objects besides tensors{named}; loading them could run any code: "
                "refused.\nWhere you trust its source, save only the tensors: "
                "torch.save(model.state_dict(), NEW_PATH)"
            ) from None
    except (RuntimeError, OSError, ValueError) as error:
        line = next(iter(str(error).splitlines()), "")
        reason = f" ({line[:120]})" if line else ""
    except (EOFError, LookupError, struct.error):  # of the unpickler; what they say is not of the file
        pass
    raise WeightsError(f"{path}: truncated or not a PyTorch file{reason}")


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
