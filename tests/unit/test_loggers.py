"""What keeps the figures of runs: MLflow on a folder, W&B offline, one's own, one that is away."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from cirkd_ray.cli import main
from cirkd_ray.errors import ConfigError
from cirkd_ray.evaluate import ConfusionMatrix
from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.report.loggers import LOGGERS, Logger, chosen_loggers, require_loggers
from cirkd_ray.report.loggers import background as behind
from cirkd_ray.report.loggers.background import InBackground, without_secrets
from cirkd_ray.report.loggers.base import plain_figures
from cirkd_ray.report.loggers.tensorboard import TensorBoardLogger
from cirkd_ray.train.local import run_local
from cirkd_ray.train.reporter import Ending
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.types import ClassSet
from tests.errors import refuses, require_error
from tests.tinyrun import KillAt, Killed, tiny_baseline

SPEC = {"name": "kd", "train": {"steps": 4}, "optim": {"lr": 0.1}}
SECRET = "planted-secret-4711"


def tell(logger: Any, steps: tuple[int, ...] = (2, 4), how: Ending = "finished") -> None:
    """The calls of a run."""
    logger.start(SPEC, 0)
    for step in steps:
        logger.metrics(step, {"step": step, "loss/total": 1.0 / step, "lr": float("nan"), "miou": 0.1 * step})
    if how == "finished":
        logger.finish({"steps": 4, "best": {"miou": 0.4}, "last": {"miou": 0.4}})
    logger.close(how)


def holds(folder: Path, text: str) -> list[Path]:
    """The files that contain it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A folder of a run, with secrets in the environment."""
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    directory = RunDirectory(tmp_path / "runs" / "first")
    directory.create(tiny_baseline())
    directory.write_result({"steps": 4})
    return directory


def test_mlflow_keeps_a_run_and_goes_on_with_it(run: RunDirectory, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    tell(LOGGERS.get("mlflow")(run), (2,), "stopped")
    client = MlflowClient(tracking_uri=(tmp_path / "runs/mlruns").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name == "cirkd"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "KILLED"
    assert found.data.params == {"name": "kd", "train.steps": "4", "optim.lr": "0.1"}
    assert found.data.tags["cirkd.run"] == "first"

    tell(LOGGERS.get("mlflow")(RunDirectory(run.path)), (4,))
    (again,) = client.search_runs([experiment.experiment_id])
    assert (again.info.run_id, again.info.status) == (found.info.run_id, "FINISHED")
    values = client.get_metric_history(again.info.run_id, "loss/total")
    assert [(each.step, each.value) for each in values] == [(2, 0.5), (4, 0.25)]
    assert again.data.metrics["best/miou"] == 0.4
    assert "lr" not in again.data.metrics
    assert {each.path for each in client.list_artifacts(again.info.run_id)} == {"run.yaml", "result.json"}
    assert not holds(tmp_path, SECRET)

    (run.path / "loggers/mlflow").write_text("0" * 32)  # of a server that is no more
    tell(LOGGERS.get("mlflow")(run))
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_mlflow_keeps_a_run_behind_a_url_where_it_is_uploaded(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIRKD_SCRATCH", str(tmp_path))
    place = RunDirectory(copy_of("s3://bucket/runs/first"))
    shutil.copytree(run.path, place.path)
    tell(LOGGERS.get("mlflow")(place))
    assert (place.path / "mlruns").is_dir()
    assert not (place.path.parent / "mlruns").exists()


def test_mlflow_gets_the_settings_though_a_request_fails(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    logger, log_batch, fails = LOGGERS.get("mlflow")(run), MlflowClient.log_batch, [True]

    def away(self: Any, *given: Any, **named: Any) -> None:
        if fails and fails.pop():
            raise ConnectionError("away")
        log_batch(self, *given, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", away)
    with pytest.raises(ConnectionError):
        logger.start(SPEC, 0)
    logger.start(SPEC, 0)
    client = MlflowClient(tracking_uri=(tmp_path / "runs/mlruns").as_uri())
    experiment = client.get_experiment_by_name("cirkd")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["optim.lr"] == "0.1"
    assert (run.path / "loggers/mlflow").read_text().strip() == found.info.run_id


def test_mlflow_groups_the_runs_of_a_sweep(run: RunDirectory) -> None:
    from mlflow.tracking import MlflowClient

    sweep = run.path.parent / "sweep"
    trial = RunDirectory(sweep / "trials/t1/g0")
    trial.create(tiny_baseline())
    (sweep / "sweep.yaml").write_text("")
    trial.write_result({})
    tell(LOGGERS.get("mlflow")(RunDirectory(trial.path)))
    client = MlflowClient(tracking_uri=(run.path.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("sweep")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "sweep/t1"


def test_wandb_offline_keeps_a_run_and_goes_on_with_it(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["cirkd", "--password", SECRET])
    tell(LOGGERS.get("wandb")(run), (2,), "stopped")
    known = (run.path / "loggers/wandb").read_text().strip()
    time.sleep(1.1)  # its folders are named by the second
    tell(LOGGERS.get("wandb")(RunDirectory(run.path)), (4,))
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{known}.wandb"] * 2
    assert b"loss/total" in files[0].read_bytes()
    assert b"optim.lr" in files[0].read_bytes()
    deadline = time.monotonic() + 60  # on a busy machine W&B's own process writes a moment later
    while b"best/miou" not in files[1].read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not holds(tmp_path, SECRET)


class Kept(Logger):
    """One of a user's own."""

    calls: list[Any] = []  # noqa: RUF012
    fails = 0

    def start(self, spec: dict[str, Any], step: int) -> None:
        self.calls.append(("start", step))

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if Kept.fails:
            Kept.fails -= 1
            raise ConnectionError(f"https://me:{SECRET}@host: refused\nand more")
        self.calls.append(("metrics", step))

    def checkpoint(self, step: int) -> None:
        self.calls.append(("checkpoint", step))

    def close(self, how: Ending) -> None:
        self.calls.append(("close", how))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "calls", [])
    monkeypatch.setattr(Kept, "fails", 0)


def test_a_logger_of_ones_own_follows_a_run_and_its_end(tmp_path: Path) -> None:
    loggers = [f"{__name__}:Kept", "json"]
    spec = tiny_baseline(train={"steps": 4, "validate_every": 4, "loggers": loggers})
    directory = RunDirectory(tmp_path / "run")
    directory.create(spec)
    with pytest.raises(Killed):
        run_local(spec, directory, [RunLog(directory, 0), *chosen_loggers(spec, directory), KillAt(4)])
    assert ("close", "failed") in Kept.calls
    first = len(Kept.calls)
    run_local(spec, directory, [RunLog(directory, 0), *chosen_loggers(spec, directory)])
    again = Kept.calls[first:]
    assert again[0][0] == "start"
    assert [call for call in again if call[0] != "checkpoint"][-2:] == [("metrics", 4), ("close", "finished")]
    assert {step for what, step in Kept.calls if what == "checkpoint"} == {2, 4}

    rows = [json.loads(line) for line in directory.json_log.read_text().splitlines()]
    assert len(rows) == len((directory.path / "log.txt").read_text().splitlines())
    assert {(row["run"], row["trial"], row["rank"]) for row in rows} == {("run", "", 0)}
    row = next(row for row in rows if row["step"] == 2)
    assert row["figures"]["loss/total"] > 0
    assert row["message"].startswith("step 2: loss")
    assert not directory.tensorboard.exists()


def test_a_service_that_is_away_is_said_once_and_gets_what_it_missed(run: RunDirectory) -> None:
    Kept.fails = 2
    tell(InBackground("kept", Kept, run, pause=0.01), (1, 2, 3))
    assert [call for call in Kept.calls if call[0] == "metrics"] == [("metrics", step) for step in (1, 2, 3)]
    said = [line for line in (run.path / "log.txt").read_text().splitlines() if "train.loggers" in line]
    assert len(said) == 2
    assert "ConnectionError: https://host: refused; the run goes on" in said[0]
    assert said[1].endswith("kept takes the run's figures again")


def test_pictures_are_not_kept_for_a_service_that_is_away(run: RunDirectory) -> None:
    taken: list[int] = []

    class Pictures(Kept):
        def validation(self, step: int, result: EvaluationResult) -> None:
            taken.append(len(result.pictures))

    picture = cast(Any, "a picture")
    result = EvaluationResult(
        ConfusionMatrix(2), ClassSet(("a", "b"), ((0, 0, 0), (1, 1, 1))), 1, 1.0, (picture,)
    )
    logger = InBackground("kept", Pictures, run, pause=0.01)
    logger.start(SPEC, 0)
    logger.validation(1, result)
    deadline = time.monotonic() + 30
    while not taken:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    Kept.fails = 10**9
    logger.metrics(2, {})
    while not logger._away:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    logger.validation(2, result)
    Kept.fails = 0
    logger.close("finished")
    assert taken == [1, 0]


def test_a_run_does_not_wait_for_a_service_that_stays_away(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kept.fails = 10**9
    begun = time.monotonic()
    tell(InBackground("kept", Kept, run, pause=0.1))
    assert time.monotonic() - begun < 5
    said = [line for line in (run.path / "log.txt").read_text().splitlines() if "train.loggers" in line]
    assert "has not taken 2 of" in said[-1]
    assert sum("ConnectionError" in line for line in said) == 1
    assert ("close", "finished") in Kept.calls

    class Away(Kept):
        def start(self, spec: dict[str, Any], step: int) -> None:
            raise OSError("away")

    Kept.calls.clear()
    (run.path / "log.txt").unlink()
    tell(InBackground("away", Away, run, pause=0.01))
    first, last = (run.path / "log.txt").read_text().splitlines()
    assert "away: OSError: away; the run goes on" in first
    assert "has not taken 4 of" in last
    assert not Kept.calls  # nothing is told to what has not begun

    class Hangs(Kept):
        def start(self, spec: dict[str, Any], step: int) -> None:
            time.sleep(60)

    monkeypatch.setitem(behind.PATIENCE, "stopped", 0.1)
    begun = time.monotonic()
    tell(InBackground("hangs", Hangs, run), how="stopped")
    assert time.monotonic() - begun < 5


def test_one_call_that_fails_for_ever_is_dropped(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(Kept):
        def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
            if step == 2:
                raise ValueError("no such name")
            super().metrics(step, metrics)

    monkeypatch.setattr(behind, "TRIES", 2)
    logger = InBackground("picky", Picky, run, pause=0.01)
    logger.start(SPEC, 0)
    for step in (1, 2, 3):
        logger.metrics(step, {})
    end = time.monotonic() + 20
    while ("metrics", 3) not in Kept.calls and time.monotonic() < end:
        time.sleep(0.01)
    logger.close("finished")
    assert ("metrics", 3) in Kept.calls
    assert "has not taken 1 of" in (run.path / "log.txt").read_text()


def test_a_service_that_cannot_be_had_at_its_start(run: RunDirectory) -> None:
    def make(directory: RunDirectory) -> Logger:
        raise RuntimeError("no")

    tell(InBackground("kept", make, run, pause=0.01))
    assert "kept: RuntimeError: no; the run goes on" in (run.path / "log.txt").read_text()


def test_names_of_loggers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(LOGGERS.names()) >= {"tensorboard", "mlflow", "wandb", "json"}
    with refuses("train.loggers", ConfigError, "tensorboard"):
        require_loggers(tiny_baseline(train={"loggers": ["tensorbord"]}))
    with refuses("train.loggers", ConfigError, "cirkd_ray.report.loggers.base:Logger"):
        require_loggers(tiny_baseline(train={"loggers": ["json:JSONEncoder"]}))
    monkeypatch.setattr("cirkd_ray.report.loggers.choose.find_spec", lambda name: None)
    with refuses("train.loggers", ConfigError, "cirkd-ray[mlflow]"):
        require_loggers(tiny_baseline(train={"loggers": ["mlflow"]}))
    kinds = [type(each) for each in chosen_loggers(tiny_baseline(), RunDirectory(tmp_path))]
    assert kinds == [TensorBoardLogger]
    assert list(chosen_loggers(tiny_baseline(train={"loggers": []}), RunDirectory(tmp_path))) == []


def test_what_a_run_is_called(tmp_path: Path) -> None:
    for name in ("sweep/sweep.yaml", "compared/comparison.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    names = {
        "alone": "alone",
        "runs/alone": "alone",
        "sweep/trials/t3/g1": "sweep/t3",
        "sweep/controls/recipe-s0": "sweep/recipe-s0",
        "compared/runs/cwd-s1": "compared/cwd-s1",
    }
    assert {path: RunDirectory(tmp_path / path).labels.name for path in names} == names


def test_the_marks_of_sweeps_and_comparisons() -> None:
    from cirkd_ray.compare.folder import COMPARISON
    from cirkd_ray.sweep.folder import SPACE
    from cirkd_ray.train.rundir import _OVERVIEWS

    assert set(_OVERVIEWS) == {SPACE, COMPARISON}


def test_a_variable_begins_the_json_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = RunDirectory(tmp_path / "plain")
    plain.create(tiny_baseline())
    plain.log("a line")
    assert not plain.json_log.exists()
    monkeypatch.setenv("CIRKD_JSON_LOG", "1")
    run = RunDirectory(tmp_path / "run")
    run.create(tiny_baseline())
    run.log("WARNING: worker 1 on b: a line", rank=1)
    row = json.loads(run.json_log.read_text())
    assert (row["level"], row["rank"], row["step"]) == ("warning", 1, None)
    assert row["time"][10] == "T"


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    assert without_secrets(f"401 for {SECRET} at http://u:p@h/x") == "401 for *** at http://h/x"
    assert plain_figures({"a:b@c": 1, "d": float("inf"), "e": "text"}) == {"a_b_c": 1.0}
    assert os.environ["MY_API_KEY"] == SECRET


def test_a_wrong_logger_is_refused_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, space, out = tmp_path / "tiny.yaml", tmp_path / "space.yaml", tmp_path / "runs"
    recipe.write_text(tiny_baseline(train={"loggers": ["mlfow"]}).to_yaml())
    space.write_text(
        f"recipe: {recipe}\nparameters: {{optim.lr: {{grid: [0.01]}}}}\nsearcher: {{name: grid}}\n"
        "budget: {steps: 2}\n"
    )
    for words in (
        ["train", str(recipe), "--local"],
        ["tune", str(space)],
        ["compare", "camvid/small/cirkd", "--set", "train.loggers=[mlfow]"],
    ):
        assert main([*words, "--out", str(out)]) == 2
        require_error(capsys.readouterr().err, "train.loggers", "mlflow")
    assert not list(out.rglob("*.yaml"))
