"""What `cirkd eval` and `cirkd predict` share: which network, which data, seen how."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cirkd_ray.commands._options import COUNT, NOT_NEGATIVE, Decorator, Several, device, settings, together

if TYPE_CHECKING:
    from cirkd_ray.evaluate.inference import Views
    from cirkd_ray.evaluate.saved import EvaluationJob
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
        click.argument("model", metavar="[MODEL]" if optional else "MODEL", required=not optional, help=what),
        click.option("--network", metavar="NAME", help="The network of a weights file that does not say."),
        device,
        click.option("--precision", type=click.Choice(("auto", "fp32", "bf16", "fp16")), default="fp32"),
    )


def data_options(evaluated: str = "") -> Decorator:
    """`--data`, `--root`, `--split`, `--set`, how images are read, and how they are seen.

    Args:
        evaluated: when the command evaluates, for the help of what applies only then.
    """
    batch = f"Images of equal size run together{evaluated} (default: 1)."
    loaders = f"Processes that read images, per worker{evaluated} (default: 0)."
    return together(
        click.option("--data", metavar="NAME", help="Data set (default: the run's)."),
        click.option("--root", metavar="DIR", help="The folder that it lies in (default: the run's)."),
        click.option("--split", metavar="NAME", help="Default: the run's validation split, or val."),
        settings(help="Override a setting data.NAME of the data set (repeatable)."),
        click.option("--limit", type=COUNT, metavar="N", help="Only the first N images."),
        click.option("--batch-size", type=COUNT, metavar="N", help=batch),
        click.option("--loaders", type=NOT_NEGATIVE, metavar="N", help=loaders),
        click.option(
            "--scales",
            cls=Several,
            multiple=True,
            type=float,
            default=[1.0],
            metavar="S...",
            help="E.g. 0.75 1 1.25.",
        ),
        click.option("--flip", is_flag=True, help="Also the mirror image at each scale."),
        click.option("--window", type=_size, metavar="HxW", help="Slide a window of that size over images."),
        click.option("--stride", type=_size, metavar="HxW", help="Of the window (default: 2/3 of it)."),
        click.option(
            "--average",
            type=click.Choice(("logits", "probabilities")),
            default="logits",
            help="What views are averaged as.",
        ),
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
    overrides: tuple[str, ...]
    limit: int | None
    batch_size: int | None
    loaders: int | None
    scales: tuple[float, ...]
    flip: bool
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    average: Literal["logits", "probabilities"]

    def views(self) -> Views:
        """How the images are seen."""
        from cirkd_ray.errors import ConfigError
        from cirkd_ray.evaluate.inference import Views, Window

        if self.stride and not self.window:
            raise ConfigError("--stride goes with --window")
        bad = [scale for scale in self.scales if not (math.isfinite(scale) and scale > 0)]
        if bad:
            raise ConfigError(f"--scales: factors must be positive, got {bad[0]:g}")
        window = Window(self.window, self.stride) if self.window else None
        return Views(self.scales, self.flip, window, self.average)

    def job(self, boundary: bool = False) -> EvaluationJob:
        """The evaluation that the options describe.

        Raises:
            ConfigError: no data set is known, or a setting is wrong.
        """
        from cirkd_ray.evaluate.saved import EvaluationJob

        assert self.model is not None
        data = self.data_settings()
        usual = data.pop("val_split", None) or "val"
        return EvaluationJob(
            model=str(Path(self.model).expanduser().absolute()),
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

    def data_settings(self) -> dict[str, Any]:
        """`name`, `root`, `val_split` and the data set's own settings: the run's, changed by the options.

        Raises:
            ConfigError: no data set is known.
        """
        from cirkd_ray.config.composition import apply_overrides, overrides_from
        from cirkd_ray.errors import ConfigError

        known = run_data(self.model) if self.model else {}
        if self.data is not None and self.data != known.get("name"):
            known = {"name": self.data}
        if self.root is not None:
            known["root"] = self.root
        overrides = overrides_from(self.overrides)
        for path in overrides:
            if not path.startswith("data."):
                raise ConfigError(f"--set {path}: only settings of the data set (data.NAME) apply here")
        data: dict[str, Any] = apply_overrides({"data": known}, overrides)["data"]
        if not data.get("name"):
            if self.model and not Path(self.model).expanduser().exists():
                text = f"nothing at {self.model}; give a run's folder, a model.json or a weights file"
                raise ConfigError(text)
            raise ConfigError(
                f"{self.model} does not say which data it belongs to; give --data NAME and --root DIR"
            )
        return data


def run_data(model: str) -> dict[str, Any]:
    """The data set of a run, without what concerns training alone; of other models, what their card says."""
    from cirkd_ray.config import DataSpec
    from cirkd_ray.evaluate.saved import is_run
    from cirkd_ray.train.rundir import RunDirectory

    if is_run(model):
        spec = RunDirectory(model).spec().data
        assert isinstance(spec, DataSpec)
        return {"name": spec.name, "root": spec.root, "val_split": spec.val_split, **spec.settings}
    path = Path(model).expanduser()
    card = path if path.suffix == ".json" else (path if path.is_dir() else path.parent) / "model.json"
    try:
        name = json.loads(card.read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"name": name} if isinstance(name, str) else {}


def _place(root: str | None) -> str | None:
    """The same folder for processes that run elsewhere; addresses stay as they are."""
    return root if root is None or "://" in root else str(Path(root).expanduser().absolute())


def evaluate_job(job: EvaluationJob, workers: int = 0, *, bootstrap: int = 0, worst: int = 0) -> Evaluation:
    """Do the job here (0 workers) or on Ray workers, and collect what its report needs."""
    from cirkd_ray.evaluate.bootstrap import bootstrap_miou
    from cirkd_ray.evaluate.saved import Evaluator, worst_images
    from cirkd_ray.report.bar import bar
    from cirkd_ray.report.evaluation import Evaluation

    place: AbstractContextManager[Any]
    if workers:
        from cirkd_ray.cluster.evaluate import ray_evaluator

        place = ray_evaluator(job, workers)
    else:
        place = nullcontext(Evaluator(job))
    with place as evaluator:
        subject = evaluator.subject()
        with bar(subject.images, "evaluating") as advance:
            result = evaluator.evaluate(on_images=advance)
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
