"""Valid labels, counted over ranks in one message before the forward pass and not in several inside it."""

from __future__ import annotations

from cirkd_ray.losses.reduce import rank_and_world
from cirkd_ray.losses.whole import Size, WholeStep


class CountsAhead:
    """Counts the labels of each step at the sizes at which the losses of the step before looked at them."""

    def __init__(self) -> None:
        self._sizes: list[Size] = []

    def count(self, whole: WholeStep, size: Size) -> None:
        """Count a step's labels, whose size is `size`, where there are other ranks to ask."""
        if rank_and_world()[1] > 1:
            whole.count([size, *(other for other in self._sizes if other != size)])

    def learn(self, whole: WholeStep) -> None:
        """Remember where the losses looked: on all ranks alike, whose maps have the same sizes."""
        if not self._sizes:
            self._sizes = whole.sizes
