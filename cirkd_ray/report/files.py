"""Pictures and texts on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cirkd_ray.engine.rundir import write_atomically
from cirkd_ray.errors import ConfigError


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture (H x W x 3) or a map (H x W) in the format of the path's suffix; folders are made.

    Raises:
        ConfigError: the disk is full or not writable.
    """
    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    whole, encoded = cv2.imencode(path.suffix, stored)
    if not whole:
        raise ValueError(f"{path}: a picture of shape {picture.shape} cannot be encoded")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise _refused(path, error) from None


def require_writable(folder: Path) -> None:
    """Look, before long work, whether its results can be written to a folder that may have to be made.

    Raises:
        ConfigError: they cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{folder}: cannot be written ({there} is a file); choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be written ({there} is read-only); choose another folder")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a JSON file, or None where there is no such file.

    Raises:
        ConfigError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is damaged; delete it, or the folder of its run, and go on")
    return found


def save_text(path: Path, text: str) -> None:
    """Write a text in one step; folders are made.

    Raises:
        ConfigError: the disk is full or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}); choose another folder")
