"""What a run writes for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirkd_ray.evaluate.evaluation import EvaluationResult
from cirkd_ray.report.figures import confusion_figure, to_image
from cirkd_ray.report.predictions import side_by_side

_PICTURE_HEIGHT, _PICTURE_WIDTH = 192, 384
_FLUSH_SECONDS = 10


class TensorBoard:
    """Writes one run's event files.

    Args:
        folder: where they go; earlier event files in it stay.
        purge_step: after a resume, the first step that is written anew: TensorBoard drops what earlier files
            hold from there on.
    """

    def __init__(self, folder: str | Path, *, purge_step: int | None = None) -> None:
        # Importing TensorBoard takes a second, and only the writing rank needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=_FLUSH_SECONDS)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag, such as `loss/task` or `train/lr`."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def validation(self, step: int, result: EvaluationResult, prefix: str = "val") -> None:
        """Write all scores, per-class IoU, the confusion matrix and the sample predictions.

        Scores stand under `PREFIX/`, per-class IoUs under `PREFIX_iou/`, so that 150 classes do not bury the
        mIoU.
        """
        for name, value in result.metrics().items():
            if name == "classes":
                continue
            tag = f"{prefix}_{name}" if name.startswith("iou/") else f"{prefix}/{name}"
            self._writer.add_scalar(tag, value, step)
        self._writer.add_scalar(f"{prefix}/images_per_second", result.images_per_second, step)
        figure = confusion_figure(result.confusion.matrix.cpu().numpy(), result.classes.names, f"step {step}")
        self._writer.add_image(f"{prefix}/confusion", to_image(figure), step, dataformats="HWC")
        if result.pictures:
            shown = side_by_side(
                result.pictures, result.classes, height=_PICTURE_HEIGHT, width=_PICTURE_WIDTH
            )
            self._writer.add_image(f"{prefix}/predictions", shown, step, dataformats="HWC")
        self._writer.flush()

    def hparams(self, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write what the run was set to beside what it reached, for TensorBoard's HPARAMS page.

        Args:
            hparams: by name; what is no number, text or bool is written as text, None is left out.
            metrics: final figures by tag.
        """
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in hparams.items()
            if value is not None
        }
        self._writer.add_hparams(plain, dict(metrics), run_name=".")
        self._writer.flush()

    def flush(self) -> None:
        """Write what was handed over so far.

        Raises:
            OSError: it could not be written; the object is of no more use.
        """
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
