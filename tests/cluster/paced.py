"""A teacher that takes its time and no CPU: runs that something happens to last as long on any machine."""

from __future__ import annotations

import time

import torch

from cirkd_ray.config import RunSpec, from_tree
from cirkd_ray.models.external import ExternalModel
from cirkd_ray.types import SegmentationOutput
from tests.tiny import TinyNet
from tests.tinyrun import tiny_tree

PACE = 0.05
"""Seconds of a step, at least."""


class Paced(TinyNet):
    """A network that sleeps as it looks at images."""

    def forward(self, images: torch.Tensor) -> SegmentationOutput:
        time.sleep(PACE)
        return super().forward(images)


def teacher(num_classes: int) -> ExternalModel:
    """Of `teacher.module`."""
    return ExternalModel(Paced(num_classes).eval(), outputs={"logits": "logits", "feature": "feature"})


def paced_run(steps: int, checkpoint_every: int) -> RunSpec:
    """A tiny distillation from it on two workers; a line of metrics every five steps."""
    train = {"steps": steps, "log_every": 5, "validate_every": steps, "checkpoint_every": checkpoint_every}
    losses = {"kd": {"kind": "kd"}}
    return from_tree(
        tiny_tree(teacher={"module": "tests.cluster.paced:teacher"}, distill={"losses": losses}, train=train)
    )
