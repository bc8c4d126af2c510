"""What a sweep keeps on the disk, and whether it fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from cirkd_ray.cluster import space_on_disk
from cirkd_ray.cluster.donors import hold, release, release_all
from cirkd_ray.cluster.space_on_disk import check_disk, checkpoints
from cirkd_ray.config import RunSpec
from cirkd_ray.errors import ConfigError
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.disk import checkpoint_bytes
from cirkd_ray.train.dry_run import DryRun
from cirkd_ray.train.local import run_local
from cirkd_ray.train.rundir import RunDirectory
from tests.errors import refuses
from tests.tinyrun import tiny_baseline


def checkpoint(trials: Path, trial: str, generation: int, step: int) -> Path:
    folder = trials / trial / f"g{generation}" / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_text(f"{trial} {step}")
    return folder


def left(trials: Path) -> set[str]:
    return {"/".join(path.parts[-3:]) for path in trials.glob("*/*/donors/*")}


def test_a_donors_checkpoint_outlives_its_run_and_nothing_else_does(tmp_path: Path) -> None:
    held = [hold(checkpoint(tmp_path, "a", 0, step)) for step in (2, 4, 6, 8)]
    for path in (tmp_path / "a" / "g0" / "checkpoints").glob("*/*"):
        path.unlink()  # as its run prunes them
    assert (held[0] / "state.pt").read_text() == "a 2"
    release(tmp_path, {"a": (0, 6)}, [Path("a/g0/donors/step_00000002")])  # of which one is pointed to
    assert left(tmp_path) == {"g0/donors/step_00000002", "g0/donors/step_00000008"}
    hold(checkpoint(tmp_path, "a", 1, 3))
    release(tmp_path, {"a": (1, 3)}, [tmp_path / "a" / "g1" / "donors" / "step_00000003"])
    assert left(tmp_path) == {"g1/donors/step_00000003"}
    assert not (tmp_path / "a" / "g0" / "checkpoints").exists()  # its trial has another donor's weights now
    assert (tmp_path / "a" / "g1" / "checkpoints").exists()
    release_all(tmp_path)
    assert not left(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"optim": {"name": "adamw"}}, {"train": {"ema": 0.9}}])
def test_a_checkpoint_is_as_large_as_was_said(tmp_path: Path, changes: dict[str, dict[str, object]]) -> None:
    train = {"steps": 1, "validate_every": 1, "checkpoint_every": 1, **changes.pop("train", {})}
    spec = tiny_baseline(train=train, **changes)
    said = estimate(spec)
    directory = RunDirectory(tmp_path / "run")
    directory.create(spec)
    run_local(spec, directory)
    (found,) = directory.checkpoints.glob("*/state.pt")
    assert said < found.stat().st_size < said + 300_000  # names, recipe, the file's own


def estimate(spec: RunSpec) -> int:
    dry = DryRun()
    dry.check(spec)
    assert dry.built is not None
    return checkpoint_bytes(spec, *dry.built)


def test_a_sweep_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"recipe": "tiny", "parameters": {"optim.lr": {"uniform": [0.1, 0.2]}}, "budget": {"trials": 4}}
    base = tiny_baseline(train={"keep_checkpoints": 2})

    def line(free: float, fresh: bool = False, **resources: str) -> str:
        monkeypatch.setattr(space_on_disk, "free_bytes", lambda folder: int(free))
        spec = SweepSpec.model_validate({**tree, "resources": resources})
        return check_disk(spec, base, 1_000_000, tmp_path, fresh)

    assert checkpoints(SweepSpec.model_validate(tree), base) == 4 * 3 + 3
    assert checkpoints(SweepSpec.model_validate({**tree, "scheduler": {"name": "pbt"}}), base) == 4 * 5 + 3
    assert "about 15 MB (15 of 1 MB)" in line(1e12)
    assert "1 TB are free" in line(1e12)
    assert "tight" not in line(30e6)
    assert "tight" in line(16e6)
    with refuses("resources.disk", ConfigError, "15 MB", "14 MB"):
        line(14e6)
    assert "do not fit" in line(14e6, disk="ignore")
    kept = checkpoint(tmp_path / "trials", "a", 0, 2) / "state.pt"
    kept.write_bytes(b"0" * 2_000_000)
    assert "13 MB more (15 of 1 MB, less 2 MB there)" in line(1e9)  # of a sweep that is resumed
    assert "15 MB" in line(1e9, fresh=True)
