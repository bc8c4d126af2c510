"""The exponential moving average of the student, kept without waiting for the device."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class StudentAverage(nn.Module):
    """`average = decay * average + (1 - decay) * student` after each update (Tarvainen and Valpola 2017).

    Its state dict is that of `torch.optim.swa_utils.AveragedModel`, which asks the device at each update
    whether it is the first. Whole numbers, which BatchNorm counts, are copied.

    Args:
        student: what is averaged; the average starts as its copy.
        decay: of the average.

    Attributes:
        module: the averaged student.
        n_averaged: number of updates, in main memory.
    """

    n_averaged: Tensor

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(student)
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.int64, device="cpu"))

    @torch.no_grad()
    def update_parameters(self, student: nn.Module) -> None:
        """Move the average towards the student; the first time it takes its values."""
        mine, theirs = ([*model.parameters(), *model.buffers()] for model in (self.module, student))
        pairs = list(zip(mine, theirs, strict=True))
        counts = [(a, b) for a, b in pairs if not a.is_floating_point()]
        values = [(a, b.detach()) for a, b in pairs if a.is_floating_point()]
        for a, b in counts:
            a.copy_(b)
        averages, news = [a for a, _ in values], [b for _, b in values]
        if self.n_averaged == 0:
            torch._foreach_copy_(averages, news)
        else:
            torch._foreach_lerp_(averages, news, 1 - self.decay)
        self.n_averaged += 1
