"""Distillation losses: one method a file, found by name.

A temperature becomes a loss in the `compute` of a method (`kd.py`, `cwd.py`, ...) or, for relations of
pixels, regions and channels, in `relational.py`. What the methods share:

- `base.py`: what a loss is, what it sees, and how it is built.
- `maps.py`: losses that compare one map of the student with one of the teacher.
- `relational.py`: KL between softmaxed similarities; `symmetric.py`: the same for tokens among themselves.
- `queues.py`: ring buffers of teacher vectors; `hashing.py`: random choices; `size.py`: what fits.
- `reduce.py`: means and gathers over all ranks.
- `groups.py`: which images are compared with one another.
- `context.py`, `discriminator.py`: networks that are trained with a loss.
- `task.py`: the supervised cross-entropy.
"""

from cirkd_ray.losses.base import LOSSES, DistillationLoss, LossInputs, build_loss

__all__ = ["LOSSES", "DistillationLoss", "LossInputs", "build_loss"]
