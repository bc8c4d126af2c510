"""The splits of a data set that a tool works on, those with holes included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cirkd_ray.config.composition import overrides_from
from cirkd_ray.config.registry import validate
from cirkd_ray.data import DATASETS, SegmentationDataset, build_dataset
from cirkd_ray.data.prepared import find_manifest
from cirkd_ray.errors import ConfigError, DataError, TransientError


def split_settings(name: str, given: Sequence[str]) -> dict[str, Any]:
    """All settings of a data set, with those given as `NAME=VALUE`.

    Raises:
        ConfigError: there is no such data set or setting, or the root is among them, which is an argument.
    """
    values = {key.removeprefix("data."): value for key, value in overrides_from(given).items()}
    if "root" in values:
        raise ConfigError(f"--set root: the folder or URL is the argument after the name: {name} ROOT")
    return validate(DATASETS.settings(name), values, "data").model_dump()


def build_splits(
    name: str,
    root: str | None,
    splits: Sequence[str],
    settings: dict[str, Any],
    failed: dict[str, DataError] | None = None,
    holes: bool = False,
) -> dict[str, SegmentationDataset]:
    """Splits of a data set by name.

    Args:
        name: the data set.
        root: its folder or URL.
        splits: their names.
        settings: of the data set.
        failed: takes the errors of splits that cannot be built. It implies `holes`.
        holes: build splits although files of theirs are missing.

    Raises:
        DataError: there is no root, a split cannot be built and there is no `failed`, or none can be built.
    """
    if root is None and DATASETS.get(name).needs_root:
        raise DataError(f"ROOT: the data set {name!r} needs the folder it lies in; give it after the name")
    holes = (holes or failed is not None) and "subset" in DATASETS.settings(name).model_fields
    if holes and (root is None or find_manifest(root) is None):
        settings = {**settings, "subset": True}
    built: dict[str, SegmentationDataset] = {}
    for split in splits:
        try:
            built[split] = build_dataset(name, split=split, root=root, **settings)
        except TransientError:
            raise
        except DataError as error:
            if failed is None:
                raise
            failed[split] = error
    if failed and not built:
        raise next(iter(failed.values()))
    return built
