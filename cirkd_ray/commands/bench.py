"""`cirkd bench`."""

from __future__ import annotations

from typing import Any

import click
from click import argument, option

from cirkd_ray.commands import models as models_command
from cirkd_ray.commands._options import (
    COUNT,
    NOT_NEGATIVE,
    Words,
    choice,
    device_option,
    local,
    repeatable,
    require_file,
    set_option,
    several,
    size_option,
    together,
)

PARTS = ("losses", "tokens", "enqueue", "exchange")
ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
at_a_recipes_sizes = together(
    set_option(),
    device_option,
    option("--batch", type=COUNT, help="Images at a time (default: the recipe's)."),
    option("--repeat", type=COUNT, default=3, help="Repetitions."),
    choice("--clock", "wall", "cpu", help="cpu: processor time, for a busy machine."),
    option("--json", "file", callback=local, metavar="FILE", help="Write the figures there, too."),
)


@click.group()
def command() -> None:
    """Measure parts of cirkd on this machine: side by side in one run, as ratios."""


@command.command()
@repeatable("--data", "names", metavar="NAME", help="A data set (default: all file sets).")
@option("--root", metavar="DIR", help="Measure on these files (with one --data).")
@option("--split", default="val", metavar="NAME", help="Of --root.")
@option("--seconds", type=ABOVE_ZERO, default=6.0, metavar="S", help="For each set.")
@option("--workers", type=NOT_NEGATIVE, default=1, help="Loader processes of the second part.")
@option("--batch", type=COUNT, default=8, help="Images a step of the second part.")
@option("--step-ms", type=ABOVE_ZERO, default=200.0, metavar="MS", help="Length of its pretended step.")
def data(names: Words, **settings: Any) -> None:
    """Input pipelines: images/s a core, and the time that a step waits for its data.

    Three ways with the same augmentation take turns: the straightforward one (the whole image becomes float,
    is scaled, padded and cut; labels by a loop over ids), this package on the original files, and this
    package on the prepared form. Without --root, files of each set's format and size are drawn first.
    """
    from cirkd_ray.bench.data import run
    from cirkd_ray.report.console import output

    sheets = run(names, **settings)
    console = output()
    for sheet in sheets:
        console.print(sheet.rich())


@command.command()
@option("--model", "name", default="deeplabv3_resnet18", metavar="NAME", help="Network.")
@option("--classes", type=COUNT, default=19, metavar="K", help="Number of classes.")
@size_option("Of the image.", default=(512, 1024), least=8)
@device_option
@option("--repeat", type=COUNT, default=5, help="Repetitions.")
def evaluation(name: str, **settings: Any) -> None:
    """Evaluation: what upsampling, choosing classes, confusion matrix and boundaries cost beside the network.

    Each part is timed alone; the best of several repetitions counts.
    """
    from cirkd_ray.bench.evaluation import run
    from cirkd_ray.report.console import output

    output().print(run(name, **settings).rich())


@command.command()
@device_option
@repeatable("--shape", "shapes", metavar="NAME", help="cityscapes, ade20k, segformer or tiny.")
@repeatable("--loss", "losses", metavar="NAME", help="Only these losses.")
@repeatable("--part", "parts", type=click.Choice(PARTS), help="Only these tables.")
@choice("--clock", "wall", "cpu", help="cpu: processor time, for a busy machine.")
@option("--repeat", type=COUNT, default=3, help="Repetitions.")
def losses(**settings: Any) -> None:
    """Losses: time, memory and traffic beside naive code of the same equations.

    Times are forward plus backward, the best of several repetitions taken in turns; compare the ratios of one
    run.
    """
    from cirkd_ray.bench.losses import run

    run(**settings)


@command.command()
@models_command.selection
def models(**settings: Any) -> None:
    """Forward images/s of networks on this device (the same as `cirkd models --bench`)."""
    models_command.show(bench=True, **settings)


@command.command()
@argument("recipes", nargs=-1, metavar="[RECIPE...]")
@set_option()
@device_option
@option("--ranks", type=COUNT, default=1, help="Workers that share the batch; the others are pretended.")
@option("--batch", type=COUNT, help="Images a worker at a time (default: the recipe's).")
@option("--repeat", type=COUNT, default=3, help="Repetitions.")
@option("--json", "file", callback=local, metavar="FILE", help="Write the figures there, too.")
def step(recipes: Words, **settings: Any) -> None:
    """Training steps: time, memory and arithmetic of each part, beside the student without a teacher.

    At the recipe's sizes, with random images and weights. Where CIRKD_DEVICE_COUNTERS names the counters of
    a device that computes nothing (MODULE:FUNCTION), there are counts and rooflines only.
    """
    require_file("--json", settings["file"])
    from cirkd_ray.bench.step import run
    from cirkd_ray.report.console import output

    tables = run(recipes or ("quickstart",), **settings)
    console = output()
    for table in tables:
        console.print(table.rich())


@command.command()
@argument("recipes", nargs=-1, metavar="[RECIPE...]")
@at_a_recipes_sizes
def layout(recipes: Words, **settings: Any) -> None:
    """Memory layouts: a recipe's networks with the channel last beside the same with the channel first.

    Evaluation, the teacher's forward pass and training at the recipe's sizes, with random images and weights.
    Which is faster depends on network and machine; `train.channels_last` takes the answer.
    """
    require_file("--json", settings["file"])
    from cirkd_ray.bench.layout import run
    from cirkd_ray.report.console import output

    output().print(run(recipes or ("quickstart",), **settings).rich())


@command.command()
@option("--members", type=COUNT, default=4, metavar="K", help="Runs of the cohort.")
@repeatable("--recipe", "recipes", metavar="RECIPE", help="Of the members, in turn (default: quickstart).")
@at_a_recipes_sizes
def cohort(**settings: Any) -> None:
    """Cohorts: a step of K members that share a teacher, beside the same members apart.

    At the recipe's sizes, with random images and weights; loading and augmentation, which a cohort shares as
    well, are left out. Both ways take turns in one run; the best of several repetitions counts.
    """
    require_file("--json", settings["file"])
    from cirkd_ray.bench.cohort import run
    from cirkd_ray.report.console import output

    output().print(run(**settings).rich())


@command.command()
@argument("recipe", default="quickstart", metavar="[RECIPE]")
@several("--workers", type=COUNT, default=(1, 2), metavar="N...", help="Workers of the trainings (1 2).")
@several("--gpus", type=COUNT, default=(8, 64, 256), metavar="N...", help="Workers of the model (8 64 256).")
@set_option()
@device_option
@option(
    "--batch", type=COUNT, help="Images a worker and micro-batch (default: the recipe's at most workers)."
)
@option("--repeat", type=COUNT, default=21, help="Turns of each training, of five steps each.")
@option("--bandwidth", type=ABOVE_ZERO, default=25.0, metavar="GB/S", help="Between workers of the model.")
@option("--latency", type=ABOVE_ZERO, default=20.0, metavar="US", help="Of a hop between them.")
@option("--out", metavar="DIR", callback=local, help="Where checkpoints are written meanwhile.")
@option("--ray/--no-ray", default=True, help="Also measure what Ray and a checkpoint take.")
@option("--json", "file", callback=local, metavar="FILE", help="Write the figures there, too.")
def scale(recipe: str, **settings: Any) -> None:
    """Scaling: throughput of one and more workers, where seconds and bytes of a step go, and a model of more.

    The trainings take turns in one run, so that they can be compared on a busy machine; one of them, in a
    worker of Ray, runs beside the same in a plain process. docs/scale.md has the model's formula.
    """
    require_file("--json", settings["file"])
    from cirkd_ray.bench.scale import run
    from cirkd_ray.report.console import output

    console = output()
    for table in run(recipe, **settings):
        console.print(table.rich())
