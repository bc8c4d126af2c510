"""A run's directory: the recipe it runs, its metrics line by line, its result and its exported student."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cirkd_ray import __version__
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.errors import CheckpointError, ConfigError
from cirkd_ray.files import append_line, plain_json, write_text
from cirkd_ray.remote.copies import address

MODEL_FILES = ("student.safetensors", "model.json")
"""The exported model."""
JSON_LOG = "CIRKD_JSON_LOG"
"""Environment variable: runs that begin keep their log as JSON lines, too."""
_OVERVIEWS = ("sweep.yaml", "comparison.yaml")
"""Files of a folder that holds the runs of a sweep or comparison."""
_GENERATION = re.compile(r"g\d+")
PACKAGES = ("torch", "torchvision", "ray", "timm", "numpy", "opencv-python-headless")


class Labels(NamedTuple):
    """What a run is called where the figures of many are kept.

    Attributes:
        run: the name of its folder, or that of the sweep or comparison that it belongs to.
        trial: what it is called in there; "" for a run of its own.
    """

    run: str
    trial: str

    @property
    def name(self) -> str:
        """Both."""
        return f"{self.run}/{self.trial}" if self.trial else self.run


class RunDirectory:
    """Paths and small files of one run; the README's "A run" says what each holds."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.recipe = self.path / "run.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.validations = self.path / "validations.jsonl"
        self.result = self.path / "result.json"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.json_log = self.path / "log.jsonl"

    def create(self, spec: RunSpec) -> None:
        """Make the directory and write `run.yaml`.

        Raises:
            ConfigError: the directory exists and holds a run already, or cannot be made.
        """
        if self.begun():
            place, kept = address(self.path), self.recipe.exists()
            held = "a run already" if kept else "a run whose run.yaml is gone"
            do = "or continue it with --resume" if kept else "or put that file back"
            raise ConfigError(f"{place}: holds {held}; choose another --name, {do}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tree = movable_tree(spec, self.path)
            tree["_environment"] |= environment()
            write_text(self.recipe, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
            if os.environ.get(JSON_LOG) or "json" in spec.train.loggers:
                self.json_log.touch()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out"
            ) from None

    def begun(self) -> bool:
        """Whether anything was trained here; a start that failed leaves a recipe alone."""
        return self.metrics.exists() or self.result.exists() or any(self.checkpoints.glob("step_*"))

    def spec(self) -> RunSpec:
        """The recipe that the run was started with.

        Raises:
            ConfigError: there is no run here.
        """
        if not self.recipe.is_file():
            raise ConfigError(f"{address(self.path)}: no run here (run.yaml is missing); give its folder")
        tree = read_yaml(self.recipe)
        return moved_spec(tree, self.path)

    @cached_property
    def overview(self) -> Path | None:
        """The folder of the sweep or comparison that the run belongs to."""
        above = self.path.parents[:3]
        return next((at for at in above if any((at / name).is_file() for name in _OVERVIEWS)), None)

    @cached_property
    def labels(self) -> Labels:
        """The names of this run."""
        if self.overview is None:
            return Labels(self.path.name, "")
        _, *parts = self.path.relative_to(self.overview).parts  # `trials`, `controls`, `runs`, ...
        return Labels(self.overview.name, "/".join(p for p in parts if not _GENERATION.fullmatch(p)))

    def log(self, text: str, rank: int | None = None, step: int | None = None, **figures: float) -> None:
        """Add a line to `log.txt`, and to `log.jsonl` where that was begun.

        Args:
            text: the line.
            rank: of the worker that says it; None: the run's driver or controller.
            step: that it is about, where that is known.
            figures: of the step.
        """
        now = datetime.now().astimezone()
        append_line(self.path / "log.txt", f"{now:%Y-%m-%d %H:%M:%S} {text}")
        if self.json_log.is_file():
            row = {"time": now.isoformat(timespec="milliseconds"), **self.labels._asdict()}
            row |= {"level": "warning" if text.startswith("WARNING") else "info", "rank": rank, "step": step}
            append_line(
                self.json_log,
                _line({**row, "message": text.strip(), **({"figures": figures} if figures else {})}),
            )

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        append_line(self.metrics, _line(metrics))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every complete line of `metrics.jsonl`; NaN for the numbers that were not finite."""
        return _read_lines(self.metrics)

    def append_validation(self, step: int, best: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        """Add one line to `validations.jsonl`: what the checkpoint of that step, written before, lacks."""
        append_line(self.validations, _line({"step": step, "best": best, "last": last}))

    def read_validation(self, step: int) -> dict[str, Any] | None:
        """`best` and `last` as they were after the validation of that step; None if it was not finished."""
        found = [row for row in _read_lines(self.validations) if row["step"] == step]
        return {key: found[-1][key] for key in ("best", "last")} if found else None

    def rewind(self, step: int, validated: bool = True) -> None:
        """Drop the lines after `step`, and without `validated` its own, which a resumed run writes again."""
        kept = step if validated else step - 1
        for path in (self.metrics, self.validations):
            if path.is_file():
                rows = [row for row in _read_lines(path) if row.get("step", 0) <= kept]
                write_text(path, "".join(f"{_line(row)}\n" for row in rows))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`; its existence says that the run is finished."""
        write_text(self.result, json.dumps(plain_json(result), indent=2) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.result.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
            for key in ("best", "last"):
                found[key] = with_nan(found.get(key, {}))
        except ValueError:
            raise CheckpointError(
                f"{self.result}: is damaged; delete it and continue the run with --resume"
            ) from None
        return found

    def read_finished(self) -> dict[str, Any] | None:
        """`read_result` for those who go on to use the exported model.

        Raises:
            CheckpointError: the run is finished, but a file of its model is gone.
        """
        found = self.read_result()
        gone = self.missing_model_file() if found is not None else None
        if gone is not None:
            raise CheckpointError(
                f"{self.path}: is finished, but {gone} is gone; delete result.json and train again "
                "with --resume to export the last checkpoint's student"
            )
        return found

    def missing_model_file(self) -> str | None:
        """The first file of the exported model that is not there."""
        return next((name for name in MODEL_FILES if not (self.path / name).is_file()), None)


def movable_tree(spec: RunSpec, folder: Path) -> dict[str, Any]:
    """A recipe to be written into `folder`, which may be moved or copied with the teacher beside it."""
    tree = spec.to_dict()
    if spec.teacher is not None and spec.teacher.weights is not None:
        tree["teacher"]["weights"] = relative(spec.teacher.weights, folder)
    return {**tree, "_environment": {"folder": str(folder)}}


def moved_spec(tree: dict[str, Any], folder: Path) -> RunSpec:
    """The recipe that `movable_tree` wrote into a folder that lies in `folder` now.

    The teacher is the one beside the folder as it lies now; where there is none, that of the former place.
    """
    before = (tree.get("_environment") or {}).get("folder", folder)
    teacher = tree.get("teacher") or {}
    place = teacher.get("weights")
    if place and "://" not in place and not Path(place).is_absolute():
        here, there = (os.path.normpath(Path(one) / place) for one in (folder, before))
        found = there if Path(there).exists() and not Path(here).exists() else here
        tree = {**tree, "teacher": {**teacher, "weights": found}}
    return from_tree({key: value for key, value in tree.items() if key != "_environment"})


def relative(place: str, folder: Path) -> str:
    """A path that lies in the same folder of runs as `folder`, as seen from there; others as they are."""
    path = Path(place)
    near = [parent for parent in path.parents[:2] if parent.name]
    shared = path.is_absolute() and any(parent in (folder, *folder.parents) for parent in near)
    return os.path.relpath(path, folder) if shared else place


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain_json(row), allow_nan=False)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete line; numbers that were not finite, and so are null there, are NaN."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # the line that a killed process did not finish
            rows.append(with_nan(json.loads(line)))
    return rows


def with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """What JSON writes as null is NaN again, also in the mappings inside."""
    whole = {key: with_nan(value) if isinstance(value, dict) else value for key, value in row.items()}
    return {key: math.nan if value is None else value for key, value in whole.items()}


def environment() -> dict[str, Any]:
    """What a run depends on besides its recipe: versions and the commit of the working directory, if any."""
    versions = {"cirkd_ray": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    for folder in (Path(__file__).parent, Path.cwd()):
        try:
            found = subprocess.run(
                ["git", "-C", str(folder), *describe], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if found.returncode == 0:
            return found.stdout.strip()
    return None
