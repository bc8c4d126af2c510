"""Storage that is full or away for a while: a run waits and ends as if undisturbed, or says what to do."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cirkd_ray import files
from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.errors import DataError, StorageError, TransientError
from cirkd_ray.files import append_line
from cirkd_ray.train.checkpoint import MANIFEST, complaint, list_checkpoints, read_checkpoint
from cirkd_ray.train.distributed import World
from cirkd_ray.train.heartbeat import Heartbeat
from cirkd_ray.train.loop import train
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.patience import Patience
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Interrupted, Stopped
from tests.errors import refuses
from tests.tinyrun import figures, tiny_baseline, tiny_tree

TRAIN = {"validate_every": 6, "checkpoint_every": 2}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Trouble(Listener):
    """Makes trouble at a step, and ends it when the run says that it waits.

    Args:
        step: after which line of metrics.
        begin, end: make trouble, end it.
    """

    def __init__(self, step: int, begin: Callable[[], Any], end: Callable[[], Any] = lambda: None) -> None:
        self.step, self.begin, self.end = step, begin, end
        self.said: list[str] = []

    def metrics(self, step: int, metrics: Any) -> None:
        if step == self.step and not self.said:
            self.begin()

    def message(self, text: str) -> None:
        if "waiting for it" in text:
            self.end()
        self.said.append(text)


def run_in(path: Path, spec: RunSpec, *listeners: Listener, **options: Any) -> RunDirectory:
    directory = RunDirectory(path)
    open_directory(directory, spec, resume=True)
    reporter = LocalReporter(directory.checkpoints, spec.train.keep_checkpoints)
    train(spec, World(), directory, reporter, listeners, **options)
    return directory


def patient(seconds: float, **changes: Any) -> RunSpec:
    return tiny_baseline(train=TRAIN, cluster={"storage_timeout": seconds}, **changes)


def same_files(one: RunDirectory, other: RunDirectory) -> None:
    assert figures(one) == figures(other)
    assert one.read_validation(6) is not None
    names = [path.name for path in list_checkpoints(other.checkpoints)]
    assert [path.name for path in list_checkpoints(one.checkpoints)] == names
    assert not [path for path in list_checkpoints(one.checkpoints) if complaint(path)]
    assert not list(one.path.rglob("*.partial"))
    mine, theirs = (read_checkpoint(list_checkpoints(run.checkpoints)[0])["student"] for run in (one, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    mine, theirs = (load_file(run.path / "student.safetensors") for run in (one, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_in(tmp_path_factory.mktemp("undisturbed") / "run", patient(0))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = mounted.stderr.strip() if mounted.returncode else ""
    except FileNotFoundError:
        reason = "no mount command"
    if reason:
        pytest.skip(f"a small disk cannot be mounted here ({reason})")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> None:
    """Take all the room but 100 kB: lines fit, a checkpoint does not."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 100_000)))


def test_a_disk_that_fills_is_waited_for_and_the_run_is_the_undisturbed_one(
    small_disk: Path, undisturbed: RunDirectory
) -> None:
    trouble = Trouble(2, lambda: fill(small_disk), (small_disk / "filler").unlink)
    run = run_in(small_disk / "run", patient(60), trouble)
    begun, over = trouble.said
    assert "No space left on device; 98.3 kB are free on its disk" in begun
    assert begun.startswith(f"WARNING: {run.path}: ")
    assert "waiting for it, up to 60 s (cluster.storage_timeout)" in begun
    assert over.startswith(f"{run.path}: goes on after")
    same_files(run, undisturbed)


def test_a_disk_that_stays_full_ends_the_run_which_is_resumed(
    small_disk: Path, undisturbed: RunDirectory
) -> None:
    trouble = Trouble(4, lambda: fill(small_disk))
    with refuses(small_disk / "run", StorageError, "No space left on device", "--resume") as error:
        run_in(small_disk / "run", patient(0.5), trouble)
    whole = [path for path in list_checkpoints(small_disk / "run/checkpoints") if not complaint(path)]
    assert [path.name for path in whole] == ["step_00000002"]
    assert f"the last whole checkpoint is {whole[0]}" in str(error.value)
    assert not list(small_disk.rglob("*.partial"))
    (small_disk / "filler").unlink()
    same_files(run_in(small_disk / "run", patient(0.5)), undisturbed)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_every_file_of_a_run_is_written_when_that_succeeds_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: RunDirectory
) -> None:
    """Each file and each line fails once."""
    failed = {"run"}  # what is written before a run begins is not waited for

    def failing(real: Callable[..., None], key: Callable[..., str]) -> Callable[..., None]:
        def act(*arguments: Any) -> None:
            if key(*arguments) not in failed:
                failed.add(key(*arguments))
                raise OSError(number, os.strerror(number))
            real(*arguments)

        return act

    directory = RunDirectory(tmp_path / "run")
    open_directory(directory, patient(60), resume=False)
    monkeypatch.setattr("cirkd_ray.train.patience.SLICE", 0.01)
    flushed = failing(files._flush, lambda path: path.name.split(".")[1 if path.name[0] == "." else 0])
    monkeypatch.setattr(files, "_flush", flushed)
    appended = failing(append_line, lambda path, line: f"{path.name} {line[:11]}")
    monkeypatch.setattr("cirkd_ray.train.rundir.append_line", appended)
    same_files(run_in(directory.path, patient(60)), undisturbed)
    assert {"state", "manifest", "student", "model", "result", 'metrics.jsonl {"step": 2,'} <= failed


def test_the_folder_that_vanished_with_its_disk_is_not_made_anew(tmp_path: Path) -> None:
    run, hidden = tmp_path / "run", tmp_path / "hidden"
    trouble = Trouble(2, lambda: run.rename(hidden))
    with refuses(run, StorageError, "is its disk mounted?"):
        run_in(run, patient(0.3), trouble)
    assert not run.exists()
    assert list_checkpoints(hidden / "checkpoints") == []


def test_a_stop_ends_the_wait_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        if path.name == MANIFEST:
            raise FULL

    asked: list[int] = []
    trouble = Trouble(2, lambda: monkeypatch.setattr(files, "_flush", full), lambda: asked.append(1))
    with pytest.raises(Interrupted, match="waiting for storage"):
        run_in(tmp_path / "run", patient(600), trouble, asked_to_stop=lambda: bool(asked))


def make_root(root: Path) -> RunSpec:
    """Noise with two classes, read by `folder`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for folder, shape, most in (("images", (40, 48, 3), 256), ("labels", (40, 48), 2)):
            (root / folder / split).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, most, shape, dtype=np.uint8)
                cv2.imwrite(str(root / folder / split / f"{index}.png"), pixels)
    (root / "dataset.yaml").write_text("classes: [a, b]\n")
    tree = tiny_tree(train=TRAIN, cluster={"storage_timeout": 60})
    tree["data"] = {"name": "folder", "root": str(root), "crop": [32, 32]}
    return from_tree(tree)


def with_cluster(spec: RunSpec, workers: int = 0, **changes: Any) -> RunSpec:
    data = spec.data.model_copy(update={"workers": workers})
    return spec.model_copy(update={"cluster": spec.cluster.model_copy(update=changes), "data": data})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_root_that_vanishes_is_waited_for(workers: int, tmp_path: Path) -> None:
    root, away, heartbeat = tmp_path / "root", tmp_path / "away", Heartbeat()
    spec = make_root(root)
    whole = run_in(tmp_path / "undisturbed", spec)
    trouble = Trouble(2, lambda: root.rename(away), lambda: away.rename(root))
    run = run_in(tmp_path / "run", with_cluster(spec, workers), trouble, heartbeat=heartbeat)
    assert [text.partition(":")[0] for text in trouble.said] == ["WARNING", "data.root"]
    assert f"data.root: {root} is gone or empty (is its disk mounted?); waiting for it" in trouble.said[0]
    same_files(run, whole)


def test_a_data_root_that_stays_away_is_named_with_the_last_checkpoint(tmp_path: Path) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    spec = make_root(root)
    whole = run_in(tmp_path / "undisturbed", spec)

    def unmount() -> None:
        root.rename(away)
        root.mkdir()  # the place where it was mounted

    checkpoint = tmp_path / "run/checkpoints/step_00000004"
    with refuses("data.root", StorageError, root, checkpoint, "--resume"):
        run_in(tmp_path / "run", with_cluster(spec, storage_timeout=0.5), Trouble(4, unmount))
    assert complaint(checkpoint) is None
    root.rmdir()
    away.rename(root)
    same_files(run_in(tmp_path / "run", spec), whole)


def test_a_stop_while_data_are_away_writes_a_checkpoint(tmp_path: Path) -> None:
    root, away, asked = tmp_path / "root", tmp_path / "away", [False]
    spec = make_root(root)
    trouble = Trouble(2, lambda: root.rename(away), lambda: asked.__setitem__(0, True))
    with pytest.raises(Stopped, match="stopped at step 2"):
        run_in(tmp_path / "run", spec, trouble, asked_to_stop=lambda: asked[0])
    assert complaint(tmp_path / "run/checkpoints/step_00000002") is None


def test_a_single_missing_file_is_named_at_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    spec = make_root(root)

    def lose() -> None:
        for index in range(12):
            if index != 5:
                (root / f"images/train/{index}.png").unlink()

    trouble = Trouble(2, lose)
    with pytest.raises(DataError, match=r"images/train/\d+\.png: cannot be read") as error:
        run_in(tmp_path / "run", spec, trouble)
    assert not isinstance(error.value, TransientError)
    assert not trouble.said


def test_waiting_is_told_once_counts_as_life_and_gives_up_together(tmp_path: Path) -> None:
    heartbeat, said, tries = Heartbeat(), list[str](), [0]
    directory = RunDirectory(tmp_path)
    patience = Patience(60, directory, said.append, heartbeat.alive)

    def act() -> int:
        tries[0] += 1
        if tries[0] < 3:
            raise FULL
        return tries[0]

    assert patience(act) == 3
    assert len(said) == 2
    assert heartbeat.beat.count >= 2
    with refuses(tmp_path, StorageError, "Permission denied"):  # nothing to wait for
        patience(lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(BrokenPipeError):
        patience(lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    at_once = Patience(0, directory, said.append)
    with refuses(tmp_path, StorageError, "No space left on device"):
        at_once(lambda: (_ for _ in ()).throw(FULL))
    with pytest.raises(TransientError, match="server"):  # Ray Train starts again
        at_once(lambda: (_ for _ in ()).throw(TransientError("server: away")))
    assert len(said) == 2


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("first\nsec")  # what a lost process left
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):  # after half of it, as on a disk that fills
            append_line(path, "third, which is long")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "first\nsecond\n"
    append_line(path, "x" * 10_000)
    path.write_bytes(path.read_bytes()[:-1])
    append_line(path, "last")
    assert path.read_text() == "first\nsecond\nlast\n"
    (tmp_path / "new").write_text("torn")
    append_line(tmp_path / "new", "whole")
    assert (tmp_path / "new").read_text() == "whole\n"


def test_readers_take_no_torn_line(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.append_metrics({"step": 1})
    with directory.metrics.open("a") as file:
        file.write('{"step": 2, "los')
    assert [row["step"] for row in directory.read_metrics()] == [1]
    directory.append_metrics({"step": 2})
    assert [row["step"] for row in directory.read_metrics()] == [1, 2]


def test_events_go_on_in_a_new_file_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from cirkd_ray.report.loggers.tensorboard import TensorBoardLogger
    from cirkd_ray.report.tensorboard import TensorBoard

    listener, real, failed = TensorBoardLogger(RunDirectory(tmp_path)), TensorBoard.flush, [False]
    listener.start(patient(0).to_dict(), 0)
    listener.metrics(1, {"loss/task": 1.0})

    def flush(self: TensorBoard) -> None:
        real(self)
        if not failed[0]:
            failed[0] = True
            raise FULL

    monkeypatch.setattr(TensorBoard, "flush", flush)
    Patience(60, RunDirectory(tmp_path), lambda text: None)(lambda: listener.metrics(2, {"loss/task": 0.5}))
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(point.step, point.value) for point in found.Scalars("loss/task")] == [(1, 1.0), (2, 0.5)]
    monkeypatch.setattr("cirkd_ray.train.disk.free_bytes", lambda folder: 1000)
    with pytest.raises(OSError, match="No space left"):
        listener.metrics(3, {"loss/task": 0.25})


def test_the_command_says_the_line_that_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cirkd_ray.cli import main

    def full(*arguments: Any) -> None:
        raise StorageError("/x: cannot be written;\nno checkpoint has been written")

    monkeypatch.setattr("cirkd_ray.train.local.run_together", full)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(patient(0).to_yaml())
    words = ["train", str(recipe), "--local", "--out", str(tmp_path / "runs"), "--name", "a"]
    assert main(words) == 2
    assert f"continue with: cirkd {' '.join(words)} --resume" in capsys.readouterr().err


def test_a_worker_that_stops_alone_ends_its_run_without_a_restart(tmp_path: Path) -> None:
    from cirkd_ray.cluster.train import StopOnUserError

    with pytest.raises(Interrupted):
        StopOnUserError(str(tmp_path)).after_exception(None, {1: Interrupted("stopped while waiting")})
    with pytest.raises(StorageError, match="full"):  # where failure.json could not be written
        StopOnUserError(str(tmp_path)).after_exception(None, {0: StorageError("/x: full")})
    StopOnUserError(str(tmp_path)).after_exception(None, {0: TransientError("/x: away")})
