"""What a scheduler has seen, on disk: written whole and in one step, read without the trials' processes.

It is read as data: names of anything but the few classes that it is made of are refused, so that a file which
somebody else wrote runs no code.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray.train
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from cirkd_ray.errors import ConfigError
from cirkd_ray.files import write_bytes

STATE = "scheduler.pkl"
Fate = Literal["comes", "stays", "returns", "pauses", "ends"]
"""What a scheduler has done with a trial: it is new, goes on, goes on from a donor, is paused or over."""
Hear = Callable[[str, int, int, Fate], None]
"""Takes a trial, its number, the time of its last report that was decided on, and what was decided."""
_MODULES = {
    "_Bracket": ("ray.tune.schedulers.async_hyperband", "ray.tune.schedulers.hyperband"),
    "_PBTTrialState": ("ray.tune.schedulers.pbt",),
    "_TrainingResult": ("ray.train._internal.session",),
    "Record": (__name__,),
    "scalar": ("numpy._core.multiarray", "numpy.core.multiarray"),
    "dtype": ("numpy",),
}
"""The classes that states are made of, and where they lie."""
_GIVEN = {"_hyperparam_mutations"}
"""Attributes of a scheduler that it has from its space."""


@dataclass
class Record:
    """What is known of a trial.

    Attributes:
        number: trials are numbered as they come.
        seen: generation and time of its last report.
        decision: on that report.
        paused: it waits for its turn, or for others.
        ended: the scheduler has been told of its end.
        failed: it ended with an error; when the sweep is resumed it is tried again.
        result: the figures of its last report.
        exchange: the values and the donor's checkpoint that it was given and has not reported from yet.
    """

    number: int
    seen: tuple[int, int] = (-1, -1)
    decision: str = TrialScheduler.CONTINUE
    paused: bool = False
    ended: bool = False
    failed: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    exchange: tuple[dict[str, Any], Any] | None = None


def write_state(folder: Path, records: dict[str, Record], scheduler: TrialScheduler) -> None:
    """Write the records and what the scheduler remembers, without its own functions."""
    for state in vars(scheduler).get("_trial_state", {}).values():
        if hasattr(state.last_checkpoint, "resolve"):  # a population's, still on its way from the trial
            found = state.last_checkpoint.resolve()
            state.last_checkpoint = found.checkpoint if found else None
    seen = {
        name: dict(value) if isinstance(value, defaultdict) else value
        for name, value in vars(scheduler).items()
        if not callable(value) and name not in _GIVEN
    }
    write_bytes(folder / STATE, pickle.dumps((_dumped(records, folder), _dumped(seen, folder))))


def read_records(folder: Path) -> tuple[dict[str, Record], bytes]:
    """The records, and what `read_scheduler` takes when the trials are there; empty without a file.

    Raises:
        ConfigError: the file is damaged, or names what is no part of a state.
    """
    path = folder / STATE
    if not path.is_file():
        return {}, b""
    records, seen = _loaded(path.read_bytes(), folder, {})
    return _loaded(records, folder, {}), seen


def read_scheduler(scheduler: TrialScheduler, seen: bytes, folder: Path, trials: Mapping[str, Trial]) -> None:
    """Give a new scheduler what the one before remembered.

    Raises:
        ConfigError: as `read_records`.
    """
    for name, value in _loaded(seen, folder, trials).items():
        new = vars(scheduler).get(name)
        if isinstance(new, defaultdict):  # which keeps its own default
            new.clear()
            new.update(value)
        else:
            setattr(scheduler, name, value)


def _loaded(content: bytes, folder: Path, trials: Mapping[str, Trial]) -> Any:
    try:
        return _Loader(content, folder, trials).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"{folder / STATE}: is damaged or no scheduler's state ({error}); start anew with --fresh"
        ) from None


def _dumped(value: Any, folder: Path) -> bytes:
    buffer = io.BytesIO()
    _Dumper(buffer, folder).dump(value)
    return buffer.getvalue()


class _Dumper(pickle.Pickler):
    """Trials by their ids, checkpoints by their places in the folder, which can be moved."""

    def __init__(self, file: io.BytesIO, folder: Path) -> None:
        super().__init__(file, protocol=4)
        self.folder = os.path.realpath(folder)

    def persistent_id(self, value: Any) -> tuple[str, str] | None:
        if isinstance(value, Trial):
            return "trial", value.trial_id
        if isinstance(value, ray.train.Checkpoint):
            return "checkpoint", os.path.relpath(os.path.realpath(value.path), self.folder)
        return None


class _Loader(pickle.Unpickler):
    """Reads plain values and the classes of `_MODULES`, nothing else."""

    def __init__(self, content: bytes, folder: Path, trials: Mapping[str, Trial]) -> None:
        super().__init__(io.BytesIO(content))
        self.folder, self.trials = Path(os.path.realpath(folder)), dict(trials)

    def find_class(self, module: str, name: str) -> Any:
        if module not in _MODULES.get(name, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)

    def persistent_load(self, key: tuple[str, str]) -> Any:
        kind, name = key
        if kind == "checkpoint":
            return tune.Checkpoint(str(self.folder / name))
        if name not in self.trials:  # Tune lost it with its own state
            self.trials[name] = Trial("lost", stub=True, trial_id=name, _setup_default_resource=False)
            self.trials[name].set_status(Trial.TERMINATED)
        return self.trials[name]
