"""A run's figures for Prometheus, through Ray's own exporter on each node."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Gauge

from cirkd_ray.train.reporter import Ending, Listener
from cirkd_ray.train.rundir import RunDirectory

LABELS = ("run", "trial")
FIGURES = {
    "step": ("cirkd_step", "optimiser steps that are done"),
    "images_per_second": ("cirkd_images_per_second", "images that all workers train in a second"),
    "data_wait": ("cirkd_data_wait_ratio", "share of the time in which the main rank waits for its batches"),
    "lr": ("cirkd_learning_rate", "learning rate"),
    "grad_norm": ("cirkd_grad_norm", "norm of the gradient before clipping"),
    "miou": ("cirkd_miou", "mean IoU of the last validation, 0 to 1"),
    "pixel_accuracy": ("cirkd_pixel_accuracy", "share of pixels that the last validation got right"),
}
"""Key of a line of metrics -> the gauge, and what it says."""
LOSS = ("cirkd_loss", "mean of a loss term, unweighted, since the line before")
STEPS = ("cirkd_steps", "steps of the whole run")
MEMORY = ("cirkd_gpu_memory_bytes", "most GPU memory that the main rank has taken")
CHECKPOINT = (
    "cirkd_checkpoint_timestamp_seconds",
    "when the last checkpoint was written: time() less this is its age",
)
ACTIVE = ("cirkd_active", "1 while the run trains here, 0 after its end")


def exported() -> set[str]:
    """The names of all gauges as Prometheus sees them."""
    return {f"ray_{name}" for name, _ in (*FIGURES.values(), LOSS, STEPS, MEMORY, CHECKPOINT, ACTIVE)}


@cache
def _gauge(name: str, text: str, labels: tuple[str, ...] = LABELS) -> Gauge:
    """One of a process, which several runs in it share."""
    return Gauge(name, text, labels)


class PrometheusGauges(Listener):
    """Sets the gauges of one run, on its main rank; Ray sends them off, so nothing is waited for."""

    def __init__(self, directory: RunDirectory) -> None:
        self.labels = dict(directory.labels._asdict())

    def start(self, spec: dict[str, Any], step: int) -> None:
        self._set(STEPS, spec["train"]["steps"])
        self._set(FIGURES["step"], step)
        self._set(ACTIVE, 1)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            kind, _, term = key.partition("/")
            if key in FIGURES:
                self._set(FIGURES[key], value)
            elif kind == "loss":
                _gauge(*LOSS, (*LABELS, "term")).set(value, {**self.labels, "term": term})
        if "gpu_memory_gib" in metrics:
            self._set(MEMORY, metrics["gpu_memory_gib"] * 2**30)

    def checkpoint(self, step: int) -> None:
        self._set(CHECKPOINT, time.time())

    def close(self, how: Ending) -> None:
        self._set(ACTIVE, 0)

    def _set(self, gauge: tuple[str, str], value: float) -> None:
        _gauge(*gauge).set(value, self.labels)
