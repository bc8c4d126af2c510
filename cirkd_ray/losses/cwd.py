"""Channel-wise distillation."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from cirkd_ray.losses.base import LOSSES, LossInputs, Temperature
from cirkd_ray.losses.maps import MapLoss, MapPair
from cirkd_ray.losses.relational import MASKED


@LOSSES.register("cwd")
class CWD(MapLoss):
    """Channel-wise distillation, on features or (with both taps `logits`) on logits.

    Shu et al.: Channel-wise Knowledge Distillation for Dense Prediction (ICCV 2021), eqs. 3 and 4: each
    channel's softmax over the pixels at temperature tau; KL(teacher || student) summed, divided by N x C,
    times tau^2. As in the reference C is the student's channel count before the adapter, which is there
    only where channel counts differ. The published weight is 50 on features and 3 on logits.

    Deviation from the reference: ignored pixels have no part in the softmax (`mask_ignored: false` counts
    them).

    Args:
        temperature: divides a channel's values before the softmax over its pixels.
    """

    terms = ("cwd",)
    default_weights: ClassVar = {"cwd": 50.0}

    def __init__(self, *, temperature: Temperature = 4.0, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = temperature

    def compute(self, pair: MapPair, inputs: LossInputs) -> dict[str, Tensor]:
        student, teacher = (self._log_softmax(x, pair.mask) for x in (pair.student, pair.teacher))
        total = F.kl_div(student, teacher, reduction="sum", log_target=True)
        return {"cwd": total * self.temperature**2 / (student.shape[0] * self.student_width)}

    def _log_softmax(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """N x C x HW log-probabilities over the valid pixels."""
        x = x.flatten(2) / self.temperature
        if mask is not None:
            x = x.masked_fill(~mask.flatten(1).unsqueeze(1), MASKED)
        return x.log_softmax(2)
