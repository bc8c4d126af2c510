"""Throughput of one and more workers, where a step's seconds and bytes go, and what more GPUs would do.

Trainings take turns of a few steps each in one run (`_scale_turns`). All are the ordinary loop; images and
the teacher are the recipe's, or an untrained teacher where it has to be trained first.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.bench._scale_model import BLOCK, PARTS, SAVES
from cirkd_ray.errors import ConfigError
from cirkd_ray.files import write_text

if TYPE_CHECKING:
    from cirkd_ray.bench._scale_run import Found
    from cirkd_ray.config import RunSpec
    from cirkd_ray.report.tables import TextTable


def run(
    recipe: str,
    *,
    workers: Sequence[int] = (1, 2),
    gpus: Sequence[int] = (8, 64, 256),
    overrides: Sequence[str] = (),
    device: str = "auto",
    batch: int | None = None,
    repeat: int = 21,
    bandwidth: float = 25.0,
    latency: float = 20.0,
    out: str | None = None,
    ray: bool = True,
    file: str | None = None,
) -> list[TextTable]:
    """Measure trainings of a recipe with so many workers, and predict larger ones.

    Args:
        recipe: a shipped name or file.
        workers: of the trainings that are measured; each has as many images.
        gpus: workers that are predicted.
        overrides: `PATH=VALUE`.
        device: "auto", "cpu" or "cuda".
        batch: images of a worker and micro-batch; by default those of the recipe with the most workers.
        repeat: turns of each training.
        bandwidth, latency: of their links: GB a second, microseconds a hop.
        out: where checkpoints are written meanwhile; by default the folder of temporary files.
        ray: also measure what Ray adds, and a checkpoint.
        file: takes the figures as JSON.

    Raises:
        UserError: the recipe is wrong, GPUs are too few, or a training ended before its time.
    """
    from cirkd_ray.bench._scale_count import counted
    from cirkd_ray.bench._scale_model import Link
    from cirkd_ray.bench._scale_run import beside_ray, check_machine, groups, prepared
    from cirkd_ray.config import load_run
    from cirkd_ray.device import local_device

    place, several = local_device(device), sorted({*workers})
    check_machine(several[-1], place, ray)
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cirkd-scale-", dir=out) as folder:
        spec = prepared(load_run(recipe, [*overrides, f"cluster.device={place.type}"]), Path(folder))
        images = batch or _images(spec, several[-1])
        messages = {n: counted(spec, n, images, place) for n in sorted({*several, *gpus})}
        turns = max(repeat, SAVES + 2)
        specs = {n: _paced(spec, n, images, turns) for n in several}
        found = groups(specs, Path(folder), turns)
        beside = beside_ray(_paced(spec, 1, images, turns), Path(folder), turns) if ray else {}
    each = {n: _bytes(n, *counts) for n, counts in messages.items() if n > 1}
    images *= spec.train.accumulate
    figures = {"recipe": recipe, "device": place.type, "images": images, "bytes": each}
    figures |= _predicted(images, found, messages, gpus, Link(bandwidth * 1e9, latency * 1e-6))
    if beside:
        figures |= {"ray": _overhead(beside), "checkpoint": _stall(beside, spec)}
    if file is not None:
        write_text(Path(file), json.dumps(figures, indent=1) + "\n")
    return _tables(figures)


def _images(spec: RunSpec, workers: int) -> int:
    """Images of a worker and micro-batch.

    Raises:
        ConfigError: the recipe's batch does not divide.
    """
    parts = workers * spec.train.accumulate
    if spec.train.batch_size % parts:
        raise ConfigError(
            f"--workers: {spec.train.batch_size} images do not divide by {parts}; give --batch, the images "
            "of one worker"
        )
    return spec.train.batch_size // parts


def _paced(spec: RunSpec, workers: int, images: int, turns: int) -> RunSpec:
    """The recipe with so many workers, for so many turns and one step more, at whose end it is validated."""
    tree = spec.to_dict()
    steps = BLOCK * turns + 1
    tree["train"] |= {
        "batch_size": images * workers * spec.train.accumulate,
        "steps": steps,
        "validate_every": steps,
        "validate_limit": 1,
        "checkpoint_every": BLOCK * SAVES,
        "pictures": 0,
    }
    tree["cluster"] |= {"workers": workers, "max_failures": 0}
    return type(spec).model_validate({**tree, "baseline": False})


def _measured(found: Found, workers: int, images: int) -> dict[str, Any]:
    """Of one training: seconds of a step and of its parts, and images a second of all workers."""
    blocks = [block for block in found.blocks[1:] if not block.writing]
    seconds = statistics.median(block.seconds for block in blocks)
    steps = found.figures[0]["parts"][BLOCK:]
    parts = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    parts["data"] = statistics.median(block.data for block in blocks)
    parts["report"] = max(0.0, seconds - sum(parts.values()))
    return {
        "seconds": seconds,
        "images_per_second": workers * images / seconds,
        "parts": {name: parts[name] for name in PARTS},
    }


def _bytes(ranks: int, messages: Sequence[Any], buckets: Sequence[int]) -> dict[str, Any]:
    """Of each kind of exchange the number of messages, the bytes that a worker gives, and those it sends."""
    from cirkd_ray.bench._scale_model import traffic

    found: dict[str, Any] = {}
    every = [(m.kind, m.operation, m.size, m.ranks) for m in messages]
    every += [("gradients", "all_reduce", size, ranks) for size in buckets]
    for kind, operation, size, group in every:
        each = found.setdefault(kind, {"messages": 0, "bytes": 0, "sent": 0.0})
        each["messages"] += 1
        each["bytes"] += size
        each["sent"] += traffic(operation, size, group)
    found.setdefault("gradients", {})["buckets"] = list(buckets)
    return found


def _predicted(
    images: int,
    found: Mapping[str, Found],
    messages: Mapping[int, Any],
    gpus: Sequence[int],
    link: Any,
) -> dict[str, Any]:
    """What was measured of the trainings, steps of more GPUs, and the model beside what was measured."""
    from cirkd_ray.bench._scale_model import Bucket, Link, Message, predict

    trainings = {int(name): each for name, each in found.items() if name.isdigit()}
    measured = {n: _measured(each, n, images) for n, each in trainings.items()}
    alone = {k: v for k, v in measured[min(measured)]["parts"].items() if k != "communication"}
    shown = [each.figures[0]["buckets"] for each in found.values() if each.figures[0]["buckets"]]
    full: list[tuple[float, int]] = shown[-1] if shown else []

    def buckets(sizes: Sequence[int]) -> list[Bucket]:
        before, result = 0, list[Bucket]()
        for index, size in enumerate(sizes):
            before += size
            ready = full[index][0] if len(full) == len(sizes) else before / sum(sizes)
            result.append(Bucket(ready, size))
        return result

    more = {
        n: predict(alone, messages[n][0], buckets(messages[n][1]), n, images, link)._asdict() for n in gpus
    }
    checks: dict[int, Any] = {}
    for n in (n for n in trainings if n > 1):
        real = trainings[n].figures[0]
        sent = [Message(**m) for m in real["messages"]], [Bucket(*bucket) for bucket in real["buckets"]]
        there = predict(alone, *sent, n, images, Link(*real["link"]))
        checks[n] = {"link": Link(*real["link"])._asdict()}
        for name in {str(min(trainings)), f"{n} apart"} & set(found):
            checks[n][name] = _check(found[name].blocks, trainings[n].blocks, there.waited + there.exposed)
    return {"measured": measured, "predicted": more, "checks": checks, "link": link._asdict()}


def _check(alone: Sequence[Any], together: Sequence[Any], exchanges: float) -> dict[str, float]:
    """Predicted / measured step, of pairs of turns the median: the exchanges are added to a step without."""
    from cirkd_ray.bench._scale_model import median

    pairs = [(a, b) for a, b in zip(alone[1:], together[1:], strict=True) if not (a.writing or b.writing)]
    return median([(a.seconds + exchanges) / b.seconds for a, b in pairs])._asdict()


def _overhead(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's part of a step: of pairs of turns the median of the ratios, and that of the processor's time."""
    from cirkd_ray.bench._scale_model import median

    pairs = [
        (plain, ray)
        for plain, ray in zip(beside["plain"].blocks[1:], beside["Ray"].blocks[1:], strict=True)
        if not (plain.writing or ray.writing)
    ]
    wall = median([ray.seconds / plain.seconds - 1 for plain, ray in pairs])
    processor = median([ray.processor / plain.processor - 1 for plain, ray in pairs])
    return {
        "step_seconds": statistics.median(plain.seconds for plain, _ in pairs),
        "pairs": len(pairs),
        "overhead": wall._asdict(),
        "processor": processor._asdict(),
        "own_processes": beside["own"],
    }


def _stall(beside: Mapping[str, Any], spec: RunSpec) -> dict[str, Any]:
    """Seconds that a checkpoint stops the training for, and by which steps beside its writing are slower."""
    found: dict[str, Any] = {"every": spec.train.checkpoint_every}
    for name in ("plain", "Ray"):
        blocks = beside[name].blocks[1:]
        usual = statistics.median(block.seconds for block in blocks if not block.writing)
        stall = statistics.median(block.stall for block in blocks if block.stall is not None)
        slower = statistics.median(block.seconds - usual for block in blocks if block.writing) * BLOCK
        steps = spec.train.checkpoint_every * usual
        share = {"share": stall / (steps + stall), "share_with_writing": max(0.0, stall + slower) / steps}
        found[name] = {"stall_seconds": stall, "slower_seconds": slower, **share}
    return found


def _tables(figures: Mapping[str, Any]) -> list[TextTable]:
    from cirkd_ray.bench._scale_tables import tables

    return tables(figures)
