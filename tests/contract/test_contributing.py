"""The example loss of CONTRIBUTING.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cirkd_ray.losses import LOSSES, build_loss
from cirkd_ray.report.loggers import LOGGERS
from cirkd_ray.train.reporter import Listener
from cirkd_ray.train.rundir import RunDirectory
from tests.contract.loss_cases import CLASSES, STUDENT, TEACHER, make_inputs
from tests.paths import REPO


def test_the_example_loss_is_that_of_its_naive_form(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks[:2]:
        exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    loss = build_loss("cosine", student_channels=STUDENT, teacher_channels=TEACHER, num_classes=CLASSES)
    assert set(LOSSES.settings("cosine").model_fields) == {"student_tap", "teacher_tap", "mask_ignored"}
    loss, inputs = loss.double(), make_inputs()
    torch.testing.assert_close(loss(inputs)["cosine"], names["naive"](loss, inputs)["cosine"])


def test_the_example_logger_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[2]
    monkeypatch.setattr(LOGGERS, "_entries", dict(LOGGERS._entries))
    monkeypatch.setenv("SLACK_URL", "http://host/x")
    exec(compile(block, "CONTRIBUTING.md", "exec", dont_inherit=True), {"__name__": "example"})
    posted: list[Any] = []
    answer = SimpleNamespace(raise_for_status=lambda: None)
    monkeypatch.setattr("requests.post", lambda url, **rest: posted.append((url, rest["json"])) or answer)
    logger = LOGGERS.get("slack")(RunDirectory(tmp_path / "first"))
    assert isinstance(logger, Listener)
    logger.finish({"best": {"miou": 0.25}})
    assert posted == [("http://host/x", {"text": "first: 0.2500"})]
