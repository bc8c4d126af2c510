"""Scores on a run's validation split: of the student, and once of its teacher, which are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn

from cirkd_ray.config import TeacherSpec
from cirkd_ray.data.identity import identity
from cirkd_ray.data.loader import Batches, Patient, eval_loader
from cirkd_ray.device import without_autotuning
from cirkd_ray.errors import UserError
from cirkd_ray.evaluate.evaluation import COUNTS, EvaluationResult, evaluate, over_classes
from cirkd_ray.files import read_json, write_text
from cirkd_ray.train.agreement import StopAgreement
from cirkd_ray.train.build import Run
from cirkd_ray.train.distributed import broadcast_text
from cirkd_ray.train.underway import Underway
from cirkd_ray.weights.card import find_card, locate

SCORES = "teacher.json"
"""Teachers' scores, by what they were measured on: in the folder of a run, or of a sweep for all its runs."""
NEAR = 0.05
"""A network is near chance that goes less than this share of the way from chance to a perfect score."""
Scores = dict[str, Any]


@dataclass(frozen=True)
class ValidationSplit:
    """The images that a run, or all runs of a cohort, are validated on.

    Attributes:
        batches: this rank's; all validations have the same loader processes.
        digits: for what a validation depends on besides the network; on the main rank.
        stops: asked between batches whether the run is to end.
    """

    batches: Batches
    digits: str
    stops: StopAgreement


def validation_split(run: Run, stops: StopAgreement, patience: Patient | None = None) -> ValidationSplit:
    """That of a run, and of all that share its data and how it validates."""
    batches = _batches(run, run.world.rank, run.world.size, patience)
    return ValidationSplit(batches, measured_on(run) if run.world.is_main else "", stops)


def _batches(run: Run, rank: int, ranks: int, patience: Patient | None = None) -> Batches:
    """The validation images of a rank of so many."""
    return eval_loader(
        run.val_set,
        rank,
        ranks,
        run.spec.data.workers,
        batch_size=run.spec.train.validate_batch_size,
        pin_memory=run.world.device.type == "cuda",
        indices=range(images(run)),
        patience=patience,
    )


def images(run: Run) -> int:
    """How many images a validation takes."""
    total = len(run.val_set)
    return min(run.spec.train.validate_limit or total, total)


def validate(
    run: Run, network: nn.Module, split: ValidationSplit, alike: bool = False, **options: Any
) -> EvaluationResult:
    """Score a network as the run's recipe says; every rank calls it.

    Args:
        run: the run.
        network: its student or teacher.
        split: the images.
        alike: each rank takes all images, in place of its share: the network's weights are shared out.
        options: what `evaluate` takes for pictures, and `on_images`.

    Raises:
        Stopped: asked to, on all ranks, between two batches.
    """
    share = run.world.rank, run.world.size, split.batches
    rank, ranks, batches = (0, 1, _batches(run, 0, 1)) if alike else share
    with without_autotuning():
        return evaluate(
            network,
            run.val_set,
            device=run.world.device,
            precision=run.precision,
            rank=rank,
            world_size=ranks,
            limit=run.spec.train.validate_limit,
            batch_size=run.spec.train.validate_batch_size,
            batches=split.stops.between(batches),
            views=run.views,
            **options,
        )


def measured_on(run: Run) -> str:
    """Sixteen digits for what a validation depends on besides the network."""
    facts = (
        identity({run.spec.data.val_split: run.val_set}).digest,
        run.spec.train.validate_limit,
        run.spec.train.validate_window,
        run.spec.train.validate_stride,
        run.precision,
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def scores_of(result: EvaluationResult) -> Scores:
    """The figures that are kept: mIoU, over how many classes, pixel accuracy, and the mIoU of chance."""
    metrics = result.metrics()
    return {
        **{key: metrics[key] for key in ("miou", *COUNTS, "pixel_accuracy")},
        "chance": chance(result.confusion.matrix.sum(dim=1).tolist()),
    }


def chance(pixels: list[int]) -> float:
    """mIoU of the better of two guesses that see no image.

    The classes have the shares p of all labelled pixels. Always predicting the most frequent class has its
    share as one IoU, and zeros. Predicting one of K classes at random has IoU p / (1 + K p - p).

    Args:
        pixels: labelled pixels of each class.
    """
    shares = [count / sum(pixels) for count in pixels if count]
    if not shares:
        return 0.0
    number = len(shares)
    return max(max(shares), sum(p / (1 + number * p - p) for p in shares)) / number


def near_chance(scores: Scores) -> bool:
    """Whether such a network has hardly anything to teach."""
    return bool(scores["miou"] < scores["chance"] + NEAR * (1 - scores["chance"]))


def shared_scores(folder: Path) -> None:
    """Let the runs below a sweep's or comparison's folder keep their teachers' scores together."""
    if not (folder / SCORES).is_file():
        write_text(folder / SCORES, "{}")


def score_teacher(run: Run, told: Underway, split: ValidationSplit, step: int) -> Scores | None:
    """The teacher's scores on the run's validation split; every rank calls it.

    They are looked up in the card of its weights and in what was kept, by what they were measured on;
    where they are not known, the teacher is evaluated as the student will be.

    Args:
        run: the run.
        told: hears what is found, and knows the run's folder.
        split: its validation images.
        step: steps that are done.

    Returns:
        None for a run without a teacher, and for a teacher that scores no classes.
    """
    if run.teacher is None or run.spec.teacher is None or not run.teacher.num_classes:
        return None
    known: Scores | None = None
    say = told.message
    if run.world.is_main:
        place = _ledger(told.directory.path)
        key = f"{split.digits}-{_teacher_digits(run.spec.teacher)}"
        known = _of_card(run.spec.teacher, split.digits) or (read_json(place) or {}).get(key)
    known = json.loads(broadcast_text(json.dumps(known), run.world))
    if known is None:
        say("teacher: scoring it on this run's validation split")
        seen = told.scoring("teacher", "scoring the teacher", step, images(run))
        known = scores_of(validate(run, run.teacher, split, alike=run.shared.sharded, on_images=seen))
    if COUNTS[0] not in known:  # kept by an earlier version: `classes` are those that the mean is over
        known |= {COUNTS[0]: known["classes"], "classes": len(run.val_set.classes)}
    if run.world.is_main:
        told.patience.write(lambda: _keep(place, key, known))
    miou, guessed = 100 * known["miou"], 100 * known["chance"]
    say(f"teacher: mIoU {miou:.2f} % on this run's validation split, over {over_classes(known)}")
    if near_chance(known):
        say(
            f"WARNING: teacher: is hardly better than chance here (mIoU {miou:.2f} %, of guesses "
            f"{guessed:.2f} %); see whether it was trained on these classes, in this order"
        )
    return known


def _keep(place: Path, key: str, scores: Scores) -> None:
    with FileLock(place.parent / f".{place.name}.lock"):  # the runs of a sweep share it
        write_text(place, json.dumps({**(read_json(place) or {}), key: scores}, indent=1))


def tell_better_student(teacher: Scores | None, best: dict[str, Any], say: Callable[[str], None]) -> None:
    """Warn where the student left its teacher behind."""
    if teacher is not None and best.get("miou", 0.0) > teacher["miou"]:
        classes = f" over {over_classes(best)}" if over_classes(best) else ""
        say(
            f"WARNING: teacher: is worse than its student here (mIoU {100 * teacher['miou']:.2f} %, the "
            f"student's best {100 * best['miou']:.2f} %{classes}); a better teacher would teach more"
        )


def _ledger(folder: Path) -> Path:
    """Where scores are kept: in the sweep or comparison around a run, if there is one, else in its folder."""
    return next((f / SCORES for f in folder.parents[:3] if (f / SCORES).is_file()), folder / SCORES)


def _teacher_digits(teacher: TeacherSpec) -> str:
    """Tells teachers apart: by their weights file, in whatever folder it lies, or by their factory."""
    facts: list[Any] = [teacher.model_dump(mode="json") if teacher.weights is None else None]
    if teacher.weights is not None:
        found = locate(Path(teacher.weights))[0].stat()
        facts += [found.st_size, found.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _of_card(teacher: TeacherSpec, digits: str) -> Scores | None:
    """The scores in the card of the teacher's weights, if they were measured on the same."""
    if teacher.weights is None:
        return None
    try:
        card = find_card(teacher.weights) or {}
    except UserError:
        return None
    measured = card.get("measured") or {}
    return measured.get("scores") if measured.get("on") == digits else None
