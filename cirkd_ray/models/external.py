"""A network from elsewhere: a description says where its outputs are, a trial run the rest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cirkd_ray.errors import ConfigError, UserError, first_line, nearest
from cirkd_ray.models.layout import SAY_SIZES, Layout
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import IMAGENET, Preprocessing, SegmentationOutput

TRIAL_SIZE = (128, 192)
"""Height and width of the images of the trial run, where the module takes any."""
OTHER_SIZE = (160, 256)
"""Of another trial, of tokens: one size does not tell the tokens of the image from those before them."""


class ExternalModel(SegmentationModel):
    """A module of any make with the outputs that this package works with.

    Where an output is, is said by one of

    - `KEY`: the entry of a dictionary (or attribute of an object) that the module returns, e.g. `out`. A
      whole number is the place in a tuple or list. Dots go deeper, e.g. `0.logits`. The empty text is the
      returned tensor itself.
    - `@MODULE`: the output of the submodule of that name, e.g. `@decode_head.conv_seg`, as it was when it
      left, also where a later layer works in place.
    - `@MODULE:input`: its first input, likewise.

    Logits should be at feature resolution, before they are resized to the image: take `@classifier`, not
    `out`. Channels, strides and the number of classes are measured by one forward of a random image.

    A map is N x C x h x w. One of N x h x w x C is turned round, and tokens of N x L x C are folded to a map
    without those that stand before the image's (of the class, registers): how they lie is found by images of
    two sizes, and what one size leaves open is refused. A transformer that takes images of
    one size, or multiples of its patch, is given the image resized to such a size; timm's say which by their
    `patch_embed`.

    Args:
        module: the network, with its weights.
        outputs: place of `feature`, and if there are such `logits`, `aux` and further named maps. A network
            without logits teaches the losses that compare features; it has 0 classes.
        preprocessing: what the module expects of its input.
        align_corners: how the module resizes its logits to the image.
        name: what messages call it.
        image_size: the one height and width that the module takes; read off its `patch_embed` by default.
        multiple: height and width must be multiples of it; likewise.

    Raises:
        ConfigError: an output is missing or no map, its tokens may lie in several ways, logits and aux differ
            in classes, or the module cannot take that image.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        outputs: Mapping[str, str],
        preprocessing: Preprocessing = IMAGENET,
        align_corners: bool = False,
        name: str = "external",
        image_size: tuple[int, int] | None = None,
        multiple: int | None = None,
    ) -> None:
        if "feature" not in outputs:
            raise ConfigError(f"{name}: the description of its outputs lacks 'feature'")
        super().__init__(
            name=name, num_classes=0, settings={}, preprocessing=preprocessing, channels={}, strides={}
        )
        self.align_corners = align_corners
        self.module, self.outputs = module, dict(outputs)
        known = _known_sizes(module)
        self.image_size, self.multiple = image_size or known[0], multiple or known[1]
        self._layouts: dict[str, Layout] = {}
        self._seen: dict[str, Tensor] = {}
        self._versions: dict[str, int] | None = None
        self._overwritten: set[str] = set()
        for key, place in self.outputs.items():
            if place.startswith("@"):
                self._hook(key, place[1:])
        self._measure()

    def _hook(self, key: str, place: str) -> None:
        """Keep what passes the submodule of that name."""
        path, _, side = place.partition(":")
        known = dict(self.module.named_modules())
        if path not in known or side not in ("", "input"):
            close = [name for name in known if name]
            hint = nearest(path, close) if path not in known else "; it is NAME or NAME:input"
            raise ConfigError(f"{self.name}: outputs.{key}: no submodule {place!r}{hint}")

        def keep(value: Any) -> None:
            if key in self._overwritten:
                value = value.clone()
            elif self._versions is not None and isinstance(value, Tensor):
                self._versions[key] = value._version
            self._seen[key] = value

        if side:  # before the module, which may work in place on its input
            known[path].register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))
        else:
            known[path].register_forward_hook(lambda _, inputs, output: keep(output))

    def _measure(self) -> None:
        """Layouts, channels, strides and classes from one forward; what is overwritten later."""
        sizes = [self._fitting(TRIAL_SIZE)]
        trials = [self._trial(sizes[0])]
        if self.image_size is None and any(getattr(value, "ndim", 0) == 3 for value in trials[0].values()):
            sizes.append(self._fitting(OTHER_SIZE))
            trials.append(self._trial(sizes[1]))
        for key, value in trials[0].items():
            shapes = [trial[key].shape for trial in trials] if isinstance(value, Tensor) else []
            where = f"{self.name}: outputs.{key}"
            layout = Layout.of(shapes, sizes, self.multiple, where) if shapes else None
            if layout is None:
                what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(
                    f"{self.name}: outputs.{key} is no N x C x h x w tensor but has {what}; "
                    "name a map, or the tokens of an image"
                )
            self._layouts[key] = layout
            self.strides[key] = layout.stride
            if key not in ("logits", "aux"):
                self.channels[key] = layout.channels
        classes = {key: self._layouts[key].channels for key in ("logits", "aux") if key in self._layouts}
        self.num_classes = classes.get("logits", 0)
        if "aux" in classes and classes["aux"] != self.num_classes:
            raise ConfigError(
                f"{self.name}: aux has {classes['aux']} classes but logits have {self.num_classes}"
            )

    def _fitting(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size at which the module sees an image of `size`."""
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return self.image_size or (height, width)

    def _trial(self, size: tuple[int, int]) -> dict[str, Any]:
        """The outputs for a random image; tapped maps that a later layer changed in place are noted."""
        reference = next(self.module.parameters(), torch.zeros(()))
        training = self.module.training
        self.module.eval()
        shown = " x ".join(map(str, size))
        # Tensors of inference mode do not count their changes.
        hint = (
            "" if self.image_size or self.multiple > 1 else f"; where it takes some sizes alone, {SAY_SIZES}"
        )
        failing = failing_as(f"{self.name}: a {shown} image", hint)
        with torch.inference_mode(False), torch.no_grad(), failing:
            images = torch.rand(1, 3, *size, device=reference.device, dtype=reference.dtype)
            self._versions = {}
            maps = self._maps(images)
        self._overwritten = {key for key, count in self._versions.items() if maps[key]._version != count}
        self._versions = None
        self.module.train(training)
        return maps

    def _maps(self, images: Tensor) -> dict[str, Any]:
        """All described outputs of one forward."""
        self._seen.clear()
        returned = self.module(images)
        maps = {}
        for key, place in self.outputs.items():
            if not place.startswith("@"):
                maps[key] = _pick(returned, place, f"{self.name}: outputs.{key}")
            elif key in self._seen:
                maps[key] = self._seen[key]
            else:
                raise ConfigError(f"{self.name}: outputs.{key}: {place!r} takes no part in its forward")
        self._seen.clear()
        return maps

    def forward(self, images: Tensor) -> SegmentationOutput:
        """The described outputs of N x 3 x H x W preprocessed images."""
        size = self._fitting((images.shape[2], images.shape[3]))
        if size != images.shape[2:]:
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        found = self._maps(images)
        maps = {
            key: layout.map(found[key], size, f"{self.name}: outputs.{key}")
            for key, layout in self._layouts.items()
        }
        feature = maps["feature"]
        none = feature.new_zeros(feature.shape[0], 0, *feature.shape[2:])
        tapped = {key: value for key, value in maps.items() if key in self.taps}
        return SegmentationOutput(maps.get("logits", none), maps.get("aux"), feature, tapped or None)


def _known_sizes(module: nn.Module) -> tuple[tuple[int, int] | None, int]:
    """The one image size that a transformer takes, if it takes one, and its patch: by its `patch_embed`."""
    for part in module.modules():
        embed = getattr(part, "patch_embed", None)
        patch = getattr(embed, "patch_size", None)
        if patch is None:
            continue
        multiple = math.lcm(*patch) if isinstance(patch, (tuple, list)) else int(patch)
        fixed = getattr(embed, "strict_img_size", False) and not getattr(part, "dynamic_img_size", False)
        size = getattr(embed, "img_size", None) if fixed else None
        return (None if size is None else (int(size[0]), int(size[1]))), multiple
    return None, 1


def _pick(returned: Any, place: str, where: str) -> Any:
    """The part of a module's return value at `place`."""
    for part in place.split(".") if place else ():
        try:
            if isinstance(returned, Mapping):
                returned = returned[part]
            elif isinstance(returned, (tuple, list)) and not hasattr(returned, part):
                returned = returned[int(part)]
            else:
                returned = getattr(returned, part)
        except (KeyError, IndexError, ValueError, AttributeError):
            keys = list(returned) if isinstance(returned, Mapping) else []
            raise ConfigError(
                f"{where}: {type(returned).__name__} has no {part!r}{nearest(part, keys)}"
            ) from None
    return returned


@contextlib.contextmanager
def failing_as(what: str, hint: str = "") -> Iterator[None]:
    """Whatever goes wrong in the user's own code as a ConfigError of one line, with a hint after it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {first_line(error)}{hint}") from error
