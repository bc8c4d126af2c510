"""Compare methods over several seeds: intervals, paired tests against a retrained baseline, cost.

All recipes must share student, data, schedule and length. A recipe without distillation among them is the
baseline; otherwise one is made. The same command again continues, and a higher --seeds adds runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cirkd_ray.commands._common import add_out, add_set

HELP = "compare methods over seeds, with intervals and tests"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="shipped recipes or YAML files")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each method (default: 3)")
    add_set(parser)
    add_out(parser)
    parser.add_argument("--name", help="name of the comparison's directory (default: compare-RECIPE...)")
    parser.add_argument(
        "--differ",
        action="append",
        default=[],
        metavar="PATH",
        help="a setting that belongs to the methods and may differ between them",
    )
    parser.add_argument(
        "--concurrent", type=int, metavar="N", help="runs at a time at most (default: what fits)"
    )


def run(args: argparse.Namespace) -> int:
    """Run or continue the comparison, write its table and plot, print the table."""
    from cirkd_ray.cluster.compare import run_comparison
    from cirkd_ray.compare.plan import check_differ, methods_of
    from cirkd_ray.config import load_run
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.compare import methods_table, notes
    from cirkd_ray.report.compare_page import write_comparison
    from cirkd_ray.report.console import output
    from cirkd_ray.train.stages import named_folder
    from cirkd_ray.train.teacher import slug

    if args.seeds < 1 or (args.concurrent is not None and args.concurrent < 1):
        raise ConfigError("--seeds and --concurrent take numbers from 1")
    console = output()
    specs = [(recipe, load_run(recipe, args.overrides)) for recipe in args.recipes]
    check_differ(args.differ, specs[0][1])
    methods = methods_of(specs, args.differ)
    out = Path(args.out).expanduser().absolute()
    usual = slug("compare-" + "-".join(name for name in methods if name != "baseline"))[:100]
    folder = named_folder(out, usual if args.name is None else args.name)
    console.print(f"comparison -> {folder}", highlight=False)
    say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
    data = run_comparison(methods, args.seeds, folder, out, say, args.concurrent)
    page = write_comparison(data)
    console.print(methods_table(data).rich())
    console.print(notes(data), highlight=False, markup=False)
    console.print(f"report       {page}", highlight=False)
    return 1 if data.failures else 0
