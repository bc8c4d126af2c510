"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cirkd_ray.config import OptimSpec


def learning_rate_factor(spec: OptimSpec, step: int, steps: int) -> float:
    """Learning rate at `step` (from 0) of `steps`, relative to `spec.lr`.

    `poly` is (1 - t/T)^power over the whole run (Chen et al., DeepLab, 2017); `cosine` and `poly` start
    after a linear warm-up of `spec.warmup_steps` if there is one, without moving the end.
    """
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    position = min(1.0, step / steps)
    if spec.schedule == "poly":
        return float((1.0 - position) ** spec.power)
    if spec.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * position))
    return 1.0


def parameter_groups(model: nn.Module, extra: nn.Module, spec: OptimSpec) -> list[dict[str, Any]]:
    """Groups with a `scale` of the learning rate: the student's encoder, its head, and the losses' own
    layers.

    AdamW does not decay norms and biases, as the SegFormer recipe does; SGD decays everything, as DeepLab's
    does.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(f"student.{n}", p) for n, p in model.named_parameters()]
    named += [(f"losses.{n}", p) for n, p in extra.named_parameters()]
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        scale = 1.0 if name.startswith("student.encoder.") else spec.head_lr_factor
        decayed = spec.name == "sgd" or parameter.ndim > 1
        groups.setdefault((scale, spec.weight_decay if decayed else 0.0), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": decay, "lr": spec.lr * scale}
        for (scale, decay), parameters in groups.items()
    ]


def build_optimizer(groups: list[dict[str, Any]], spec: OptimSpec) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the groups."""
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
