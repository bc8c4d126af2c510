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
        bandwidth: GB a second between two of the workers that are predicted.
        latency: microseconds of each hop between them.
        out: where checkpoints are written meanwhile; by default the folder of temporary files.
        ray: also measure what Ray adds, and a checkpoint.
        file: takes the figures as JSON.

    Raises:
        ConfigError: the recipe is wrong, or the machine has too few GPUs.
        TrainingError: a training ended before its time.
    """
    from cirkd_ray.bench._scale_count import counted
    from cirkd_ray.bench._scale_model import Link
    from cirkd_ray.bench._scale_run import beside_ray, check_machine, groups, prepared
    from cirkd_ray.config import load_run
    from cirkd_ray.device import local_device

    place, several = local_device(device), sorted({*workers})
    check_machine(several[-1], place, ray)
    with tempfile.TemporaryDirectory(prefix="cirkd-scale-", dir=out) as folder:
        spec = prepared(load_run(recipe, [*overrides, f"cluster.device={place.type}"]), Path(folder))
        images = batch or _images(spec, several[-1])
        messages = {n: counted(spec, n, images, place) for n in sorted({*several, *gpus})}
        turns = max(repeat, SAVES + 2)
        specs = {n: _paced(spec, n, images, turns) for n in several}
        found = groups(specs, Path(folder), turns)
        beside = beside_ray(_paced(spec, 1, images, turns), Path(folder), turns) if ray else {}
    in_a_step = images * spec.train.accumulate
    figures: dict[str, Any] = {
        "recipe": recipe,
        "device": place.type,
        "images": in_a_step,
        "link": {"bandwidth": bandwidth * 1e9, "latency": latency * 1e-6},
        "measured": {n: _measured(found[str(n)], n, in_a_step) for n in several},
        "bytes": {n: _bytes(n, *each) for n, each in messages.items() if n > 1},
    }
    figures |= _predicted(figures, found, messages, gpus, Link(bandwidth * 1e9, latency * 1e-6))
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
    figures: Mapping[str, Any],
    found: Mapping[str, Found],
    messages: Mapping[int, Any],
    gpus: Sequence[int],
    link: Any,
) -> dict[str, Any]:
    """Steps of more GPUs, and of the measured workers beside what was measured."""
    from cirkd_ray.bench._scale_model import Bucket, Link, Message, predict

    measured, images = figures["measured"], figures["images"]
    least = min(measured)
    alone = {k: v for k, v in measured[least]["parts"].items() if k != "communication"}
    shown = [f.figures[0]["buckets"] for f in found.values() if f.figures[0]["buckets"]]
    full: list[tuple[float, int]] = shown[-1] if shown else []

    def buckets(sizes: Sequence[int]) -> list[Bucket]:
        total, before, result = sum(sizes), 0, list[Bucket]()
        for index, size in enumerate(sizes):
            before += size
            ready = full[index][0] if len(full) == len(sizes) else before / total
            result.append(Bucket(ready, size))
        return result

    more = {
        n: predict(alone, messages[n][0], buckets(messages[n][1]), n, images, link)._asdict() for n in gpus
    }
    checks: dict[int, Any] = {}
    for n in (n for n in measured if n > 1):
        real = found[str(n)].figures[0]
        real_link, real_messages = Link(*real["link"]), [Message(**m) for m in real["messages"]]
        sent = [Bucket(*bucket) for bucket in real["buckets"]]
        one = predict(alone, real_messages, sent, n, images, real_link)
        checks[n] = {"link": real_link._asdict(), "from one": one.seconds / measured[n]["seconds"]}
        if f"{n} apart" in found:
            apart = _measured(found[f"{n} apart"], n, images)["parts"]
            side = {k: v for k, v in apart.items() if k != "communication"}
            beside = predict(side, real_messages, sent, n, images, real_link)
            checks[n]["from as many apart"] = beside.seconds / measured[n]["seconds"]
    return {"predicted": more, "checks": checks}


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
