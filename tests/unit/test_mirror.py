"""Working copies and what is behind their URLs: order, losses on the way, outages, two machines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from cirkd_ray.errors import ConfigError, StorageError, TrainingError, WeightsError
from cirkd_ray.remote.copies import address, addressed, copy_id, copy_of, url_of
from cirkd_ray.remote.mirror import Mirror, join_call, mirrored, retake, this_call
from cirkd_ray.remote.reading import fetch_all, fetch_checkpoint, fetch_folder
from cirkd_ray.remote.store import token_of
from cirkd_ray.remote.unit import MARK, STATE, Unit
from cirkd_ray.train.reporter import LocalReporter
from cirkd_ray.train.snapshot import Snapshot
from cirkd_ray.weights.card import locate
from tests.buckets import Machines
from tests.errors import refuses

RUN = "memory://shelf/runs/a"


class Shelf:
    """The memory file system, with every change of it in order; `down` refuses all requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fs = fsspec.filesystem("memory")
        self.log: list[str] = []
        self.down, self.most = False, 10**9
        for name in ("rm_file", "open", "ls", "info", "cat_file", "get_file"):
            monkeypatch.setattr(self.fs, name, self._watched(name, getattr(self.fs, name)))

    def _watched(self, name: str, act: Any) -> Any:
        def watched(path: str, *args: Any, **kwargs: Any) -> Any:
            writes = name == "rm_file" or (name == "open" and "w" in str(args) + str(kwargs))
            if self.down or (writes and len(self.log) >= self.most):
                raise ConnectionError("unplugged")
            if writes and MARK not in path:
                relative = path.rpartition("/runs/a/")[2]
                self.log.append(f"-{relative}" if name == "rm_file" else relative)
            return act(path, *args, **kwargs)

        return watched

    def files(self, url: str = RUN) -> dict[str, bytes]:
        root = "/" + url.partition("://")[2]
        found = {
            path: bytes(self.fs.store[path].getbuffer()) for path in self.fs.store if path.startswith(root)
        }
        return {p[len(root) + 1 :]: content for p, content in found.items() if not p.endswith(MARK)}


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    yield Shelf(monkeypatch)
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    found = Machines(tmp_path, monkeypatch)
    found.on("one")
    return found


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def checkpoint(folder: Path, step: int, text: str = "weights") -> Path:
    place = folder / "checkpoints" / f"step_{step:08d}"
    place.mkdir(parents=True)
    (place / "state.pt").write_text(text)
    (place / "manifest.json").write_text(json.dumps({"step": step, "bytes": len(text), "sha256": ""}))
    return place


def said() -> tuple[list[str], Any]:
    lines: list[str] = []
    return lines, lines.append


def test_a_working_copy_follows_from_its_url(machines: Machines) -> None:
    folder = copy_of("s3://bucket/runs/a")
    assert folder == machines.folder / "one" / "s3" / "bucket" / "runs" / "a"
    assert url_of(folder) == address(folder) == address("s3://bucket/runs/a") == "s3://bucket/runs/a"
    assert copy_of(Path("s3://bucket/runs/a")) == folder, "a path loses one slash"
    assert addressed({"a": [str(folder), "/elsewhere", 3]}) == {"a": ["s3://bucket/runs/a", "/elsewhere", 3]}
    assert (copy_of("/here"), url_of(Path("/here")), address("/here")) == (Path("/here"), None, "/here")
    assert copy_id() == copy_id()
    first = copy_id()
    machines.on("two")
    assert copy_id() != first
    for wrong in ("s3://bucket/../x", "s3://bucket//x"):
        with refuses(wrong, ConfigError):
            copy_of(wrong)


def test_uploads_are_in_an_order_that_leaves_nothing_half_made(machines: Machines, shelf: Shelf) -> None:
    folder = copy_of(RUN)
    unit = Unit(folder)
    unit.taken = True
    write(
        folder,
        run_dot_yaml="a",
        metrics_dot_jsonl='{"step": 2}\n{"st',
        result_dot_json="{}",
        model_dot_json="{}",
    )
    write(folder, student_dot_safetensors="w", tensorboard__events_dot_out_dot_tfevents="e")
    checkpoint(folder, 2)
    checkpoint(folder, 4)
    (folder / "checkpoints" / ".step_00000006.123.partial").mkdir()
    write(folder, checkpoints__step_00000008__state_dot_pt="no manifest yet")
    with unit.held():
        unit.push()
    assert shelf.log == [
        "run.yaml",
        "metrics.jsonl",
        "student.safetensors",
        "model.json",
        "checkpoints/step_00000004/state.pt",
        "checkpoints/step_00000004/manifest.json",
        "checkpoints/step_00000002/state.pt",
        "checkpoints/step_00000002/manifest.json",
        "tensorboard/events.out.tfevents",
        "result.json",
    ]
    assert shelf.files()["metrics.jsonl"] == b'{"step": 2}\n', "whole lines"
    shelf.log.clear()
    with unit.held():
        unit.push()
    assert shelf.log == ["metrics.jsonl"] or not shelf.log, "nothing has changed"


def test_a_retired_checkpoint_is_deleted_after_its_successor_is_there(
    machines: Machines, shelf: Shelf
) -> None:
    folder = copy_of(RUN)
    old, unit = checkpoint(folder, 2), Unit(folder)
    with unit.held():
        unit.push()
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
        checkpoint(folder, 4)
        shelf.log.clear()
        shelf.most = 1
        with pytest.raises(Exception, match="unplugged"):
            unit.push()
        assert shelf.log == ["checkpoints/step_00000004/state.pt"], "lost on the way: the old one is whole"
        shelf.most = 99
        shelf.log.clear()
        unit.push()
    assert shelf.log == [
        *(f"checkpoints/step_00000004/{name}" for name in ("manifest.json",)),
        *(f"-checkpoints/step_00000002/{name}" for name in ("manifest.json", "state.pt")),
    ]


def test_another_machine_goes_on_from_what_is_there(machines: Machines, shelf: Shelf) -> None:
    folder, (lines, say) = copy_of(RUN), said()
    with mirrored(folder, 60, 0, say):
        write(
            folder,
            run_dot_yaml="recipe",
            metrics_dot_jsonl="1\n",
            tensorboard__events_dot_out_dot_tfevents="",
        )
        checkpoint(folder, 2)
    machines.on("two")
    other = copy_of(RUN)
    assert not other.exists()
    with mirrored(other, 60, 0, say):
        assert (other / "run.yaml").read_text() == "recipe"
        assert (other / "checkpoints" / "step_00000002" / "state.pt").read_text() == "weights"
        assert not (other / "tensorboard").exists(), "is only added to"
        write(other, metrics_dot_jsonl="1\n2\n")
        (other / "checkpoints" / "step_00000002" / "manifest.json").unlink()
    machines.on("one")
    with mirrored(folder, 60, 0, say):
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
        assert not (folder / "checkpoints" / "step_00000002" / "manifest.json").exists()
        assert (folder / "tensorboard" / "events.out.tfevents").exists()
    assert not lines


def test_half_a_checkpoint_that_a_lost_machine_left_is_passed_over(machines: Machines, shelf: Shelf) -> None:
    folder, (_, say) = copy_of(RUN), said()
    with Unit(folder).held():
        checkpoint(folder, 2)
        checkpoint(folder, 4)
    unit = Unit(folder)
    shelf.most = 3  # of four files
    with unit.held(), pytest.raises(Exception, match="unplugged"):
        unit.push()
    shelf.most = 99
    machines.on("two")
    with mirrored(copy_of(RUN), 60, 0, say):
        names = [path.name for path in (copy_of(RUN) / "checkpoints").iterdir()]
        assert names == ["step_00000004"]
    assert not any("step_00000002" in path for path in shelf.files())


def test_what_only_this_machine_has_wins_until_another_goes_on(machines: Machines, shelf: Shelf) -> None:
    folder, (lines, say) = copy_of(RUN), said()

    def lost_on_the_way() -> None:
        with mirrored(folder, 60, 0, say):
            write(folder, metrics_dot_jsonl="1\n")
            Mirror(folder, 60, 0, say).hand_over()
            write(folder, metrics_dot_jsonl="1\n2\n")
            shelf.down = True
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        lost_on_the_way()
    assert any("not uploaded" in line and str(folder) in line for line in lines)
    shelf.down = False
    with mirrored(folder, 60, 0, say):
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n"
    assert shelf.files()["metrics.jsonl"] == b"1\n2\n"
    write(folder, metrics_dot_jsonl="1\n2\n3 is only here\n")
    machines.on("two")
    with mirrored(copy_of(RUN), 60, 0, say):
        write(copy_of(RUN), metrics_dot_jsonl="1\n2\nother\n")
    machines.on("one")
    lines.clear()
    with mirrored(folder, 60, 0, say):
        assert (folder / "metrics.jsonl").read_text() == "1\n2\nother\n"
    (line,) = lines
    aside = Path(line.rpartition(" ")[2])
    assert (aside / "metrics.jsonl").read_text() == "1\n2\n3 is only here\n"


def test_an_emptied_bucket_takes_nothing_from_this_machine(machines: Machines, shelf: Shelf) -> None:
    folder, (lines, say) = copy_of(RUN), said()
    with mirrored(folder, 60, 0, say):
        write(folder, run_dot_yaml="recipe")
    shelf.fs.store.clear()
    with mirrored(folder, 60, 0, say):
        assert not (folder / "run.yaml").exists()
    assert (Path(lines[0].rpartition(" ")[2]) / "run.yaml").read_text() == "recipe"


def test_a_lost_scratch_folder_is_fetched_anew(machines: Machines, shelf: Shelf) -> None:
    folder, (_, say) = copy_of(RUN), said()
    with mirrored(folder, 60, 0, say):
        write(folder, run_dot_yaml="recipe")
        checkpoint(folder, 2)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with mirrored(folder, 60, 0, say):
        assert (folder / "checkpoints" / "step_00000002" / "state.pt").is_file()
    assert "checkpoints/step_00000002/state.pt" in shelf.files()


def test_work_goes_on_while_storage_is_away(machines: Machines, shelf: Shelf) -> None:
    folder, (lines, say) = copy_of(RUN), said()

    def until(done: Any) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with mirrored(folder, 0.05, 5, say):
        write(folder, metrics_dot_jsonl="1\n")
        until(lambda: shelf.files().get("metrics.jsonl") == b"1\n")
        shelf.down = True
        write(folder, metrics_dot_jsonl="1\n2\n")
        until(lambda: lines)
        assert "goes on" in lines[0]
        shelf.down = False
        until(lambda: shelf.files().get("metrics.jsonl") == b"1\n2\n")
        until(lambda: len(lines) == 2)
        assert "reached again" in lines[1]


def test_what_cannot_be_uploaded_at_the_end_is_named(machines: Machines, shelf: Shelf) -> None:
    folder, (_, say) = copy_of(RUN), said()
    with refuses(RUN, StorageError, "metrics.jsonl", str(folder)), mirrored(folder, 60, 0, say):
        write(folder, metrics_dot_jsonl="1\n")
        shelf.down = True
    with refuses(RUN, StorageError, "unplugged"), mirrored(folder, 60, 0, say):
        pytest.fail("began although storage is away")


def test_two_commands_do_not_write_to_one_folder(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (lines, say) = copy_of(RUN), said()
    unit, marked = Unit(folder), {"call": "c", "host": "there", "every": 1, "ended": False}

    def mark(age: float, **facts: Any) -> None:
        facts = {"copy": "elsewhere", "at": time.time() - age, **marked, **facts}
        unit.store.write(MARK, json.dumps(facts).encode())

    monkeypatch.setattr("cirkd_ray.remote.mirror._PAUSE", 0.02)
    for age, facts in ((61, {}), (0, {"ended": True}), (0, {"call": "call of one"})):
        mark(age, **facts)
        Mirror(folder, 60, 0, say)._wait_for_others()
    assert not lines
    mark(59.9)
    Mirror(folder, 60, 0, say)._wait_for_others()  # it was lost
    (line,) = lines
    assert "there wrote there" in line
    mark(1)
    monkeypatch.setattr("cirkd_ray.remote.mirror.time.sleep", lambda seconds: mark(0))
    with refuses(RUN, ConfigError, "there"), mirrored(folder, 60, 0, say):
        pytest.fail("began beside another")


def test_one_command_on_two_machines(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver begins a run, a worker elsewhere trains it, and the driver goes on."""
    driver, (_, say) = copy_of(RUN), said()
    with mirrored(driver, 60, 5, say):
        write(driver, run_dot_yaml="recipe", log_dot_txt="2026-01-01 10:00:00 begun\n")
        Mirror(driver, 60, 0, say).hand_over()
        monkeypatch.setenv("CIRKD_SCRATCH", str(machines.folder / "two"))
        worker = copy_of(RUN)
        with mirrored(worker, 60, 5, say):
            monkeypatch.setenv("CIRKD_SCRATCH", str(machines.folder / "one"))
            write(driver, log_dot_txt="2026-01-01 10:00:00 begun\n2026-01-01 10:00:02 restart:\nwhy\n")
            monkeypatch.setenv("CIRKD_SCRATCH", str(machines.folder / "two"))
            checkpoint(worker, 2)
            write(worker, result_dot_json="{}")
            write(worker, log_dot_txt="2026-01-01 10:00:00 begun\n2026-01-01 10:00:03 step\n")
        monkeypatch.setenv("CIRKD_SCRATCH", str(machines.folder / "one"))
        retake(driver)
        assert (driver / "result.json").is_file()
        assert not (driver / "checkpoints" / "step_00000002").exists()
        write(driver, result_dot_json='{"baseline": 1}')
    assert shelf.files()["result.json"] == b'{"baseline": 1}'
    lines = shelf.files()["log.txt"].decode().splitlines()
    assert [line[20:] or line for line in lines] == ["begun", "restart:", "why", "step"]
    assert "checkpoints/step_00000002/state.pt" in shelf.files(), "what was never fetched is not deleted"


def test_reading_fetches_what_is_asked_for(machines: Machines, shelf: Shelf) -> None:
    sweep, (_, say) = copy_of("memory://shelf/runs/sweep"), said()
    trial = sweep / "trials" / "x" / "g0"
    with mirrored(sweep, 60, 0, say):
        write(sweep, sweep_dot_yaml="space", trials__x__outcome_dot_json="{}")
        with mirrored(trial, 60, 0, say):
            write(trial, run_dot_yaml="recipe", metrics_dot_jsonl="1\n")
            kept = checkpoint(trial, 2)
            manifest = (kept / "manifest.json").read_text()
    assert "trials/x/g0/run.yaml" in shelf.files("memory://shelf/runs/sweep")
    machines.on("two")
    sweep = copy_of("memory://shelf/runs/sweep")
    assert fetch_folder(sweep, ("sweep.yaml",))
    assert [path.name for path in sweep.iterdir() if path.name[0] != "."] == ["sweep.yaml"]
    assert not fetch_folder(copy_of("memory://shelf/runs/nix"))
    assert not copy_of("memory://shelf/runs/nix").exists()
    assert fetch_all(sweep, lambda path: "checkpoints" not in path)
    assert (sweep / "trials" / "x" / "g0" / "metrics.jsonl").is_file()
    assert (sweep / "trials" / "x" / "outcome.json").is_file()
    place = fetch_checkpoint("memory://shelf/runs/sweep/trials/x/g0/checkpoints/step_00000002", manifest, 5)
    assert (place / "state.pt").read_text() == "weights"
    assert (sweep / "trials" / "x" / "g0" / STATE).is_file()


def test_names_never_lead_out_of_the_folder(machines: Machines, shelf: Shelf) -> None:
    shelf.fs.store.clear()
    folder, (_, say) = copy_of(RUN), said()
    for key in ("/shelf/runs/a/run.yaml", "/shelf/runs/a/../../../../evil.txt"):
        shelf.fs.pipe_file(key, b"x")
    with mirrored(folder, 60, 0, say):
        assert (folder / "run.yaml").is_file()
    assert not list(machines.folder.rglob("evil.txt"))


def test_a_folder_that_becomes_a_unit_of_its_own_keeps_what_it_had(machines: Machines, shelf: Shelf) -> None:
    """As the folders of a comparison's runs, in which something lies before they begin."""
    folder, (_, say) = copy_of(RUN), said()
    child = folder / "runs" / "x"
    with mirrored(folder, 60, 0, say):
        write(child, data_dot_json="{}")
        Mirror(folder, 60, 0, say)._push()
        with mirrored(child, 60, 0, say):
            write(child, run_dot_yaml="recipe")
        Mirror(folder, 60, 0, say)._push()
        with Unit(folder).held():
            pass
    assert set(shelf.files()) >= {"runs/x/data.json", "runs/x/run.yaml"}
    machines.on("two")
    with mirrored(copy_of(RUN), 60, 0, say):
        assert fetch_all(copy_of(RUN), lambda path: True)
    machines.on("one")
    with mirrored(folder, 60, 0, say):
        assert (child / "data.json").is_file()


def test_a_command_says_that_another_has_taken_its_folder_over(machines: Machines, shelf: Shelf) -> None:
    folder, (lines, say) = copy_of(RUN), said()
    call = this_call()

    def taken_over() -> None:
        with mirrored(folder, 0.05, 60, say):
            write(folder, metrics_dot_jsonl="1\n")
            mark = {"copy": "elsewhere", "call": "another", "host": "there", "at": 0, "every": 1}
            Unit(folder).store.write(MARK, json.dumps({**mark, "ended": False}).encode())
            Unit(folder).store.write("metrics.jsonl", b"theirs\n")
            deadline = time.monotonic() + 30
            while not lines and time.monotonic() < deadline:
                time.sleep(0.02)
            write(folder, metrics_dot_jsonl="1\n2\n")

    begun = time.monotonic()
    with refuses(RUN, ConfigError, "there", str(folder)):
        taken_over()
    assert time.monotonic() - begun < 40, "no other try can succeed"
    assert (folder / "metrics.jsonl").read_text() == "1\n2\n", "what this one wrote stays here"
    assert shelf.files()["metrics.jsonl"] == b"theirs\n"
    assert this_call() == call
    (line,) = lines
    assert "uploaded later" not in line


def test_what_is_deleted_there_during_the_work_is_uploaded_again(machines: Machines, shelf: Shelf) -> None:
    folder, (_, say) = copy_of(RUN), said()
    with mirrored(folder, 60, 0, say):
        write(folder, run_dot_yaml="recipe", metrics_dot_jsonl="1\n")
        Mirror(folder, 60, 0, say)._push()
        shelf.fs.store.clear()
    assert (folder / "metrics.jsonl").read_text() == "1\n"
    assert shelf.files() == {"run.yaml": b"recipe", "metrics.jsonl": b"1\n"}


def test_json_logs_of_two_machines_are_joined(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, (lines, say) = copy_of(RUN), said()

    def row(second: int, text: str) -> str:
        return json.dumps({"time": f"2026-01-01T10:00:{second:02}.000+00:00", "message": text}) + "\n"

    with mirrored(driver, 60, 5, say):
        write(driver, run_dot_yaml="recipe", log_dot_jsonl=row(1, "begun"))
        Mirror(driver, 60, 0, say).hand_over()
        machines.on("two")
        join_call(call := "call of one")
        with mirrored(copy_of(RUN), 60, 5, say):
            write(copy_of(RUN), log_dot_jsonl=row(1, "begun") + row(3, "step"))
        machines.on("one")
        assert this_call() == call
        write(driver, log_dot_jsonl=row(1, "begun") + row(2, "restart"))
        retake(driver)
    assert not lines, "nothing is set aside for a line of the log"
    told = [json.loads(line)["message"] for line in shelf.files()["log.jsonl"].splitlines()]
    assert told == ["begun", "restart", "step"]


def test_the_mark_is_renewed_during_a_long_upload(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (_, say) = copy_of(RUN), said()
    seen = []
    with mirrored(folder, 60, 0, say):
        mirror = Mirror(folder, 1e-9, 0, say)
        write(folder, a_dot_json="1", b_dot_json="2")
        opened = shelf.fs.open

        def watch(path: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(path.rpartition("/")[2])
            return opened(path, *args, **kwargs)

        monkeypatch.setattr(shelf.fs, "open", watch)
        mirror._push()
    written = [name for name in seen if name in (MARK, "a.json", "b.json")]
    assert written.index(MARK) < written.index("b.json")


def test_a_mark_of_a_clock_that_is_ahead_is_not_waited_for_longer(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (lines, say) = copy_of(RUN), said()
    mark = {"copy": "elsewhere", "call": "c", "host": "there", "every": 1, "ended": False}
    Unit(folder).store.write(MARK, json.dumps({**mark, "at": time.time() + 3600}).encode())
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds
        assert now[0] < 100, "waits for an hour"

    monkeypatch.setattr("cirkd_ray.remote.mirror.time.sleep", pause)
    monkeypatch.setattr("cirkd_ray.remote.mirror.time.monotonic", lambda: now[0])
    Mirror(folder, 60, 0, say)._wait_for_others()
    (line,) = lines
    assert "-" not in line.partition("ago")[0].rpartition("wrote")[2]


def test_an_end_that_only_lacks_the_mark_says_so(machines: Machines, shelf: Shelf) -> None:
    folder, (_, say) = copy_of(RUN), said()
    with refuses(RUN, StorageError, "unplugged") as error, mirrored(folder, 60, 0, say):
        write(folder, metrics_dot_jsonl="1\n")
        Mirror(folder, 60, 0, say)._push()
        shelf.down = True
    assert "0 files" not in str(error.value)


def test_a_time_is_the_same_with_and_without_its_fraction() -> None:
    whole = datetime(2026, 11, 27, 18, 44, 40, tzinfo=UTC)
    tokens = {token_of({"size": 1, "mtime": each}) for each in (whole, whole.replace(microsecond=123000))}
    ((_, stamp),) = tokens
    assert datetime.fromisoformat(stamp) == whole, "with its zone"


def test_what_was_set_aside_can_be_looked_at(machines: Machines) -> None:
    place = machines.folder / "one" / ".aside" / "s3" / "bucket" / "runs" / "a"
    assert (url_of(place), address(place)) == (None, str(place))


def test_why_a_worker_failed_is_in_the_bucket(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that `cirkd status` tells it, and the next worker there has nothing that the bucket lacks."""
    from cirkd_ray.cluster import worker

    folder, (_, say) = copy_of(RUN), said()

    class Runs:
        def __init__(self, config: Any, world: Any, held: ExitStack) -> None:
            held.enter_context(mirrored(folder, 60, 0, say))

        def train(self, heartbeat: Any) -> Any:
            raise TrainingError("loss: is not finite")

    monkeypatch.setattr(worker, "_Runs", Runs)
    monkeypatch.setattr(worker, "part_of", lambda call: nullcontext())
    monkeypatch.setattr(worker, "Pulse", lambda *given: nullcontext())
    monkeypatch.setattr(worker, "bound_memory", lambda *given: None)
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "get_temp_dir", lambda: str(tmp_path / "temporary"))
    config = {"directory": RUN, "known_as": str(folder), "threads": None, "gpus": 0, "call": "c"}
    with refuses("loss", TrainingError):
        worker.work(config)
    assert "not finite" in shelf.files()["failure.json"].decode()


def test_a_checkpoint_is_uploaded_at_once_and_soon_again_where_that_fails(
    machines: Machines, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the notice that a machine will be taken away, whatever the pace of uploads is."""
    folder, (lines, say) = copy_of(RUN), said()
    monkeypatch.setattr("cirkd_ray.remote.mirror.RETRY", 0.05)

    def until(done: Any) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    reporter = LocalReporter(folder / "checkpoints", keep=2)
    with mirrored(folder, 3600, 5, say):
        reporter.report({}, Snapshot({"step": 2, "x": torch.ones(5)}), False)
        until(lambda: "checkpoints/step_00000002/manifest.json" in shelf.files())
        shelf.down = True
        reporter.report({}, Snapshot({"step": 4, "x": torch.ones(5)}), False)
        until(lambda: lines)
        shelf.down = False
        until(lambda: "checkpoints/step_00000004/manifest.json" in shelf.files())


def test_a_network_that_is_not_there_is_called_by_its_url(machines: Machines, shelf: Shelf) -> None:
    url = "memory://shelf/runs/nothing"
    for place in (Path(url), copy_of(url)):
        with refuses(url, WeightsError):
            locate(place)
