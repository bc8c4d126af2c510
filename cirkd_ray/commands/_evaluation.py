"""What `cirkd eval` and `cirkd predict` share: which network, which data, seen how."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click import argument, option

from cirkd_ray.commands._options import (
    COUNT,
    NOT_NEGATIVE,
    Decorator,
    Words,
    accept_data_option,
    choice,
    device_option,
    set_option,
    several,
    together,
)

if TYPE_CHECKING:
    from cirkd_ray.data.base import SegmentationDataset
    from cirkd_ray.evaluate.inference import Views
    from cirkd_ray.evaluate.job import EvaluationJob
    from cirkd_ray.report.evaluation import Evaluation


def _size(text: str) -> tuple[int, int]:
    """`512x1024` or `769` as (height, width)."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is no size; write HEIGHTxWIDTH, e.g. 512x1024")
    return int(parts[0]), int(parts[-1])


def model_options(optional: bool = False) -> Decorator:
    """MODEL, `--network`, `--device`, `--precision`."""
    what = "A run's folder, model.json, or a weights file."
    return together(
        argument("model", metavar="[MODEL]" if optional else "MODEL", required=not optional, help=what),
        option("--network", metavar="NAME", help="The network of a weights file that does not say."),
        device_option,
        choice("--precision", "run", "auto", "fp32", "bf16", "fp16", help="Run: as in the run's validation."),
    )


def data_options(evaluated: str = "") -> Decorator:
    """`--data`, `--root`, `--split`, `--set`, how images are read, and how they are seen.

    Args:
        evaluated: when the command evaluates, for the help of what applies only then.
    """
    batch = f"Images of equal size run together{evaluated} (default: 1)."
    loaders = f"Processes that read images, per worker{evaluated} (default: 0)."
    return together(
        option("--data", metavar="NAME", help="Data set (default: the run's)."),
        option("--root", metavar="DIR", help="The folder that it lies in (default: the run's)."),
        option("--split", metavar="NAME", help="Default: the run's validation split, or val."),
        set_option(help="Override a setting data.NAME of the data set."),
        option("--limit", type=COUNT, help="Only the first N images."),
        option("--batch-size", type=COUNT, help=batch),
        option("--loaders", type=NOT_NEGATIVE, help=loaders),
        several("--scales", type=float, default=[1.0], metavar="S...", help="E.g. 0.75 1 1.25."),
        option("--flip", is_flag=True, help="Also the mirror image at each scale."),
        option("--window", type=_size, metavar="HxW", help="Slide a window of that size over images."),
        option("--stride", type=_size, metavar="HxW", help="Of the window (default: 2/3 of it)."),
        choice("--average", "logits", "probabilities", help="What views are averaged as."),
        accept_data_option,
    )


@dataclass(frozen=True)
class Chosen:
    """The values of these options."""

    model: str | None
    network: str | None
    device: str
    precision: str
    data: str | None
    root: str | None
    split: str | None
    overrides: Words
    limit: int | None
    batch_size: int | None
    loaders: int | None
    scales: tuple[float, ...]
    flip: bool
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    average: Literal["logits", "probabilities"]
    accept_data: bool = False

    def __post_init__(self) -> None:
        """Fetch a model that lies behind a URL."""
        from cirkd_ray.remote.address import is_url
        from cirkd_ray.weights.card import on_this_machine

        if self.model is not None and is_url(self.model):
            object.__setattr__(self, "model", str(on_this_machine(self.model)))

    def views(self) -> Views:
        """How the images are seen."""
        from cirkd_ray.errors import ConfigError
        from cirkd_ray.evaluate.inference import SlidingWindow, Views

        if self.stride and not self.window:
            raise ConfigError("--stride: goes with --window")
        bad = [scale for scale in self.scales if not (math.isfinite(scale) and scale > 0)]
        if bad:
            raise ConfigError(f"--scales: factors must be positive, got {bad[0]:g}")
        window = SlidingWindow(self.window, self.stride) if self.window else None
        return Views(self.scales, self.flip, window, self.average)

    def job(self, boundary: bool = False) -> EvaluationJob:
        """The evaluation that the options describe.

        Raises:
            ConfigError: no data set is known, or a setting is wrong.
        """
        from cirkd_ray.evaluate.job import EvaluationJob
        from cirkd_ray.remote.copies import address

        assert self.model is not None
        data = self.data_settings()
        usual = data.pop("val_split", None) or "val"
        self._hold_there(data, self.split or usual)
        return EvaluationJob(
            model=address(Path(self.model).expanduser().absolute()),
            network=self.network,
            data=data.pop("name"),
            split=self.split or usual,
            root=_place(data.pop("root", None)),
            settings=data,
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size or 1,
            workers=self.loaders or 0,
            limit=self.limit,
            boundary=boundary,
            views=self.views(),
        )

    def hold(self, data: SegmentationDataset, split: str) -> None:
        """Require that labels mean what they did when the network was trained.

        Args:
            data: what is looked at.
            split: its name.

        Raises:
            UserError: they do not.
        """
        from cirkd_ray.train.same_data import hold_network

        hold_network(str(self.model), data, split, self.accept_data, lambda text: warn([text]))

    def _hold_there(self, settings: Mapping[str, Any], split: str) -> None:
        """`hold` where the workers' data are here as well: `name`, `root` and the data set's own settings."""
        from cirkd_ray.data import build_dataset
        from cirkd_ray.errors import DataError

        rest = dict(settings)
        try:
            data = build_dataset(rest.pop("name"), split=split, root=_place(rest.pop("root", None)), **rest)
        except DataError:  # the workers may have it; they say what is wrong
            return
        self.hold(data, split)

    def data_settings(self) -> dict[str, Any]:
        """Of the data set: those of the model's run, changed by the options."""
        from cirkd_ray.train.trained_on import data_settings

        return data_settings(self.model, self.data, self.root, self.overrides)


def _place(root: str | None) -> str | None:
    """The same folder for processes that run elsewhere; addresses stay as they are."""
    from cirkd_ray.remote.address import url

    return root and (url(root) or str(Path(root).expanduser().absolute()))


def evaluate_job(job: EvaluationJob, workers: int = 0, *, bootstrap: int = 0, worst: int = 0) -> Evaluation:
    """Do the job here (0 workers) or on Ray workers, and collect what its report needs."""
    from cirkd_ray.evaluate.bootstrap import bootstrap_miou
    from cirkd_ray.evaluate.job import Evaluator, worst_images
    from cirkd_ray.report.evaluation import Evaluation
    from cirkd_ray.report.progress import bar
    from cirkd_ray.train.stop import abandoned

    place: AbstractContextManager[Any]
    seen = total = 0
    if workers:
        from cirkd_ray.cluster.evaluate import ray_evaluator

        place = ray_evaluator(job, workers)
    else:
        place = nullcontext(Evaluator(job))

    def done() -> str:
        return f"stopped after {seen} of {total} images; nothing is kept"

    with abandoned(done), place as evaluator:
        subject = evaluator.subject()
        total = subject.images
        with bar(subject.images, "evaluating") as advance:

            def count(images: int) -> None:
                nonlocal seen
                seen += images
                advance(images)

            result = evaluator.evaluate(on_images=count)
        confusion = result.confusion
        found = evaluator.findings(result.images, confusion.matrix.sum(1).tolist(), confusion.ignored)
        subject = replace(subject, warnings=(*subject.warnings, *found))
        chosen = worst_images(result, worst)
        pictures = evaluator.pictures([index for index, _ in chosen])
    interval = None
    if bootstrap and result.per_image is not None:
        interval = bootstrap_miou(result.per_image, resamples=bootstrap)
    return Evaluation(job, subject, result, interval, chosen, pictures)


def warn(warnings: Iterable[str]) -> None:
    """Say what the user should know, beside and not within what the command prints."""
    for warning in warnings:
        sys.stderr.write(f"cirkd: warning: {warning}\n")
