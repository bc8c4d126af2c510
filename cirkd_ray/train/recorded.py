"""A frozen network as the operations of its forward pass: convolutions take along what follows them.

With its norms folded, most of a teacher is `relu(convolution + bias)` or `relu(convolution + bias + map)`:
three or four passes over memory, which cuDNN can do in one. A forward pass shows the operations, whatever the
network's code looks like; they are the same for each batch of its size. On the first batch each convolution
runs both ways: one that cuDNN refuses, gets wrong or does no faster stays apart. No GPU has run this yet.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from cirkd_ray.device import autocast, no_autocast, quickest
from cirkd_ray.errors import first_line
from cirkd_ray.losses.reduce import rank_and_world
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import SegmentationOutput

LOG = logging.getLogger(__name__)
CLOSE = 2e-2
"""Largest difference, relative to a map's largest value, that rounding the parts to bf16 makes."""
SIZES = 4
"""Sizes of batches that are recorded; a run has one."""


def together(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """`relu(convolution + bias + added)` by one kernel of cuDNN."""
    if added is None:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, 1)
    return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, stride, padding, dilation, 1)


def apart(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    added: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """The same, one after the other."""
    found = torch.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], 1)
    return (found if added is None else found.add_(added)).relu_()


class Recorded:
    """The forward pass of a frozen network, which it records for each size of batch when it first sees it.

    A network that cannot be recorded (its code looks at values) runs as it is.

    Args:
        network: in evaluation mode, on its device.
        precision: "fp32", "bf16" or "fp16".

    Attributes:
        compared: whether each convolution is tried both ways; where nothing is computed it cannot be.
    """

    def __init__(self, network: SegmentationModel, precision: str) -> None:
        self.network, self.precision, self.compared = network, precision, True
        self._found: dict[tuple[object, ...], Callable[[Tensor], SegmentationOutput]] = {}

    def __call__(self, images: Tensor) -> SegmentationOutput:
        """The network's output for N x 3 x H x W preprocessed images, without history."""
        key = images.shape, images.stride(), images.dtype
        with torch.no_grad():
            if key not in self._found and len(self._found) < SIZES:
                self._found[key] = self._record(images)
            return self._found.get(key, self._plain)(images)

    def _plain(self, images: Tensor) -> SegmentationOutput:
        with autocast(self.precision, images.device):
            found: SegmentationOutput = self.network(images)
        return found

    def _record(self, images: Tensor) -> Callable[[Tensor], SegmentationOutput]:
        """What computes batches like this one."""
        try:
            graph = make_fx(functionalize(lambda x: self._plain(x), remove="mutations"))(images)
            count = taken = join(graph)
            if self.compared and count:
                taken = choose(graph, images)
        except Exception as error:  # whatever torch cannot record must not end a run
            _say(f"its convolutions run by themselves: it cannot be recorded ({first_line(error)})")
            return self._plain
        _say(f"{taken} of {count} convolutions run in one with their sums and ReLUs")
        return partial(_run, graph) if taken else self._plain


def _run(graph: GraphModule, images: Tensor) -> SegmentationOutput:
    """The recorded operations, which name their types themselves."""
    with no_autocast(images):
        found: SegmentationOutput = graph(images)
    return found


def _say(text: str) -> None:
    if rank_and_world()[0] == 0:
        LOG.warning("teacher: %s", text)


def join(graph: GraphModule) -> int:
    """Let convolutions take along the sums and ReLUs that alone use them; returns how many do."""
    count = 0
    for node in list(graph.graph.nodes):
        found = _before(node.args[0]) if node.target is torch.ops.aten.relu.default else None
        if found is not None:
            convolution, added = found
            x, weight, bias, *geometry = convolution.args[:6]
            with graph.graph.inserting_before(node):
                joined = graph.graph.call_function(together, (x, weight, bias, added, *geometry))
            joined.meta = node.meta
            node.replace_all_uses_with(joined)
            count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count


def _before(node: Any) -> tuple[Node, Node | None] | None:
    """The convolution whose ReLU is taken of `node`, and what is added to it."""
    if _is_free(node):
        return node, None
    if not isinstance(node, Node) or node.target is not torch.ops.aten.add.Tensor or len(node.users) > 1:
        return None
    first, second, *rest = node.args
    for one, other in ((first, second), (second, first)):
        if not rest and not node.kwargs and one is not other and _is_free(one) and _are_alike(one, other):
            return one, other  # type: ignore[return-value]
    return None


def _is_free(node: Any) -> bool:
    """Whether it is an ordinary convolution of images that one other operation uses."""
    if not isinstance(node, Node) or node.target is not torch.ops.aten.convolution.default:
        return False
    arguments: tuple[Any, ...] = node.args
    _, _, _, stride, _, _, transposed, _, groups = arguments
    return len(node.users) == 1 and len(stride) == 2 and not transposed and groups == 1


def _are_alike(one: Any, other: Any) -> bool:
    """Whether both are tensors of one shape and type."""
    values = [node.meta.get("val") for node in (one, other) if isinstance(node, Node)]
    forms = [(x.shape, x.dtype) for x in values if isinstance(x, Tensor)]
    return len(forms) == 2 and operator.eq(*forms)


def choose(graph: GraphModule, images: Tensor) -> int:
    """Run each joined convolution both ways and keep the better one; how many stay joined. Waits."""
    choice = _Choice(graph)
    with no_autocast(images):
        choice.run(images)
    graph.recompile()
    return choice.joined


class _Choice(Interpreter):
    """Runs the operations one by one; equal convolutions are tried once."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.joined = 0
        self._better: dict[tuple[object, ...], bool] = {}

    def run_node(self, n: Node) -> Any:
        """The result of one of them."""
        if n.target is not together:
            return super().run_node(n)
        args: tuple[Any, ...] = self.fetch_args_kwargs_from_env(n)[0]
        key = tuple((x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else str(x) for x in args)
        if key not in self._better:
            self._better[key] = _is_better(*args)
        if self._better[key]:
            self.joined += 1
        else:
            n.target = apart
        return apart(*args)


def _is_better(*args: Any) -> bool:
    """Whether the one kernel computes what the parts do, and sooner."""
    expected = apart(*args)
    torch.full_like(expected, float("nan"))  # a kernel that reads its result before it writes it gets these
    try:
        found = together(*args)
    except Exception:  # cuDNN does not have each form for each type, size and device
        return False
    if not bool(((found - expected).abs() <= CLOSE * expected.abs().max()).all()):  # false for NaN, too
        return False
    one, several = (quickest(partial(f, *args), expected.device) for f in (together, apart))
    return one < several
