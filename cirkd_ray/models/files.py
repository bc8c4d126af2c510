"""Reading weights files without running code that they may hold."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cirkd_ray.errors import WeightsError

StateDict = dict[str, Tensor]

_NESTED = ("state_dict", "model", "model_state_dict", "model_state", "student", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: str | Path) -> StateDict:
    """The tensors of a `.safetensors` file or of a PyTorch file, on the CPU.

    A PyTorch file is read with `weights_only=True`: tensors and plain containers. Where the tensors are
    nested (`state_dict`, `model`, ...), the inner mapping is returned; prefixes that
    `DistributedDataParallel` and `torch.compile` add are taken off.

    Raises:
        WeightsError: there is no such file, it is truncated, it is no weights file, or it holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else tensors_of(_read_torch(path), path)
    return strip_prefixes(state)


def _read_safetensors(path: Path) -> StateDict:
    """All tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is truncated or not a safetensors file ({error})") from None


def _read_torch(path: Path) -> Any:
    """The object of a PyTorch file, refusing everything but tensors and plain containers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is whether it can be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        if wanted or "unrecognized function" in str(error):
            raise WeightsError(_refusal(path, wanted[1] if wanted else "")) from None
        raise WeightsError(f"{path} is truncated or not a PyTorch file") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is truncated or not a PyTorch file ({line[:120]})") from None


def _refusal(path: Path, wanted: str) -> str:
    """Why a pickle is refused, naming what it wanted to call where PyTorch says so."""
    what = f" ({wanted})" if wanted else ""
    return (
        f"{path} holds Python objects besides tensors{what}; loading them could run any code: refused.\n"
        "Where you trust its source, save only the tensors: torch.save(model.state_dict(), NEW_PATH)"
    )


def tensors_of(loaded: Any, source: str | Path) -> StateDict:
    """The mapping from names to tensors in a loaded object, at most two levels down.

    Raises:
        WeightsError: there is none.
    """
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        tensors = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
        inner = [loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
    raise WeightsError(f"{source} holds no mapping from names to tensors")


def strip_prefixes(state: Mapping[str, Tensor]) -> StateDict:
    """Names without the prefixes that wrappers add to every entry."""
    names = dict(state)
    for _ in range(len(_PREFIXES)):
        for prefix in _PREFIXES:
            if names and all(name.startswith(prefix) for name in names):
                names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty where it has none."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is truncated or not a safetensors file ({error})") from None
