"""How far runs, sweeps and comparisons are, as their folders tell, whoever trains them and where."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cirkd_ray.compare.folder import COMPARISON, CompareData, read_comparison
from cirkd_ray.config.composition import read_yaml
from cirkd_ray.errors import ConfigError, UserError, first_line
from cirkd_ray.remote.copies import address
from cirkd_ray.sweep.folder import SPACE, SweepData, read_sweep
from cirkd_ray.sweep.space import SweepSpec
from cirkd_ray.train.outcome import read_failure, read_outcome
from cirkd_ray.train.rundir import RunDirectory

if TYPE_CHECKING:
    from rich.table import Table

FRESH = 120.0
"""Seconds after a sign of life in which what no process here holds counts as running elsewhere."""
ROWS = 10
"""Lines of metrics that the time left follows from."""
SHARED = ("teachers", "baselines")
"""Folders of runs that others use, in a folder of runs."""
FILES = ("metrics.jsonl", "log.txt", "result.json", "run.yaml")
"""What a run writes while it goes on."""


@dataclass(frozen=True)
class Status:
    """How far something is.

    Attributes:
        place: its folder.
        kind: run, sweep or comparison.
        state: running, finished, failed, expired (`budget.hours` is spent), stopped (asked to), interrupted
            (nothing tells why it is silent) or unknown.
        done, total: steps of a run, ended trials of a sweep, finished runs of a comparison.
        miou: of the last validation; of the best trial or method; NaN where there is none.
        age: seconds since it last wrote something.
        left: seconds of training that are left, at the speed of the last steps; NaN where that is not known.
        line: the command line that continues; empty where there is nothing to continue.
        note: why it failed, or what else there is to know.
    """

    place: Path
    kind: str
    state: str
    done: int = 0
    total: int = 0
    miou: float = math.nan
    age: float = math.nan
    left: float = math.nan
    line: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "place": address(self.place)}


def read_status(folder: Path) -> Status:
    """How far the run, sweep or comparison in `folder` is.

    Raises:
        ConfigError: there is none, or one of its files is damaged.
    """
    if (folder / SPACE).is_file():
        found = _of_sweep(read_sweep(folder))
    elif (folder / COMPARISON).is_file():
        found = _of_comparison(read_comparison(folder))
    elif (folder / "run.yaml").is_file():
        found = _of_run(RunDirectory(folder))
    else:
        raise ConfigError(f"{address(folder)}: holds no run, sweep or comparison; give the folder of one")
    return replace(found, line="") if found.state in ("finished", "running") else found


def statuses(out: Path) -> list[Status]:
    """Of all that lies in a folder of runs, the newest first; what cannot be read is among them as unknown.

    Raises:
        ConfigError: there is no such folder.
    """
    if not out.is_dir():
        raise ConfigError(f"--out {address(out)}: no such folder")
    found = []
    for folder in _folders(out):
        try:
            found.append(read_status(folder))
        except (UserError, OSError, KeyError, ValueError) as error:
            found.append(Status(folder, "?", "unknown", age=_age(folder), note=first_line(error)))
    return sorted(found, key=lambda each: (math.isnan(each.age), each.age))


def _folders(out: Path) -> Iterator[Path]:
    for place in (out, *(out / name for name in SHARED)):
        for folder in sorted(place.glob("*/")):
            if any((folder / name).is_file() for name in (SPACE, COMPARISON, "run.yaml")):
                yield folder


def _of_run(run: RunDirectory) -> Status:
    rows, failure = run.read_metrics(), read_failure(run.path)
    total = int(read_yaml(run.recipe)["train"]["steps"])
    scores = [float(row["miou"]) for row in rows if "miou" in row]
    age = _age(run.path)
    state, note = _state(run.path, age), ""
    if run.result.is_file():
        state = "finished"
    elif state != "running" or not _held(run.path):
        if failure is not None:
            state, note = "failed", first_line(failure)
        elif _last_line(run.path).startswith("stopped at "):
            state = "stopped"
    return Status(
        run.path,
        "run",
        state,
        done=int(rows[-1]["step"]) if rows else 0,
        total=total,
        miou=scores[-1] if scores else math.nan,
        age=age,
        left=_left(rows, total) if state == "running" else math.nan,
        line=_line("train", "--resume", run.path.name, out=run.path.parent),
        note=note,
    )


def _left(rows: Sequence[dict[str, Any]], total: int) -> float:
    """Seconds that the steps left will take, validations apart, at the speed of the last lines."""
    timed = [row for row in rows if "seconds" in row][-ROWS:]
    seconds = sum(float(row["seconds"]) for row in timed[1:])
    steps = int(timed[-1]["step"]) - int(timed[0]["step"]) if timed else 0
    return seconds / steps * max(0, total - int(timed[-1]["step"])) if steps > 0 else math.nan


def _of_sweep(data: SweepData) -> Status:
    folder, counts = data.folder, dict[str, int]()
    for trial in data.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    age = _age(folder, *(path.parent for path in folder.glob("*/*/run.yaml")), *folder.glob("trials/*/g*"))
    state, ended = _state(folder, age), read_outcome(folder)["status"]
    if state != "running" and ended != "running":
        state = (
            "finished" if ended == "finished" and not data.failures else "failed" if data.failures else ended
        )
    best = data.ranked[0].figure("miou") if data.ranked else math.nan
    notes = [f"{count} {status}" for status, count in sorted(counts.items())]
    return Status(
        folder,
        "sweep",
        state,
        done=sum(count for status, count in counts.items() if status != "running"),
        total=SweepSpec.model_validate(data.space).trials,
        miou=best,
        age=age,
        line=_line("tune", str(folder / SPACE), "--name", folder.name, out=folder.parent),
        note="; ".join(
            [f"trials: {', '.join(notes)}" if notes else "no trial yet", *_failures(data.failures)]
        ),
    )


def _of_comparison(data: CompareData) -> Status:
    folder = data.folder
    runs = [path for path in folder.glob("runs/*/") if path.is_dir()]
    done = sum(len(results) for results in data.results.values())
    age = _age(folder, *runs)
    state = _state(folder, age)
    if state != "running":
        state = "failed" if data.failures else "finished" if runs and done == len(runs) else state
    means = [data.interval(name).mean for name, results in data.results.items() if results]
    return Status(
        folder,
        "comparison",
        state,
        done=done,
        total=len(runs),
        miou=max(means, default=math.nan),
        age=age,
        line=_line("compare", "--resume", folder.name, out=folder.parent),
        note="; ".join(_failures(data.failures)),
    )


def _failures(failures: dict[str, str]) -> list[str]:
    return [f"{name}: {first_line(Exception(reason))}" for name, reason in list(failures.items())[:3]]


def _line(command: str, *words: str, out: Path) -> str:
    return shlex.join(["cirkd", command, *words, "--out", address(out)])


def _state(folder: Path, age: float) -> str:
    """Whether it goes on now: some process holds it, or it wrote something a moment ago."""
    return "running" if _held(folder) or age < FRESH else "interrupted"


def _held(folder: Path) -> bool:
    """Whether a process trains there, as far as the file system tells: see `train.stages.locked`."""
    path = folder.parent / f".{folder.name}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _age(*folders: Path) -> float:
    """Seconds since one of these runs wrote something."""
    times = []
    for folder in folders:
        for name in (*FILES, SPACE, COMPARISON, "outcome.json"):
            with suppress(OSError):
                times.append((folder / name).stat().st_mtime)
    return max(0.0, time.time() - max(times)) if times else math.nan


def _last_line(folder: Path) -> str:
    """The last message of a run's log, without its time."""
    with suppress(OSError):
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1].split(" ", 2)[-1].strip() if lines else ""
    return ""


COLUMNS = ("name", "kind", "state", "done", "mIoU %", "age", "left", "continue with")


def table(found: Sequence[Status], out: Path) -> Table:
    """A row each; names are relative to `out`."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None)
    for name in COLUMNS:
        made.add_column(name, justify="right" if name in COLUMNS[3:7] else "left", overflow="fold")
    for each in found:
        name = str(each.place.relative_to(out)) if each.place.is_relative_to(out) else str(each.place)
        cells = (name, *_cells(each), each.line or (each.note if each.state in ("failed", "unknown") else ""))
        made.add_row(*map(Text, cells))
    return made


def lines(each: Status) -> list[str]:
    """What `cirkd status` says of one."""
    kind, state, done, miou, age, left = _cells(each)
    unit = {"run": "steps", "sweep": "trials ended", "comparison": "runs finished"}[each.kind]
    shown = {
        "": f"{kind} {address(each.place)}",
        "state": state,
        "progress": f"{done} {unit}",
        "mIoU": f"{miou} %",
    }
    shown |= {"last sign": f"{age} ago", "left": f"{left}" if left != "-" else ""}
    shown |= {"note": each.note, "continue with": each.line}
    return [f"{name:14}{text}" if name else text for name, text in shown.items() if text]


def _cells(each: Status) -> tuple[str, ...]:
    miou = "-" if math.isnan(each.miou) else f"{100 * each.miou:.2f}"
    return each.kind, each.state, f"{each.done}/{each.total}", miou, span(each.age), span(each.left)


def span(seconds: float) -> str:
    """A length of time in its largest unit: `12 s`, `3 min`, `5.2 h`, `2.0 d`; `-` where it is not known."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"
