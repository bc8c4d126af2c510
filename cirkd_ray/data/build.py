"""A split of a data set from its name and settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirkd_ray.config.registry import settings_model, validate
from cirkd_ray.data.base import DATASETS, SegmentationDataset
from cirkd_ray.data.prepared import find_manifest, open_prepared
from cirkd_ray.errors import ConfigError, DataError, nearest
from cirkd_ray.remote.address import shown


def build_dataset(
    name: str, *, split: str, root: str | Path | None = None, **settings: Any
) -> SegmentationDataset:
    """Build one split of the data set `name`, from its original files or its prepared form.

    Raises:
        ConfigError: an unknown name, split or setting.
        DataError: the root is not given, or does not hold what the data set expects.
    """
    cls = DATASETS.get(name)
    if cls.splits and split not in cls.splits:
        raise ConfigError(f"data: data set {name!r} has no split {split!r}{nearest(split, cls.splits)}")
    if cls.needs_root:
        if root is None:
            raise DataError(
                f"data.root: the data set {name!r} needs the folder it lies in; --set data.root=PATH"
            )
        manifest = find_manifest(root)
        if manifest is not None:
            values = validate(settings_model(cls), settings, "data")
            built = open_prepared(root, manifest, name, split, values.model_dump())
            return _checkable(built, name, root, {})
    built = DATASETS.build(name, {"split": split, "root": root}, settings, "data")
    return _checkable(built, name, root, settings) if cls.needs_root else built


def _checkable(
    data: SegmentationDataset, name: str, root: str | Path | None, settings: Mapping[str, Any]
) -> SegmentationDataset:
    """The data set, which now knows how it is checked."""
    changed = [f"--set {key}={value}" for key, value in settings.items() if key != "subset" and value]
    data.check_command = " ".join(["cirkd data check", name, shlex.quote(shown(str(root))), *changed])
    return data
