"""A run's directory: the recipe it runs, its metrics line by line, its result and its exported student."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cirkd_ray import __version__
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.errors import CheckpointError, ConfigError
from cirkd_ray.files import write_text

MODEL_FILES = ("student.safetensors", "model.json")
"""The exported model."""
PACKAGES = ("torch", "torchvision", "ray", "timm", "numpy", "opencv-python-headless")


class RunDirectory:
    """Paths and small files of one run; the README's "A run" says what each holds."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.recipe = self.path / "run.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"

    def create(self, spec: RunSpec) -> None:
        """Make the directory and write `run.yaml`.

        Raises:
            ConfigError: the directory exists and holds a run already, or cannot be made.
        """
        if self.recipe.exists():
            raise ConfigError(
                f"{self.path}: holds a run already; choose another --name, or continue it with --resume"
            )
        if self.result.exists() or any(self.checkpoints.glob("step_*")):
            raise ConfigError(
                f"{self.path}: holds a run whose run.yaml is gone; put it back, or choose another --name"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tree = {**spec.to_dict(), "_environment": environment()}
            write_text(self.recipe, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --out"
            ) from None

    def spec(self) -> RunSpec:
        """The recipe that the run was started with.

        Raises:
            ConfigError: there is no run here.
        """
        if not self.recipe.is_file():
            raise ConfigError(f"{self.path}: no run here (run.yaml is missing); give the folder of a run")
        tree = read_yaml(self.recipe)
        tree.pop("_environment", None)
        return from_tree(tree)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(metrics), allow_nan=True) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every complete line of `metrics.jsonl`."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the line that a killed process did not finish
                continue
        return rows

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, which a resumed run will write again."""
        rows = [row for row in self.read_metrics() if row.get("step", 0) <= step]
        if self.metrics.is_file():
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`; its existence says that the run is finished."""
        write_text(self.result, json.dumps(dict(result), indent=2) + "\n")

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.result.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
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
