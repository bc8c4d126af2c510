"""From images to counts and figures.

`inference` turns images into class scores and classes, `metrics` (and `boundary`) counts them against the
labels, `evaluation` does both for a whole data set, and `job` for one that a command or a Ray worker names.
`predict` writes label maps of images without labels, `submission` packs them for the Cityscapes server.
"""

from cirkd_ray.evaluate.metrics import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
