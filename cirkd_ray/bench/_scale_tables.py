"""What `bench scale` found, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cirkd_ray.bench._scale_model import LONG, OVERHEAD, PARTS, STALL
from cirkd_ray.report.tables import TextTable


def tables(figures: Mapping[str, Any]) -> list[TextTable]:
    """Throughput and parts, bytes, predictions, and what Ray and checkpoints take."""
    found = [_measured(figures), _bytes(figures), _predicted(figures)]
    return [*found, _ray(figures)] if "ray" in figures else found


def _measured(figures: Mapping[str, Any]) -> TextTable:
    first = figures["measured"][min(figures["measured"])]["images_per_second"] / min(figures["measured"])
    rows = []
    for workers, each in figures["measured"].items():
        rate = each["images_per_second"]
        parts = (f"{1e3 * each['parts'][name]:.1f}" for name in PARTS)
        rows.append(
            (
                str(workers),
                f"{rate:.2f}",
                f"{rate / workers / first:.2f}",
                f"{1e3 * each['seconds']:.1f}",
                *parts,
            )
        )
    title = f"{figures['recipe']}: {figures['images']} images a worker and step, {figures['device']}; ms"
    return TextTable(("workers", "images/s", "a worker's", "step", *PARTS), tuple(rows), title)


def _bytes(figures: Mapping[str, Any]) -> TextTable:
    counts = figures["bytes"]
    kinds = sorted({kind for each in counts.values() for kind in each})
    rows = []
    for kind in kinds:
        cells = []
        for each in counts.values():
            of_kind = each.get(kind) or {}
            number, sent = of_kind.get("messages", 0), of_kind.get("sent", 0.0)
            cells.append(f"{number} x, {sent / 2**20:.3f}")
        rows.append((kind, *cells))
    columns = ("exchange", *(f"{n} workers" for n in counts))
    return TextTable(columns, tuple(rows), "messages a step, and MiB that each worker sends (a ring)")


def _predicted(figures: Mapping[str, Any]) -> TextTable:
    link = figures["link"]
    title = (
        f"model: {link['bandwidth'] / 1e9:g} GB/s and {link['latency'] * 1e6:g} us a hop between workers; "
        "arithmetic as measured here"
    )
    for workers, check in figures["checks"].items():
        said = ", ".join(
            f"from {name} {each['value']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
            for name, each in sorted(check.items())
            if name != "link"
        )
        title += f"\npredicted / measured step, {workers} workers on this machine's link: {said}"
    rows = tuple(
        (
            str(n),
            f"{1e3 * each['seconds']:.1f}",
            f"{1e3 * each['waited']:.2f}",
            f"{1e3 * each['gradients']:.2f}",
            f"{1e3 * each['exposed']:.2f}",
            f"{each['images_per_second']:.1f}",
            f"{100 * each['efficiency']:.1f} %",
        )
        for n, each in figures["predicted"].items()
    )
    columns = ("GPUs", "step ms", "waited ms", "gradients ms", "not hidden ms", "images/s", "efficiency")
    return TextTable(columns, rows, title)


def _ray(figures: Mapping[str, Any]) -> TextTable:
    ray, saved = figures["ray"], figures["checkpoint"]
    wall, processor = ray["overhead"], ray["processor"]
    seconds, every = ray["step_seconds"], saved["every"]
    title = f"Ray beside a plain process: {ray['pairs']} pairs of turns, steps of {1e3 * seconds:.0f} ms"
    if seconds < LONG:
        title += (
            f"\nsteps are shorter than {1e3 * LONG:.0f} ms, for which the aims are: give a larger --batch"
        )
    rows = [
        (name, f"{100 * each['value']:.2f} %", f"{100 * each['low']:.2f} to {100 * each['high']:.2f}", aim)
        for name, each, aim in (
            ("Ray's part of a step", wall, f"< {100 * OVERHEAD:.0f} %"),
            ("the same in processor time", processor, ""),
        )
    ]
    rows.append(("processors that Ray's own processes keep busy", f"{ray['own_processes']:.3f}", "", ""))
    for name in ("plain", "Ray"):
        each = saved[name]
        share, whole = 100 * each["share"], 100 * each["share_with_writing"]
        rows.append(
            (
                f"a checkpoint every {every} steps, {name}: {1e3 * each['stall_seconds']:.1f} ms",
                f"{share:.3f} %",
                f"{whole:.3f} with its writing",
                f"< {100 * STALL:.0f} %",
            )
        )
    return TextTable(("", "share", "95 % interval", "aim"), tuple(rows), title)
