"""Runs in a bucket, without Ray: trained, resumed on another machine, through an outage, used from there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cirkd_ray.cli import main
from cirkd_ray.config import from_tree
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.loggers import chosen_loggers
from cirkd_ray.train.local import run_local
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import Runner
from cirkd_ray.train.stages import run_recipe
from tests.buckets import KEYS, Machines, Server, s3_server
from tests.tinyrun import KillAt, Killed, figures, tiny_baseline, tiny_distillation, tiny_tree


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with s3_server("shelf") as found:
        yield found


@pytest.fixture
def machines(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    for key, value in {"AWS_ENDPOINT_URL": server.endpoint, **KEYS}.items():
        monkeypatch.setenv(key, value)
    found = Machines(tmp_path / "machines", monkeypatch)
    found.on("one")
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = RunDirectory(tmp_path_factory.mktemp("undisturbed") / "run")
    spec = tiny_baseline(train={"log_every": 1})
    directory.create(spec)
    run_local(spec, directory)
    return directory


def test_a_run_is_lost_with_its_machine_and_goes_on_on_another(
    machines: Machines, server: Server, undisturbed: RunDirectory
) -> None:
    spec = tiny_baseline(train={"log_every": 1}, cluster={"upload_every": 0.2})
    out = "s3://shelf/lost"

    def train(*more: Listener) -> Runner:
        return lambda spec, run: run_local(spec, run, [RunLog(run), *chosen_loggers(spec, run), *more])

    with pytest.raises(Killed):
        run_recipe(spec, RunDirectory(copy_of(out) / "a"), copy_of(out), train(KillAt(5)))
    assert "lost/a/checkpoints/step_00000004/manifest.json" in server.keys("shelf")
    machines.on("two")
    directory = RunDirectory(copy_of(out) / "a")
    assert not directory.path.exists()
    run_recipe(spec, directory, copy_of(out), train(), resume=True)
    assert figures(directory) == figures(undisturbed)
    assert "continuing at step 4" in (directory.path / "log.txt").read_text()
    keys = server.keys("shelf")
    kept = {key.split("/")[3] for key in keys if key.startswith("lost/a/checkpoints/step")}
    assert kept == {path.name for path in directory.checkpoints.glob("step_*")}, (
        "others are deleted there, too"
    )
    for name in (
        "run.yaml",
        "metrics.jsonl",
        "result.json",
        "student.safetensors",
        "model.json",
        "data.json",
    ):
        assert server.read("shelf", f"lost/a/{name}") == (directory.path / name).read_bytes(), name
    assert any(key.startswith("lost/a/tensorboard/events") for key in keys)


def outage(machines: Machines, server: Server, seconds: float) -> tuple[list[str], RunDirectory]:
    """A run whose storage is away for so long in its middle."""
    out = copy_of(f"s3://shelf/outage-{seconds:g}")
    directory, said = RunDirectory(out / "a"), list[str]()
    spec = tiny_baseline(train={"steps": 2000}, cluster={"upload_every": 0.2})
    away = threading.Event()

    def break_storage() -> None:
        while not directory.metrics.is_file():
            time.sleep(0.02)
        server.stop()
        away.set()
        before, until = len(directory.read_metrics()), time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.05)
        gone_on.append(len(directory.read_metrics()) - before)
        server.start()

    class UntilBack(KillAt):
        """Ends the run when storage is back and has been used again."""

        def metrics(self, step: int, metrics: object) -> None:
            if gone_on and any("reached again" in line for line in said):
                raise Killed

    gone_on: list[int] = []
    breaker = threading.Thread(target=break_storage)
    breaker.start()
    with pytest.raises(Killed):
        run_recipe(spec, directory, out, lambda s, d: run_local(s, d, [UntilBack(0)]), say=said.append)
    breaker.join()
    assert gone_on[0] > 0, "the work goes on"
    return said, directory


def test_a_run_works_on_while_its_bucket_is_away(machines: Machines, server: Server) -> None:
    said, directory = outage(machines, server, 3.0)
    assert any("the work goes on" in line for line in said)
    key = f"{directory.path.parent.name}/a/metrics.jsonl"
    assert (
        server.client().get_object(Bucket="shelf", Key=key)["Body"].read() == directory.metrics.read_bytes()
    )


@pytest.mark.slow
def test_a_run_works_on_through_a_minute_without_its_bucket(machines: Machines, server: Server) -> None:
    _, directory = outage(machines, server, 60.0)
    key = f"{directory.path.parent.name}/a/metrics.jsonl"
    assert (
        server.client().get_object(Bucket="shelf", Key=key)["Body"].read() == directory.metrics.read_bytes()
    )


def test_the_command_trains_in_a_bucket_and_resumes_there(
    machines: Machines, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        json.dumps(tiny_tree(train={"steps": 2, "validate_every": 2}, cluster={"workers": "auto"}))
    )
    train = ["train", str(recipe), "--local", "--out", "s3://shelf/runs"]
    assert main(train) == 0
    assert "s3://shelf/runs/tiny-" in capsys.readouterr().out
    (name,) = {key.split("/")[1] for key in server.keys("shelf") if key.startswith("runs/tiny-")}
    assert main([*train[:2], "--local", "--out", "s3://shelf/runs", "--resume"]) == 2
    assert "no unfinished run of tiny in s3://shelf/runs" in capsys.readouterr().err
    machines.on("two")
    assert main(["train", "--local", "--out", "s3://shelf/runs", "--resume", name]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*train, "--name", name]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*train, "--out", "s3://nix/runs"]) == 2
    assert capsys.readouterr().err.startswith("cirkd: s3://nix/runs/tiny-")


@pytest.fixture(scope="module")
def shelved(server: Server, undisturbed: RunDirectory) -> str:
    """A finished run in the bucket, uploaded by other means."""
    for path in undisturbed.path.rglob("*"):
        if path.is_file():
            key = f"done/a/{path.relative_to(undisturbed.path)}"
            server.client().upload_file(str(path), "shelf", key)
    return "s3://shelf/done/a"


def test_a_run_in_a_bucket_is_evaluated_there(
    machines: Machines, server: Server, shelved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", shelved, "--bootstrap", "0"]) == 0
    assert "report: s3://shelf/done/a/eval/shapes-val/" in capsys.readouterr().out.replace("\n", "")
    report = json.loads(server.read("shelf", "done/a/eval/shapes-val/evaluation.json"))
    assert shelved in json.dumps(report)
    assert str(machines.folder) not in json.dumps(report)
    assert not list(machines.folder.rglob("checkpoints")), "checkpoints are not fetched"
    assert main(["eval", "s3://shelf/done/nix"]) == 2
    assert "s3://shelf/done/nix" in capsys.readouterr().err
    assert main(["status", shelved]) == 0
    assert "finished" in capsys.readouterr().out


def test_predictions_and_exports_go_to_a_bucket(
    machines: Machines, server: Server, shelved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--split", "val", "--limit", "2", "--write", "ids"]
    assert main(["predict", f"{shelved}/student.safetensors", *words, "--out", "s3://shelf/pictures"]) == 0
    assert "s3://shelf/pictures/ids" in capsys.readouterr().out
    assert sum(key.startswith("pictures/ids/") for key in server.keys("shelf")) == 2
    export = ["export", shelved, "--to", "torch-export", "--size", "32", "64", "--static"]
    assert main(export) == 0, capsys.readouterr().err
    assert "s3://shelf/done/a/student.pt2" in capsys.readouterr().out
    assert "done/a/student.pt2" in server.keys("shelf")


def test_a_teacher_in_a_bucket(machines: Machines, server: Server, shelved: str, tmp_path: Path) -> None:
    length = {"steps": 2, "validate_every": 2}
    tree = tiny_distillation(Path("elsewhere"), train=length).to_dict()
    spec = from_tree({**tree, "teacher": {"weights": shelved}})
    directory = RunDirectory(tmp_path / "run")
    directory.create(spec)
    result = run_local(spec, directory)
    assert result["teacher"]["miou"] > 0
    assert directory.spec().teacher.weights == shelved


def test_no_secret_of_a_url_is_stored_or_shown(
    machines: Machines, server: Server, shelved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys in the URL, a signature, and the names of both nowhere but in requests."""
    for key in KEYS:
        machines.monkeypatch.delenv(key)
    machines.monkeypatch.delenv("AWS_ENDPOINT_URL")
    machines.monkeypatch.setenv("CIRKD_ADDRESSES", "")
    host = server.endpoint.partition("://")[2]
    query = f"scheme=http&endpoint_override={host}&region=us-east-1"
    given, out = (f"s3://test:PLANTED-SECRET@shelf/{path}?{query}" for path in ("done/a", "secret"))
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        json.dumps(tiny_tree(train={"steps": 2, "validate_every": 2}, cluster={"workers": "auto"}))
    )
    argv = ["train", str(recipe), "--local", "--out", out, "--name", "a", "--set", f"model.weights={given}"]
    assert main(argv) == 0
    assert main([*argv, "--set", f"data.root={given}", "--set", f"train.nix={given}"]) == 2
    assert main(["train", "--local", "--out", out, "--resume", f"s3://a:PLANTED-SECRET@nix/b?{query}"]) == 2
    told = capsys.readouterr()
    assert "weights: s3://shelf/done/a\n" in (copy_of("s3://shelf/secret/a") / "run.yaml").read_text()
    kept = [path for path in machines.folder.rglob("*") if path.is_file()]
    assert any(path.name == "run.yaml" for path in kept)
    secret = b"PLANTED-SECRET"
    assert [path for path in kept if secret in path.read_bytes()] == []
    assert [key for key in server.keys("shelf") if secret in server.read("shelf", key)] == []
    assert secret.decode() not in told.out + told.err
    assert "s3://shelf/secret" in told.out
