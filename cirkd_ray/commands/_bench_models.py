"""Forward images/s of networks on this device (the same as `cirkd models --bench`)."""

from __future__ import annotations

import argparse

from cirkd_ray.commands import models

HELP = "forward images/s of networks"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of `cirkd models`."""
    models.add_selection(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    args.bench = True
    return models.run(args)
