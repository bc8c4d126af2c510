"""Signals: the first writes a checkpoint and names the line that resumes, the second ends; equal figures."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from cirkd_ray.cli import main
from cirkd_ray.config import RunSpec
from cirkd_ray.train import stop
from cirkd_ray.train.checkpoint import last_step, list_checkpoints
from cirkd_ray.train.distributed import World
from cirkd_ray.train.heartbeat import Heartbeat, Phase
from cirkd_ray.train.loop import train
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.reporter import Listener, LocalReporter
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.stop import Stopped, continued, stoppable
from tests.distributed.gloo import run_ranks
from tests.paths import REPO
from tests.tinyrun import figures, tiny_baseline, tiny_distillation


class AskedAt:
    """Is asked to stop before a step: the n-th question."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def run_in(
    spec: RunSpec,
    path: Path,
    asked: Callable[[], bool] = lambda: False,
    world: World | None = None,
    listeners: Sequence[Listener] = (),
) -> RunDirectory:
    """The run in `path`, begun or resumed; a stop is expected."""
    directory, world = RunDirectory(path), world or World()
    if world.is_main:
        open_directory(directory, spec, resume=True)
    reporter = LocalReporter(directory.checkpoints, spec.train.keep_checkpoints)
    with contextlib.suppress(Stopped):
        train(spec, world, directory, reporter, listeners, asked_to_stop=asked)
    return directory


@pytest.fixture(scope="module")
def spec(teacher: Path) -> RunSpec:
    return tiny_distillation(
        teacher,
        train={"ema": 0.9, "log_every": 4, "validate_every": 6, "checkpoint_every": 4},
        optim={"name": "adamw", "clip_grad_norm": 1.0},
    )


@pytest.fixture(scope="module")
def undisturbed(spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_in(spec, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize(
    "steps", [0, 1, 4, 5]
)  # before the first; within a window; at a checkpoint; after it
def test_a_stopped_run_keeps_its_last_step_and_ends_as_an_undisturbed_one(
    steps: int, spec: RunSpec, undisturbed: RunDirectory, tmp_path: Path
) -> None:
    directory = run_in(spec, tmp_path / "run", AskedAt(steps))
    assert directory.read_result() is None
    assert last_step(directory.checkpoints) == steps
    assert [row["step"] for row in directory.read_metrics()] == [4] * (steps >= 4)
    run_in(spec, directory.path)
    assert figures(directory) == figures(undisturbed)
    ours, theirs = directory.read_result() or {}, undisturbed.read_result() or {}
    assert [(ours[kind]["step"], ours[kind]["miou"]) for kind in ("best", "last")] == [
        (theirs[kind]["step"], theirs[kind]["miou"]) for kind in ("best", "last")
    ]
    states = [
        torch.load(list_checkpoints(each.checkpoints)[0] / "state.pt", weights_only=True)["student"]
        for each in (directory, undisturbed)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def on_a_rank(path: str, number: int | None) -> int:
    """A tiny run in which rank 1 alone is asked, at its n-th question."""
    world = World.current()
    asked = AskedAt(number) if number is not None and world.rank == 1 else (lambda: False)
    spec = tiny_baseline(train={"steps": 8, "log_every": 8, "validate_every": 8, "checkpoint_every": 8})
    return last_step(run_in(spec, Path(path), asked, world).checkpoints)


@pytest.mark.timeout(900)
def test_ranks_stop_at_the_same_step_and_keep_what_each_had_summed(tmp_path: Path) -> None:
    for place in ("whole", "stopped"):
        spec = tiny_baseline(train={"steps": 8, "log_every": 8, "validate_every": 8, "checkpoint_every": 8})
        open_directory(RunDirectory(tmp_path / place), spec, resume=True)
    assert run_ranks(on_a_rank, 2, tmp_path, str(tmp_path / "whole"), None) == [8, 8]
    first, second = run_ranks(on_a_rank, 2, tmp_path, str(tmp_path / "stopped"), 1)
    assert first == second
    assert 1 <= first < 8
    assert run_ranks(on_a_rank, 2, tmp_path, str(tmp_path / "stopped"), None) == [8, 8]
    rows = [figures(RunDirectory(tmp_path / place)) for place in ("stopped", "whole")]
    losses = [{k: v for k, v in each[0].items() if k.startswith("loss/")} for each in rows]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("words", "again", "line"),
    [
        ("train r --set a.b=1", "--name n --resume", "train r --set a.b=1 --name n --resume"),
        ("train --resume r", "--name n --resume", "train --resume r"),
        ("train --resume=r", "--name n --resume", "train --resume=r"),
        ("train r --resume", "--name n --resume", "train r --name n --resume"),
        ("train --resume --local r", "--name n --resume", "train --local r --name n --resume"),
        ("train r --name n --resume", "--name n --resume", "train r --name n --resume"),
        ("train r --name=n", "--name n --resume", "train r --name=n --resume"),
        ("tune s --fresh", "--name s", "tune s --name s"),
        ("compare a b --name n", "--name n", "compare a b --name n"),
    ],
)
def test_the_line_that_continues(words: str, again: str, line: str) -> None:
    assert continued(words.split(), again.split()) == line.split()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_local_run_at_a_checkpoint_and_the_line_it_prints_resumes_it(
    number: int, code: int, tmp_path: Path
) -> None:
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text(
        tiny_baseline(
            train={"steps": 5000, "log_every": 1, "validate_every": 5000, "checkpoint_every": 5000},
            data={"workers": 1},
        ).to_yaml()
    )
    words = ["train", str(recipe), "--local", "--out", str(tmp_path)]
    temporary = Path(tempfile.mkdtemp(prefix="cirkd-"))  # short: sockets are made in it
    environment = {**os.environ, "PYTHONPATH": str(REPO), "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cirkd_ray", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.glob("*/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as terminals and schedulers do: the loader's processes hear it, too
    errors = process.communicate(timeout=240)[1]
    assert process.returncode == code, errors
    (directory,) = [RunDirectory(path.parent) for path in tmp_path.glob("*/metrics.jsonl")]
    step, last = last_step(directory.checkpoints), errors.splitlines()[-1]
    again = f"cirkd {shlex.join(words)} --name {directory.path.name} --resume"
    assert last == f"cirkd: stopped at step {step}; continue with: {again}"
    assert list(temporary.iterdir()) == []
    temporary.rmdir()
    assert step >= 1


def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    removed: list[str] = []
    monkeypatch.setattr(stop.os, "_exit", leave)
    monkeypatch.setattr(stop.shutil, "rmtree", lambda path, **options: removed.append(path))
    monkeypatch.setattr(stop, "TEMPORARY", {"ours"})
    monkeypatch.setattr(stop, "_ONE_REQUEST", {False: 0.0, True: 0.0})
    with stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
        with pytest.raises(Left, match="130"):
            os.kill(os.getpid(), signal.SIGINT)
    assert removed[0] == "ours"


def signalled_twice() -> None:
    with stoppable("--name", "n"):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise Stopped("stopped at step 3")


def test_what_comes_twice_at_once_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_ONE_REQUEST", {False: 60.0, True: 60.0})
    with pytest.raises(Stopped) as caught:
        signalled_twice()
    assert caught.value.code == 130
    assert caught.value.line(["train", "r"]) == "stopped at step 3; continue with: cirkd train r --name n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_evaluation_says_what_was_done(
    number: int,
    code: int,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cirkd_ray.evaluate.job import Evaluator

    def interrupted(self: Evaluator, on_images: Callable[[int], None]) -> None:
        on_images(2)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)
    before = signal.getsignal(number)
    assert main(["eval", str(teacher), "--out", str(tmp_path / "out")]) == code
    assert "cirkd: stopped after 2 of 6 images; nothing is kept" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert not (tmp_path / "out").exists()


def test_a_command_leaves_when_all_is_written_without_taking_the_interpreter_down() -> None:
    code = (
        "import atexit, sys, cirkd_ray.cli as cli\n"
        "class Late:\n"
        "    def __del__(self): sys.stderr.write('taken down')\n"
        "late = Late()\n"
        "atexit.register(print, 'closed')\n"
        "cli.main = lambda: print('result') or 3\n"
        "cli.run_and_leave()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPO, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "result\nclosed\n", "")


@pytest.mark.parametrize("saves", [True, False])
def test_a_stop_during_a_validation_leaves_it_due_and_ends_within_a_batch(
    saves: bool, teacher: Path, tmp_path: Path
) -> None:
    train = {"steps": 8, "log_every": 4, "validate_every": 4, "checkpoint_every": 4 if saves else 8}
    spec = tiny_distillation(teacher, train=train)
    whole = run_in(spec, tmp_path / "whole")
    seen: list[tuple[str, int]] = []

    class Follows(Listener):
        def underway(self, what: str, done: int, total: int) -> None:
            seen.append((what, done))

    def asked() -> bool:
        return ("validating at step 4", 2) in seen

    directory = run_in(spec, tmp_path / "stopped", asked, listeners=[Follows()])
    assert seen[-1] == ("validating at step 4", 2)
    assert last_step(directory.checkpoints) == 4
    assert directory.read_metrics() == []
    run_in(spec, directory.path)
    assert figures(directory) == figures(whole)


def test_a_stop_while_the_teacher_is_scored_ends_within_a_batch(teacher: Path, tmp_path: Path) -> None:
    spec = tiny_distillation(teacher, data={"seed": 5})
    seen: list[int] = []

    class Follows(Listener):
        def underway(self, what: str, done: int, total: int) -> None:
            seen.append(done)

    directory = run_in(spec, tmp_path / "run", lambda: 1 in seen, listeners=[Follows()])
    assert seen == [0, 1]
    assert last_step(directory.checkpoints) == 0


def asked_while_validating(path: str, spec: RunSpec) -> int:
    """A run of which rank 1 alone is asked, after its first image of the validation."""
    world, images = World.current(), 0

    def asked() -> bool:
        return world.rank == 1 and images > 0

    class Counts(Heartbeat):
        def note(self, phase: Phase, step: int = 0, images_: int = 0) -> None:
            nonlocal images
            images = images_ if phase == "validation" else images

    directory = RunDirectory(Path(path))
    reporter = LocalReporter(directory.checkpoints, spec.train.keep_checkpoints)
    try:
        train(spec, world, directory, reporter, asked_to_stop=asked, heartbeat=Counts())
    except Stopped:
        return images
    return -1


@pytest.mark.timeout(900)
def test_ranks_leave_a_validation_together_whose_images_are_not_shared_evenly(tmp_path: Path) -> None:
    train = {"steps": 4, "log_every": 4, "validate_every": 4, "checkpoint_every": 4}
    spec = tiny_baseline(train=train, data={"val_images": 5})
    directory = RunDirectory(tmp_path / "run")
    open_directory(directory, spec, resume=True)
    found = run_ranks(asked_while_validating, 2, tmp_path, str(directory.path), spec)
    assert max(found) < 3
    assert min(found) > 0
    assert last_step(directory.checkpoints) == 4
