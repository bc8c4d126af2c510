"""`torchrun -m cirkd_ray train`: all ranks train, the first alone speaks and writes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml

from cirkd_ray.config import RunSpec
from cirkd_ray.config.spec import ClusterSpec
from cirkd_ray.train.local import led_by_first_rank, rank_device, run_local
from cirkd_ray.train.opening import open_directory
from cirkd_ray.train.rundir import RunDirectory
from tests.distributed.gloo import run_ranks
from tests.paths import REPO
from tests.tinyrun import figures, tiny_baseline, tiny_tree

STEPS = {"steps": 2, "log_every": 1, "validate_every": 2, "checkpoint_every": 2}


def one_of_two(path: str) -> int:
    directory = RunDirectory(path)
    return int(run_local(directory.spec(), directory)["workers"])


def test_two_ranks_train_the_teacher_and_then_the_student(tmp_path: Path) -> None:
    teacher, recipe = tmp_path / "teacher.yaml", tmp_path / "recipe.yaml"
    teacher.write_text(yaml.safe_dump(tiny_tree(name="teacher", train=STEPS, optim={"lr": 0.01})))
    losses = {"kd": {"kind": "kd"}}
    tree = tiny_tree(teacher={"train": str(teacher)}, distill={"losses": losses}, train=STEPS)
    recipe.write_text(yaml.safe_dump(tree))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "cirkd_ray", "train", str(recipe), "--out", str(out), "--name", "run"],
        env={**os.environ, "PYTHONPATH": str(REPO), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tiny -> ") == 1
    assert done.stderr.count("step 2/2") == 2  # once the teacher, once the student
    (taught,) = [RunDirectory(path.parent) for path in (out / "teachers").glob("*/run.yaml")]
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {"run", "teachers"}
    for directory in (taught, RunDirectory(out / "run")):
        result = directory.read_result()
        assert result is not None
        assert result["workers"] == 2
    again = RunDirectory(tmp_path / "again")
    open_directory(again, taught.spec(), resume=True)
    assert run_ranks(one_of_two, 2, tmp_path, str(again.path)) == [2, 2]
    assert figures(again) == figures(taught)


def test_each_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert rank_device("auto") == torch.device("cuda")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert rank_device("auto") == torch.device("cuda", 3)
    assert rank_device("cpu") == torch.device("cpu")


def led(world_size: int) -> list[str]:
    """What a rank does while the first one takes longer than a collective may."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "x", "RANK": str(dist.get_rank()), "LOCAL_RANK": "0"}
    dist.destroy_process_group()
    os.environ |= {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    done: list[str] = []

    def run(runs: Sequence[tuple[RunSpec, RunDirectory]], folder: Path) -> list[dict[str, object]]:
        done.append(" ".join(directory.path.name for _, directory in runs) + f" in {folder.name}")
        return [{} for _ in runs]

    real = dist.init_process_group

    def short(backend: str, timeout: timedelta) -> None:
        assert timeout > timedelta(seconds=ClusterSpec().storage_timeout)  # one rank may wait for storage
        real(backend, timeout=timedelta(seconds=3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "init_process_group", short)
        with led_by_first_rank(ClusterSpec(device="cpu"), run) as lead:
            if lead is not None:
                time.sleep(8)  # waiting for another job's teacher
                lead([(tiny_baseline(), RunDirectory(name)) for name in "xy"], Path("x"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # for `run_ranks` to end
    return done


def test_ranks_wait_for_the_first_as_long_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    assert run_ranks(led, 2, tmp_path, 2) == [["x y in x"], ["x y in x"]]
