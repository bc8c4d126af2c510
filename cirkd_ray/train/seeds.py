"""Seeds of torch's generator: functions of numbers, so that no checkpoint holds a generator's state."""

from __future__ import annotations

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """A seed that is a function of the numbers and of nothing else."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_part(seed: int, step: int, part: int) -> None:
    """Seed what a rank draws (dropout) in its part of a step's batch.

    Args:
        seed: the run's.
        step: the optimiser's.
        part: which, counted over micro-batches and, within one, ranks: so the same images draw the same where
            other workers have shares of the same size.
    """
    torch.manual_seed(seed_of(seed, 2, step, part))
