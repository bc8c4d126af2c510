"""How the outputs of a network from elsewhere hold maps: what is measured on images of one size or two."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from cirkd_ray.errors import ConfigError

MOST_PREFIX = 64
"""Tokens, at most, that stand before those of the image: of the class, registers."""
LARGEST_STEP = 64
"""Pixels along the side of what one token stands for, at most."""
SAY_SIZES = "give ExternalModel `multiple` (its patch) or `image_size`"
Size = tuple[int, int]

Step = tuple[int, bool]
"""Pixels along the side of what one token stands for, and whether a rest at the edge has tokens, too."""


class Layout(NamedTuple):
    """How a tensor holds a map.

    Attributes:
        kind: "map" (N x C x h x w), "last" (N x h x w x C) or "tokens" (N x L x C).
        channels: C.
        stride: input pixels a pixel of the map.
        prefix: tokens before those of the image.
        steps: how the image may be cut into tokens, by all that the trials tell.
    """

    kind: Literal["map", "last", "tokens"]
    channels: int
    stride: int
    prefix: int = 0
    steps: tuple[Step, ...] = ()

    @classmethod
    def of(
        cls, shapes: Sequence[Sequence[int]], sizes: Sequence[Size], multiple: int, where: str
    ) -> Layout | None:
        """The layout of an output; None where it holds no map.

        Args:
            shapes: of the output, for images of these `sizes`.
            sizes: one is enough for what is no tokens.
            multiple: of which height and width are multiples.
            where: begins messages.

        Raises:
            ConfigError: its tokens may lie in several ways, or in none at all sizes.
        """
        (height, width), shape = sizes[0], shapes[0]

        def alike(rows: int, columns: int) -> bool:
            """Whether that may be a map of the image: strides along both sides differ by rounding alone."""
            return abs(rows * width - columns * height) <= max(height, width)

        if len(shape) == 4:
            last = alike(shape[1], shape[2]) and not alike(shape[2], shape[3])
            rows, channels = (shape[1], shape[3]) if last else (shape[2], shape[1])
            return cls("last" if last else "map", channels, max(1, round(height / rows)))
        if len(shape) != 3:
            return None
        counts = [shape[1] for shape in shapes]
        ways = _ways(counts, sizes, multiple)
        if len(ways) != 1:
            many = " and ".join(map(str, counts))
            images = " and ".join(f"{height} x {width}" for height, width in sizes)
            found = "are several ways" if ways else "is no way"
            raise ConfigError(
                f"{where}: there {found} to lay its {many} tokens over images of {images};\n"
                f"{SAY_SIZES}, or name an output that is a map"
            )
        ((prefix, _), steps) = ways.popitem()
        stride = next(
            (s for s, _ in steps if not any(side % s for size in sizes for side in size)), steps[0][0]
        )
        return cls("tokens", shape[2], stride, prefix, tuple(steps))

    def map(self, value: Tensor, size: tuple[int, int], where: str) -> Tensor:
        """The N x C x h x w map of an image of `size`.

        Raises:
            ConfigError: other tokens than those of the trial run's kind.
        """
        if self.kind == "map":
            return value
        if self.kind == "last":
            return value.permute(0, 3, 1, 2)
        grids = {_grid(size, step) for step in self.steps}
        grids = {grid for grid in grids if self.prefix + math.prod(grid) == value.shape[1]}
        if len(grids) != 1:
            rows, columns = _grid(size, (self.stride, True))
            raise ConfigError(
                f"{where}: {value.shape[1]} tokens are not the {rows} x {columns} of an image of {size[0]} x "
                f"{size[1]} and {self.prefix} more; {SAY_SIZES}"
            )
        ((rows, columns),) = grids
        return value[:, self.prefix :].transpose(1, 2).reshape(len(value), self.channels, rows, columns)


def _grid(size: Size, step: Step) -> Size:
    """Rows and columns of an image's tokens."""
    pixels, up = step
    return (-(-size[0] // pixels), -(-size[1] // pixels)) if up else (size[0] // pixels, size[1] // pixels)


def _ways(
    counts: Sequence[int], sizes: Sequence[Size], multiple: int
) -> dict[tuple[int, tuple[Size, ...]], list[Step]]:
    """How so many tokens may lie over images of these sizes: (prefix, grids) -> the steps that make them.

    Where one size is all that is known, only steps without a rest count. There `multiple` decides: of the
    steps that go with it, the finest that the tokens are enough for.
    """
    ways: dict[tuple[int, tuple[Size, ...]], list[Step]] = {}
    for pixels, up in itertools.product(range(1, LARGEST_STEP + 1), (False, True)):
        if len(sizes) == 1 and (
            any(side % pixels for side in sizes[0])
            or (multiple > 1 and pixels % multiple and multiple % pixels)
        ):
            continue
        grids = tuple(_grid(size, (pixels, up)) for size in sizes)
        spare = {count - math.prod(grid) for count, grid in zip(counts, grids, strict=True)}
        if len(spare) == 1 and 0 <= min(spare) <= MOST_PREFIX and all(map(math.prod, grids)):
            ways.setdefault((min(spare), grids), []).append((pixels, up))
    if len(sizes) == 1 and multiple > 1 and ways:
        return dict([min(ways.items())])
    return ways
