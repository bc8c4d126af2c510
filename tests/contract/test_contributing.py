"""The example loss of CONTRIBUTING.md, as it stands there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from cirkd_ray.losses import LOSSES, build_loss
from tests.contract.loss_cases import CLASSES, STUDENT, TEACHER, make_inputs
from tests.paths import REPO


def test_the_example_loss_is_that_of_its_naive_form(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    loss = build_loss("cosine", student_channels=STUDENT, teacher_channels=TEACHER, num_classes=CLASSES)
    assert set(LOSSES.settings("cosine").model_fields) == {"student_tap", "teacher_tap", "mask_ignored"}
    loss, inputs = loss.double(), make_inputs()
    torch.testing.assert_close(loss(inputs)["cosine"], names["naive"](loss, inputs)["cosine"])
