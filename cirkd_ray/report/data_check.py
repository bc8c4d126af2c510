"""What a check of a data set found, as a table and lines."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from cirkd_ray.data_tools.check import Report
from cirkd_ray.report.tables import TextTable

SHOWN = 20
"""Findings that are printed."""


def print_report(console: Console, title: str, report: Report) -> None:
    """Classes, sizes and findings."""
    total = max(1, int(report.pixels.sum()) + report.ignored)
    rows = [
        (name, f"{100 * int(pixels) / total:.3f} %", str(int(images)))
        for name, pixels, images in zip(report.classes, report.pixels, report.seen, strict=True)
    ]
    rows.append(("ignored", f"{100 * report.ignored / total:.3f} %", ""))
    console.print(TextTable(("class", "pixels", "images"), tuple(rows), title).rich())
    sizes = ", ".join(f"{w}x{h} ({count})" for (h, w), count in report.sizes.most_common(5))
    more = f" and {len(report.sizes) - 5} more" if len(report.sizes) > 5 else ""
    console.print(f"{report.images} good samples; sizes {sizes or 'none'}{more}", highlight=False)
    if report.formats:
        kinds = ", ".join(f"{count} {kind}" for kind, count in report.formats.most_common())
        console.print(f"read as 8-bit RGB: {kinds} images", highlight=False)
    if report.turned:
        console.print(f"{report.turned} images carry an orientation that is not applied", highlight=False)
    for finding in report.findings:
        if finding.note:
            console.print(f"{title}, {finding.kind}: {finding.message}", highlight=False, markup=False)
    print_findings(console, title, report)


def print_findings(console: Console, title: str, report: Report) -> None:
    """How many of each kind, and the first ones."""
    findings = [finding for finding in report.findings if not finding.note]
    counts = Counter(finding.kind for finding in findings)
    for kind, count in counts.items():
        console.print(f"{title}, {kind}: {count}", style="red", highlight=False)
    # What is said once is about the whole split: it must not drown in thousands of missing files.
    for finding in sorted(findings, key=lambda found: counts[found.kind])[:SHOWN]:
        console.print(f"  {finding.message}", highlight=False, markup=False)
    if len(findings) > SHOWN:
        console.print(f"  and {len(findings) - SHOWN} more (--json FILE lists all)", highlight=False)
