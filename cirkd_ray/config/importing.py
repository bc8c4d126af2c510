"""Classes and functions of a user's own, by import path."""

from __future__ import annotations

import importlib
from typing import Any

from cirkd_ray.errors import ConfigError, UserError, first_line, nearest


def is_import_path(name: str) -> bool:
    """Whether a name is `package.module:NAME` or `package.module.NAME`: registered names have no dots."""
    return ":" in name or "." in name


def imported(path: str, where: str, what: str = "class") -> Any:
    """What is called `package.module:NAME` (or `package.module.NAME`).

    Args:
        path: that.
        where: the setting, for messages.
        what: is looked for, e.g. "factory".

    Raises:
        ConfigError: there is no such module or name, or importing it fails.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if not module_name or not name:
        raise ConfigError(f"{where}: {path!r} is not of the form package.module:{what}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{where}: cannot import {module_name!r} ({error}); is it on PYTHONPATH?") from None
    except UserError:
        raise
    except Exception as error:
        what = f"importing {module_name!r}: {type(error).__name__}"
        raise ConfigError(f"{where}: {what}: {first_line(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no {what} {name!r}{nearest(name, public)}")
    return found
