"""From images to counts: inference, metrics, predictions."""

from cirkd_ray.evaluate.metrics import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
