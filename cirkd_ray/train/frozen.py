"""A teacher that never changes: its norms are part of its convolutions, its weights have the compute type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cirkd_ray.device import DTYPES, autocast
from cirkd_ray.losses import DistillationLoss
from cirkd_ray.models.segmentation import EncoderDecoder, SegmentationModel
from cirkd_ray.types import SegmentationOutput

_SIZE = (64, 96)
"""Height and width of the image that shows which norm follows which convolution."""
_CLOSE = 1e-2
"""Largest difference, relative to a map's largest value, that rounding makes on any device."""


class _Pair(NamedTuple):
    """A convolution, and the name of the norm that takes its output and nothing else does."""

    convolution: nn.Conv2d
    norm: str


def freeze(model: SegmentationModel, losses: Iterable[DistillationLoss]) -> int:
    """Make a frozen network cheaper in place, before it moves to its device; its maps change by rounding.

    An auxiliary head that no loss reads is dropped. BatchNorms are folded into the convolutions before them,
    in float64. What norm belongs to what convolution is seen in one pass of a random image; if a second pass,
    through the folded network, gives other maps, the network stays as it was.

    Args:
        model: in evaluation mode afterwards, without gradients.
        losses: those that it teaches.

    Returns:
        How many norms were folded.
    """
    model.eval().requires_grad_(False)
    if isinstance(model, EncoderDecoder) and not any(loss.reads_teacher_aux for loss in losses):
        model.auxiliary = None
        model.strides.pop("aux", None)
    return _fold(model)


@torch.no_grad()
def _fold(model: SegmentationModel) -> int:
    """Fold what can be folded, unless the maps change; returns how many norms are gone."""
    image = sample_image(model)
    pairs, before = _pairs(model, lambda: model(image))
    undo: list[Callable[[], object]] = []
    for pair in pairs:
        undo.append(_fold_pair(model, pair))
    if pairs and not alike(before, model(image)):
        for step in reversed(undo):
            step()
        return 0
    return len(pairs)


def sample_image(model: nn.Module) -> Tensor:
    """A random image for the network, the same each time."""
    like = next(model.parameters())
    image = torch.randn(1, 3, *_SIZE, generator=torch.Generator().manual_seed(0))
    return image.to(like.device, like.dtype)


def _pairs(
    model: nn.Module, forward: Callable[[], SegmentationOutput]
) -> tuple[list[_Pair], SegmentationOutput]:
    """The pairs that a forward pass shows, and its output."""
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the maps, so that no other one has their id
    fed: dict[str, nn.Conv2d] = {}
    calls: Counter[int] = Counter()
    handles = []

    def after(convolution: Any, inputs: Any, output: Tensor) -> None:
        calls[id(convolution)] += 1
        made[id(output)] = convolution, output

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[id(norm)] += 1
            if id(inputs[0]) in made:
                fed[name] = made[id(inputs[0])][0]

        return look

    for name, module in model.named_modules():
        if names[id(module)] > 1 or module._forward_hooks or module._forward_pre_hooks:
            continue
        if type(module) in (nn.Conv2d, Conv2dSame):  # of others the weight is made anew in each pass
            handles.append(module.register_forward_hook(after))
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before(name)))
    try:
        output = forward()
    finally:
        for handle in handles:
            handle.remove()
    shared = Counter(id(convolution) for convolution in fed.values())
    once = [
        _Pair(convolution, name)
        for name, convolution in fed.items()
        if shared[id(convolution)] == calls[id(convolution)] == calls[id(model.get_submodule(name))] == 1
    ]
    return once, output


def _fold_pair(model: nn.Module, pair: _Pair) -> Callable[[], object]:
    """Fold one norm; returns what takes it back."""
    convolution, norm = pair.convolution, model.get_submodule(pair.norm)
    assert isinstance(norm, _BatchNorm)
    weight, bias = convolution.weight, convolution.bias
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean.double() if bias is None else bias.double() - mean.double()
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
    new = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    convolution.weight = nn.Parameter(new, requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    left = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    model.set_submodule(pair.norm, left.eval())

    def undo() -> None:
        convolution.weight, convolution.bias = weight, bias
        model.set_submodule(pair.norm, norm)

    return undo


def alike(before: SegmentationOutput, after: SegmentationOutput, close: float = _CLOSE) -> bool:
    """Whether all maps are the same but for `close` times the largest value of each, on any devices."""
    named = {**before._asdict(), **(before.stages or {})}
    others = {**after._asdict(), **(after.stages or {})}
    for name, map_ in named.items():
        if isinstance(map_, Tensor) and map_.numel():
            bound, other = close * float(map_.abs().max()), others[name].to(map_)
            if not torch.allclose(map_, other, rtol=0.0, atol=bound, equal_nan=True):
                return False
    return True


@torch.no_grad()
def cast_weights(model: SegmentationModel, precision: str) -> None:
    """Give convolutions and linear layers, once, the type that autocast would cast them to in each step.

    A network that looks at these types, or leaves autocast, may refuse them: then they stay.

    Args:
        model: a frozen network, on its device.
        precision: "fp32", "bf16" or "fp16" of the run.
    """
    if precision == "fp32":
        return
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    parameters = [p for m in model.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)]
    floats = [(p, p.data) for p in parameters if p.dtype == torch.float32]
    image = sample_image(model)
    for parameter, data in floats:
        parameter.data = data.to(DTYPES[precision])
    try:
        with autocast(precision, image.device):
            model(image.float())
    except RuntimeError:
        for parameter, data in floats:
            parameter.data = data
