"""Whether a trained network's classes are those of a data set."""

from __future__ import annotations

from cirkd_ray.errors import ConfigError
from cirkd_ray.types import ClassSet


def compare_classes(source: str, own: ClassSet, data: ClassSet) -> tuple[str, ...]:
    """What to warn of where a network's class names are not those of the data set.

    Args:
        source: what messages call the network.
        own: the classes that it was trained on.
        data: as many of the data set.

    Raises:
        ConfigError: both have the same names in another order, so every score would count for a wrong class.
    """
    pairs = list(zip(own.names, data.names, strict=True))
    differing = [(k, a, b) for k, (a, b) in enumerate(pairs) if a.casefold() != b.casefold()]
    if not differing:
        return ()
    if sorted(a.casefold() for a, _ in pairs) == sorted(b.casefold() for _, b in pairs):
        k, first, second = differing[0]
        raise ConfigError(
            f"{source}: has the data set's classes in another order (class {k} is {first!r}, in the data set "
            f"{second!r});\ntake a network that was trained on them in the data set's order"
        )
    shown = ", ".join(f"{a} / {b}" for _, a, b in differing[:3]) + (", ..." if len(differing) > 3 else "")
    return (f"{source}: class names of the model and of the data set differ: {shown}",)
