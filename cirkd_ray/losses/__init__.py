"""Distillation losses: one method a file, found by name."""

from cirkd_ray.losses.base import LOSSES, DistillationLoss, LossInputs, build_loss

__all__ = ["LOSSES", "DistillationLoss", "LossInputs", "build_loss"]
