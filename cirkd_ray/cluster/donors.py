"""Checkpoints that a population still needs, beside the newest few that each run keeps of its own.

A run deletes its old checkpoints. Another trial may be given one of them later: the scheduler remembers the
one at a trial's last exchange. So each reported checkpoint is held by a second name (a hard link, which takes
no space while the first is there), until the scheduler has moved on and no living trial points to it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from cirkd_ray.files import whole_folder

HELD = "donors"
Place = tuple[int, int]
"""Generation and step."""


def held_place(checkpoint: Path) -> Path:
    """Where a checkpoint `TRIAL/gN/checkpoints/step_S` of a trial is held: in the same run's folder.

    There lie the scores of the validation after it, which a run that starts from it takes.
    """
    return checkpoint.parent.parent / HELD / checkpoint.name


def hold(checkpoint: Path) -> Path:
    """Hold a checkpoint; returns the name that stays."""
    place = held_place(checkpoint)
    with whole_folder(place) as partial:
        shutil.copytree(checkpoint, partial, copy_function=_link, dirs_exist_ok=True)
    return place


def release(trials: Path, at: Mapping[str, Place], pointed: Iterable[Path]) -> None:
    """Delete what no trial needs.

    Args:
        trials: the folder of all trials.
        at: the last report of each trial that has reported.
        pointed: held checkpoints that living trials point to.
    """
    needed = {path.parts[-4:] for path in pointed}
    for trial, (generation, step) in at.items():
        for path in (trials / trial).glob(f"g*/{HELD}/step_*"):
            if _place(path) <= (generation, step) and path.parts[-4:] not in needed:
                shutil.rmtree(path, ignore_errors=True)
        for earlier in range(generation):
            shutil.rmtree(trials / trial / f"g{earlier}" / "checkpoints", ignore_errors=True)


def release_all(trials: Path) -> None:
    """Delete what is held: the search has ended."""
    for path in trials.glob(f"*/g*/{HELD}"):
        shutil.rmtree(path, ignore_errors=True)


def _place(path: Path) -> Place:
    step = path.name.removeprefix("step_").partition("-")[0]
    return int(path.parent.parent.name[1:]), int(step)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
