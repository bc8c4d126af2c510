"""`cirkd status` and `cirkd runs`: what folders tell of how far things are."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from pathlib import Path

import pytest
import yaml

from cirkd_ray.cli import main
from cirkd_ray.compare.plan import begun_comparison, methods_of, open_comparison
from cirkd_ray.config import load_run
from cirkd_ray.errors import ConfigError, TrainingError
from cirkd_ray.remote.copies import copy_of
from cirkd_ray.report.status import FRESH, lines, read_status, span, statuses
from cirkd_ray.sweep.space_file import load_space
from cirkd_ray.train.choose import choose_run
from cirkd_ray.train.locked import locked
from cirkd_ray.train.outcome import read_failure, write_failure, write_outcome
from cirkd_ray.train.rundir import RunDirectory
from cirkd_ray.train.runner import each_alone, train_together
from cirkd_ray.train.stop import Stopped
from tests.commandline import parsed
from tests.errors import refuses
from tests.tinyrun import tiny_baseline


def make_run(folder: Path, steps: int = 4, total: int = 10, seconds: float = 2.0) -> RunDirectory:
    """A run that has trained some of its steps, a line each, with a validation at every second."""
    run = RunDirectory(folder)
    run.create(tiny_baseline(train={"steps": total}))
    for step in range(1, steps + 1):
        scores = {"miou": step / 100} if step % 2 == 0 else {}
        run.append_metrics({"step": step, "seconds": seconds, **scores})
    return run


def made_old(folder: Path, seconds: float = 10 * FRESH) -> None:
    """All that it wrote is as old as that."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def test_a_run_under_way(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with locked(run, run.spec().cluster, print):
        made_old(tmp_path)  # as between two lines of a slow run
        found = read_status(run.path)
    assert (found.kind, found.state, found.done, found.total, found.miou) == ("run", "running", 4, 10, 0.04)
    assert found.left == pytest.approx(6 * 2.0)
    assert found.age == pytest.approx(10 * FRESH, abs=60)
    assert found.line == ""


def test_a_run_on_another_machine_is_known_by_its_signs_of_life(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert read_status(run.path).state == "running"
    made_old(tmp_path)
    found = read_status(run.path)
    assert found.state == "interrupted"
    assert math.isnan(found.left)
    words = shlex.split(found.line)[1:]
    values = parsed(words)
    assert choose_run(None, (), Path(values["out"]), None, values["resume"])[1].path == run.path


def test_what_became_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.log("stopped at step 4 of 10")
    made_old(tmp_path)
    assert read_status(run.path).state == "stopped"
    write_failure(run.path, TrainingError("loss/kd: not finite\nmore"))
    found = read_status(run.path)
    assert (found.state, found.note) == ("failed", "loss/kd: not finite")
    run.write_result({"best": {}, "last": {}})
    found = read_status(run.path)
    assert (found.state, found.line) == ("finished", "")


def make_sweep(folder: Path, *changes: str) -> None:
    space = load_space("smoke", changes).spec
    folder.mkdir()
    (folder / "sweep.yaml").write_text(yaml.safe_dump(space.model_dump(mode="json")))
    for number, status in enumerate(("finished", "failed", "running")):
        trial = folder / "trials" / f"t{number}"
        run = make_run(trial / "g0", steps=2 * number + 2)
        (run.path / "trial.json").write_text('{"parent": null, "values": {}, "settings": {}}')
        if status != "running":
            write_outcome(trial, status=status, reason="")


def test_a_sweep_counts_its_trials_and_its_line_continues_it(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s")
    made_old(tmp_path)
    found = read_status(tmp_path / "s")
    assert (found.kind, found.state, found.done) == ("sweep", "interrupted", 2)
    assert found.total == load_space("smoke").spec.trials
    assert found.note == "trials: 1 failed, 1 finished, 1 running"
    values = parsed(shlex.split(found.line)[1:])
    assert load_space(values["space"]).spec == load_space("smoke").spec
    assert (values["out"], values["name"]) == (str(tmp_path), "s")
    write_outcome(tmp_path / "s", status="finished")
    made_old(tmp_path)
    assert read_status(tmp_path / "s").state == "finished"
    write_outcome(tmp_path / "s", failures={"controls/defaults-s0": "no memory"})
    made_old(tmp_path)
    found = read_status(tmp_path / "s")
    assert found.state == "failed"
    assert "controls/defaults-s0: no memory" in found.note


def test_trials_are_counted_where_the_space_gives_no_number(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", "budget.trials=null")
    assert read_status(tmp_path / "s").total == 16


def make_comparison(folder: Path) -> dict[str, object]:
    methods = methods_of([("quickstart", load_run("quickstart", ["baseline=false"]))])
    open_comparison(methods, folder)
    for seed in range(2):
        for name in methods:
            run = make_run(folder / "runs" / f"{name}-s{seed}")
            if seed == 0:
                run.write_result({"best": {"miou": 0.5}, "last": {"miou": 0.25}})
    return dict(methods)


def test_a_comparison_counts_its_runs_and_is_continued_from_its_folder(tmp_path: Path) -> None:
    methods = make_comparison(tmp_path / "c")
    made_old(tmp_path)
    found = read_status(tmp_path / "c")
    assert (found.state, found.done, found.total, found.miou) == ("interrupted", 2, 4, 0.25)
    values = parsed(shlex.split(found.line)[1:])
    assert (values["resume"], values["out"]) == ("c", str(tmp_path))
    assert begun_comparison(tmp_path / "c") == (methods, 2, "steps")
    with refuses(f"--resume {tmp_path / 'd'}", ConfigError):
        begun_comparison(tmp_path / "d")


@pytest.mark.parametrize("words", [["quickstart"], ["--set", "seed=1"]])
def test_a_comparison_is_continued_as_it_was_begun(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--resume", "c", "--out", str(tmp_path), *words]) == 2
    assert "leave RECIPE and --set out" in capsys.readouterr().err


def test_the_commands_print_lines_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "first")
    make_run(tmp_path / "teachers" / "t-1")
    make_sweep(tmp_path / "sweep")
    made_old(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.yaml").write_text("train: [")
    assert main(["runs", "--out", str(tmp_path)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0][:3] == ["name", "kind", "state"]
    rows = {row[0]: row for row in reversed(shown[1:]) if row}  # the first of a name: long lines are folded
    assert rows["first"][1:5] == ["run", "interrupted", "4/10", "4.00"]
    assert rows["sweep"][1] == "sweep"
    assert rows["broken"][2] == "unknown"
    assert "teachers/t-1" in rows
    assert main(["runs", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["state"] for each in found} == {"interrupted", "unknown"}
    assert main(["status", str(tmp_path / "first")]) == 0
    text = capsys.readouterr().out
    assert "progress      4/10 steps" in text
    assert f"continue with cirkd train --resume first --out {tmp_path}" in text
    assert main(["status", str(tmp_path / "first"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] is None


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with refuses(tmp_path, ConfigError):
        read_status(tmp_path)


def test_what_lies_behind_a_url_is_called_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRKD_SCRATCH", str(tmp_path))
    url = "s3://bucket/runs/first"
    found = read_status(make_run(copy_of(url)).path)
    assert found.to_dict()["place"] == url
    assert lines(found)[0].split() == ["run", url]
    with refuses("s3://bucket/nothing", ConfigError):
        read_status(copy_of("s3://bucket/nothing"))
    with refuses("--out s3://bucket/nothing", ConfigError):
        statuses(copy_of("s3://bucket/nothing"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (300, "5 min"), (7200, "2.0 h"), (200_000, "2.3 d"), (math.nan, "-")]
)
def test_a_span_of_time(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_run_that_fails_says_why_until_it_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    spec = run.spec()
    for error, state, note in (
        (TrainingError("loss: is not finite at step 5"), "failed", "loss: is not finite at step 5"),
        (MemoryError("out of it"), "failed", f"{run.path}: MemoryError: out of it"),
        (Stopped("stopped at step 4"), "interrupted", ""),
    ):

        def fails(runs: object, folder: Path, error: Exception = error) -> list[dict[str, object]]:
            raise error

        with pytest.raises(type(error)):
            each_alone(fails)(spec, run)
        made_old(tmp_path)
        found = read_status(run.path)
        assert (found.state, found.note) == (state, note)
    with pytest.raises(TrainingError):
        train_together([(spec, run)], lambda runs, folder: [TrainingError("loss: is not finite")], print)
    assert read_failure(run.path) is not None
    each_alone(lambda runs, folder: [{}])(spec, run)
    assert read_failure(run.path) is None
