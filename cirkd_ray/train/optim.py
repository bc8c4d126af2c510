"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from cirkd_ray.config import OptimSpec
from cirkd_ray.models.segmentation import SegmentationModel


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


def parameter_groups(student: SegmentationModel, extra: nn.Module, spec: OptimSpec) -> list[dict[str, Any]]:
    """Groups with a `scale` of the learning rate: the student's encoder, its head, the losses' own layers.

    AdamW spares what the student's groups call `no_decay` (norms, biases, embeddings, tokens), as the
    SegFormer recipe does; SGD decays everything, as DeepLab's does.
    """
    own = [p for p in extra.parameters() if p.requires_grad]
    named = [*student.parameter_groups(), {"name": "losses", "params": [p for p in own if p.ndim > 1]}]
    named.append({"name": "losses_no_decay", "params": [p for p in own if p.ndim <= 1]})
    groups = []
    for group in named:
        scale = 1.0 if group["name"].startswith("encoder") else spec.head_lr_factor
        decayed = spec.name == "sgd" or not group["name"].endswith("no_decay")
        if group["params"]:
            decay = spec.weight_decay if decayed else 0.0
            groups.append({**group, "scale": scale, "weight_decay": decay, "lr": spec.lr * scale})
    return groups


def build_optimizer(groups: list[dict[str, Any]], spec: OptimSpec) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the groups; fused where they are on CUDA."""
    fused = on_cuda(*(p for group in groups for p in group["params"]))
    if spec.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=fused
        )
    sgd = torch.optim.SGD(
        groups, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=fused
    )
    _begin_momentum(sgd)
    return sgd


def build_discriminator_optimizer(discriminator: nn.Module, settings: dict[str, Any]) -> torch.optim.Adam:
    """Adam, fused on CUDA, with a loss's own settings."""
    return torch.optim.Adam(
        discriminator.parameters(), fused=on_cuda(*discriminator.parameters()), **settings
    )


def on_cuda(*parameters: nn.Parameter) -> bool | None:
    """Whether an optimiser of these may be fused, as its constructor takes it: None leaves it to torch."""
    return True if parameters and all(p.is_cuda for p in parameters) else None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that may come from another device, where the optimiser was fused or was not."""
    fused = optimizer.param_groups[0].get("fused")
    groups = [{**group, "fused": fused} for group in state["param_groups"]]
    optimizer.load_state_dict({**state, "param_groups": groups})
    _begin_momentum(optimizer)


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let the momentum of fused SGD begin at 0, from which the first step makes what it would have begun as.

    Left to itself, the fused kernel leaves it unset where the first step's gradients are not finite.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
