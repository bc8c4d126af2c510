"""The files that an evaluation leaves: JSON, Markdown and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirkd_ray.data.base import UInt8
from cirkd_ray.data_tools.pictures import save_picture
from cirkd_ray.evaluate.bootstrap import ConfidenceInterval
from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.evaluate.job import EvaluationJob, Subject
from cirkd_ray.evaluate.pictures import Picture
from cirkd_ray.files import save_text
from cirkd_ray.report.figures import confusion_figure, to_image
from cirkd_ray.report.predictions import side_by_side
from cirkd_ray.report.tables import TextTable, per_class, percent, rate, scores
from cirkd_ray.train.rundir import environment, relative
from cirkd_ray.weights.card import CARD_FILE, WEIGHTS_FILE, is_run

REPORT_FILES = ("evaluation.json", "evaluation.md", "confusion.png", "worst.png")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, with all that its report shows.

    Attributes:
        job: what was asked for.
        subject: facts about the network.
        result: the counts.
        interval: confidence interval of the mean IoU; None where none was asked for or no pixel is labelled.
        worst: index and mean IoU of the worst images, lowest first.
        pictures: these images, in the same order.
    """

    job: EvaluationJob
    subject: Subject
    result: EvaluationResult
    interval: ConfidenceInterval | None = None
    worst: Sequence[tuple[int, float]] = ()
    pictures: Sequence[Picture] = ()

    def to_dict(self, folder: Path | None = None) -> dict[str, Any]:
        """Plain values for JSON; a score that does not exist is None.

        The model's path is told as seen from `folder` where both lie in one folder, which may be moved.
        """
        job, result, matrix = self.job, self.result, self.result.confusion.matrix.cpu()
        names, boundary = result.classes.names, result.boundary
        columns = {
            "iou": result.confusion.iou().tolist(),
            "accuracy": result.confusion.class_accuracy().tolist(),
            "pixels": matrix.sum(1).tolist(),
            "boundary_iou": [None] * len(names) if boundary is None else boundary.iou().tolist(),
        }
        return {
            "model": {
                "path": job.model if folder is None else relative(job.model, folder.absolute()),
                "name": self.subject.network,
                "parameters": self.subject.parameters,
            },
            "data": {"name": job.data, "split": job.split, "root": job.root, "images": result.images},
            "settings": {
                **_settings(job),
                "device": self.subject.device,
                "precision": self.subject.precision,
            },
            "metrics": {k: _number(v) for k, v in result.metrics().items() if not k.startswith("iou/")},
            "miou_interval": None if self.interval is None else self.interval._asdict(),
            "classes": [
                {"name": name, **{key: _number(values[k]) for key, values in columns.items()}}
                for k, name in enumerate(names)
            ],
            "confusion": matrix.tolist(),
            "ignored_pixels": result.confusion.ignored,
            "worst_images": [{"name": result.names[i], "miou": score} for i, score in self.worst],
            "seconds": result.seconds,
            "images_per_second": result.images_per_second,
            "warnings": list(self.subject.warnings),
            "environment": environment(),
        }

    def title(self) -> str:
        """The network, the data set and the split."""
        return f"{self.subject.network} on {self.job.data} {self.job.split}"

    def scores(self) -> TextTable:
        """All scores, the mean IoU's with its confidence interval."""
        return scores(self.result, self.title(), self.interval)

    def speed(self) -> str:
        """How many images, how fast, and where."""
        images, per_second = self.result.images, rate(self.result.images_per_second)
        return f"{images} images on {self.subject.device} in {self.subject.precision}, {per_second} images/s"

    def markdown(self, folder: Path) -> str:
        """The report for people, in a folder."""
        model = relative(self.job.model, folder.absolute())
        settings = ", ".join(
            f"{key} {value}" for key, value in _settings(self.job).items() if value not in (None, "")
        )
        parts = [
            f"# {self.title()}\n",
            f"Model: `{model}`, {self.subject.parameters / 1e6:.2f} M parameters; {self.speed()}.\n",
            f"Settings: {settings}.\n",
            *(f"**Warning: {warning}.**\n" for warning in self.subject.warnings),
            scores(self.result, interval=self.interval).markdown(),
        ]
        if self.interval is not None:
            parts.append(
                f"The interval is a percentile bootstrap over images ({self.interval.resamples} resamples): "
                "it does not cover the spread over training seeds.\n"
            )
        parts += ["## Classes\n", per_class(self.result).markdown(), "![confusion matrix](confusion.png)\n"]
        if self.worst:
            result = self.result
            rows = tuple((result.names[i], percent(v), result.classes_of_image(i)) for i, v in self.worst)
            parts += ["## Worst images\n", TextTable(("image", "mIoU %", "over"), rows).markdown()]
        if self.pictures:
            parts.append("![worst images](worst.png)\n")
        return "\n".join(parts)

    def write(self, folder: Path) -> list[Path]:
        """Write `evaluation.json`, `evaluation.md`, `confusion.png` and, with pictures, `worst.png`.

        Returns:
            The written files.

        Raises:
            ConfigError: the folder cannot be written.
        """
        title = f"{self.subject.network}, {self.job.data} {self.job.split}"
        matrix = self.result.confusion.matrix.cpu().numpy()
        pictures = {"confusion.png": to_image(confusion_figure(matrix, self.result.classes.names, title))}
        if self.pictures:
            pictures["worst.png"] = self.worst_picture()
        texts = {
            "evaluation.json": json.dumps(self.to_dict(folder), indent=2, allow_nan=False) + "\n",
            "evaluation.md": self.markdown(folder),
        }
        for name, picture in pictures.items():
            save_picture(folder / name, picture)
        for name, text in texts.items():
            save_text(folder / name, text)
        return [folder / name for name in (*texts, *pictures)]

    def worst_picture(self) -> UInt8:
        """The worst images beside truth, prediction and wrong pixels."""
        pairs = zip(self.pictures, self.worst, strict=True)
        captions = [
            f"{picture.name}   mIoU {percent(score)} % ({self.result.classes_of_image(index)})"
            for picture, (index, score) in pairs
        ]
        return side_by_side(
            self.pictures, self.result.classes, captions=captions, errors=True, student=self.subject.network
        )


def _settings(job: EvaluationJob) -> dict[str, Any]:
    """How the images were seen, in the words of the command line."""
    views, window = job.views, job.views.window
    return {
        "scales": list(views.scales),
        "flip": views.flip,
        "average": views.average,
        "window": "{}x{}".format(*window.size) if window else None,
        "stride": "{}x{}".format(*window.step) if window else None,
        "limit": job.limit,
        "data": job.settings or None,
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def usual_folder(model: str, job: EvaluationJob) -> Path:
    """A folder for each model and each way in which it looks at the images: none overwrites another."""
    views, window = job.views, job.views.window
    parts = [job.data, job.split]
    parts += ["scales", *(f"{scale:g}" for scale in views.scales)] if views.scales != (1.0,) else []
    parts += ["flip"] if views.flip else []
    parts += ["window", "{}x{}".format(*window.size)] if window else []
    parts += ["stride", "{}x{}".format(*window.stride)] if window and window.stride else []
    parts += [views.average] if views.average != "logits" else []
    parts += [job.precision] if job.precision != "run" else []
    parts += ["first", str(job.limit)] if job.limit else []
    name = "-".join(parts)
    if is_run(model):
        return Path(model) / "eval" / name
    path = Path(model).expanduser().absolute()
    if path.name in (CARD_FILE, WEIGHTS_FILE):  # an export's files are all named alike, its folder is not
        path = path.parent
        return Path("runs") / f"eval-{path.name}-{name}"
    return Path("runs") / f"eval-{path.name if path.is_dir() else path.stem}-{name}"
