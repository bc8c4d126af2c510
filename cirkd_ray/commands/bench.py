"""Measure parts of cirkd on this machine: side by side in one run, as ratios."""

from __future__ import annotations

import argparse

from cirkd_ray import bench
from cirkd_ray.commands import _bench_models

HELP = "measure losses, data, models and more on this machine"


def configure(parser: argparse.ArgumentParser) -> None:
    """One subcommand a module of `cirkd_ray.bench`, and `models`."""
    from cirkd_ray.cli import subcommands

    choices = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    for name, module in {**subcommands(bench), "models": _bench_models}.items():
        child = choices.add_parser(name, help=module.HELP, description=module.__doc__)
        module.configure(child)
        child.set_defaults(run_bench=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen measurement."""
    return int(args.run_bench(args) or 0)
