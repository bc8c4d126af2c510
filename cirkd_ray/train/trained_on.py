"""The data set that a trained network belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cirkd_ray.config import DataSpec
from cirkd_ray.config.composition import apply_overrides, overrides_from
from cirkd_ray.errors import ConfigError
from cirkd_ray.remote.copies import address
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.weights.card import run_of


def data_settings(
    model: str | None, data: str | None = None, root: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """`name`, `root`, `val_split` and the data set's own settings: those of a run, changed.

    Args:
        model: a run's folder, `model.json` or a weights file, if any.
        data: another data set.
        root: another folder.
        overrides: `data.NAME=VALUE` of `--set`.

    Raises:
        ConfigError: no data set is known, or a setting is not one of the data set.
    """
    known = run_data(model) if model else {}
    if data is not None and data != known.get("name"):
        known = {"name": data}
    if root is not None:
        known["root"] = root
    changes = overrides_from(overrides)
    for path in changes:
        if not path.startswith("data."):
            raise ConfigError(f"--set {path}: only settings of the data set (data.NAME) apply here")
    settings: dict[str, Any] = apply_overrides({"data": known}, changes)["data"]
    if settings.get("name"):
        return settings
    place = model and address(model)
    if model and not Path(model).expanduser().exists():
        raise ConfigError(f"{place}: nothing there; give a run's folder, a model.json or a weights file")
    raise ConfigError(f"{place}: does not say which data it belongs to; give --data NAME and --root DIR")


def run_data(model: str) -> dict[str, Any]:
    """The data set of a run, or of one that holds the file `model`, without what concerns training alone.

    Of other models, what their card says.
    """
    folder = run_of(model)
    if folder is not None:
        spec = RunDirectory(folder).spec().data
        assert isinstance(spec, DataSpec)
        return {"name": spec.name, "root": spec.root, "val_split": spec.val_split, **spec.settings}
    path = Path(model).expanduser()
    card = path if path.suffix == ".json" else (path if path.is_dir() else path.parent) / "model.json"
    try:
        name = json.loads(card.read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"name": name} if isinstance(name, str) else {}
