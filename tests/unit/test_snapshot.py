"""Checkpoints written in the background: what they hold, when they are there, what a failure costs."""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from cirkd_ray.errors import CheckpointError
from cirkd_ray.train import checkpoint, snapshot, validation
from cirkd_ray.train.checkpoint import MANIFEST, STATE, complaint, list_checkpoints, write_checkpoint
from cirkd_ray.train.reporter import LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.snapshot import BackgroundWriter, HostCopy, Snapshot
from tests.tinyrun import figures, tiny_baseline
from tests.unit.test_engine_run import new_run


def test_a_copy_shares_no_memory_and_keeps_what_modules_say_of_themselves() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1).to(memory_format=torch.channels_last))
    state: dict[str, Any] = {
        "student": module.state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
        "average": None,
        "step": 3,
    }
    copied = HostCopy()(state)
    assert isinstance(copied["student"], OrderedDict)
    assert copied["student"]._metadata == state["student"]._metadata
    assert copied["optimizer"]["param_groups"] == [{"betas": (0.9, 0.99)}]
    before = copied["student"]["0.weight"].clone()
    assert copied["student"]["0.weight"].stride() == module[0].weight.stride()
    with torch.no_grad():
        module[0].weight.zero_()
    state["optimizer"]["state"][0]["step"] += 1
    assert torch.equal(copied["student"]["0.weight"], before)
    assert copied["optimizer"]["state"][0]["step"] == 3


def test_the_checksum_that_is_made_while_writing_is_the_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "step_00000001", {"step": 1, "x": torch.randn(70_000)})
    assert complaint(folder) is None
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["bytes"] == (folder / STATE).stat().st_size
    plain = io.BytesIO()
    torch.save({"step": 1, "x": torch.randn(70_000)}, plain)
    assert len(plain.getvalue()) == pytest.approx(manifest["bytes"], rel=0.01)


def test_a_checkpoint_of_this_process_is_not_read_again_before_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    real = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: reads.append(path) or real(path))
    reporter = LocalReporter(tmp_path, 2)
    for step in range(1, 5):
        reporter.report({}, Snapshot({"step": step, "x": torch.ones(500)}), last=False)
    reporter.settle()
    assert not reads
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000003"]
    (tmp_path / "step_00000004" / STATE).write_bytes(b"half")
    reporter.report({}, Snapshot({"step": 5, "x": torch.ones(500)}), last=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000005", "step_00000003"]


def test_one_is_written_at_a_time_and_its_error_is_raised_once() -> None:
    writer, gate, order = BackgroundWriter(), threading.Event(), []

    def first() -> None:
        assert gate.wait(60)
        order.append("first")
        raise CheckpointError("disk: full")

    begun = writer.start(first)
    assert not begun.done()
    gate.set()
    with pytest.raises(CheckpointError, match="disk"):
        writer.start(lambda: order.append("second"))
    writer.settle()
    assert order == ["first"]
    writer.start(lambda: order.append("third"))
    writer.settle()
    assert order == ["first", "third"]


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is held back until a validation has begun: a run that waited for it would never end."""
    validated, real, evaluate = threading.Event(), snapshot.write_checkpoint, validation.evaluate

    def held(folder: Path, state: dict[str, Any], *rest: Any) -> Path:
        assert state["step"] > 1 or validated.wait(60)
        return real(folder, state, *rest)

    def noticed(*args: Any, **kwargs: Any) -> Any:
        validated.set()
        return evaluate(*args, **kwargs)

    spec = tiny_baseline(train={"steps": 3, "checkpoint_every": 1, "validate_every": 1})
    monkeypatch.setattr(snapshot, "write_checkpoint", held)
    monkeypatch.setattr(validation, "evaluate", noticed)
    run = new_run(spec, tmp_path / "run")
    assert validated.is_set()
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step_00000003", "step_00000002"]
    waits = tiny_baseline(train=spec.train.model_dump(), cluster={"async_checkpoints": False})
    monkeypatch.setattr(snapshot, "write_checkpoint", real)
    assert figures(new_run(waits, tmp_path / "waits")) == figures(run)


def test_a_failure_while_a_checkpoint_is_written_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, real = threading.Event(), snapshot.write_checkpoint

    def held(folder: Path, state: dict[str, Any], *rest: Any) -> Path:
        assert failed.wait(60)
        return real(folder, state, *rest)

    def fails(*args: Any, **kwargs: Any) -> Any:
        failed.set()
        raise MemoryError("too many classes")

    monkeypatch.setattr(snapshot, "write_checkpoint", held)
    monkeypatch.setattr(validation, "evaluate", fails)
    spec = tiny_baseline(train={"steps": 3, "checkpoint_every": 2, "validate_every": 2})
    with pytest.raises(MemoryError):
        new_run(spec, tmp_path / "run")
    found = list_checkpoints(RunDirectory(tmp_path / "run").checkpoints)
    assert [complaint(path) for path in found] == [None]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *rest: Any) -> Path:
        raise CheckpointError(f"{folder}: the checkpoint could not be written (No space left on device)")

    monkeypatch.setattr(snapshot, "write_checkpoint", full)
    spec = tiny_baseline(train={"steps": 3, "checkpoint_every": 1, "validate_every": 3})
    with pytest.raises(CheckpointError, match="No space left"):
        new_run(spec, tmp_path / "run")


def test_a_checkpoint_that_could_not_be_written_ends_the_run_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next checkpoint, which may be hours away."""
    real = BackgroundWriter.start

    def full(folder: Path, *rest: Any) -> Path:
        raise CheckpointError(f"{folder}: the checkpoint could not be written (No space left on device)")

    def start(self: BackgroundWriter, call: Any) -> Any:
        pending = real(self, call)
        assert pending.exception(timeout=60) is not None
        return pending

    monkeypatch.setattr(snapshot, "write_checkpoint", full)
    monkeypatch.setattr(BackgroundWriter, "start", start)
    spec = tiny_baseline(train={"steps": 9, "checkpoint_every": 2, "validate_every": 9, "log_every": 1})
    with pytest.raises(CheckpointError, match="No space left"):
        new_run(spec, tmp_path / "run")
    assert [row["step"] for row in RunDirectory(tmp_path / "run").read_metrics()] == [1, 2]
