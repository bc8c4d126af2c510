"""INT8: a network's ONNX file with quantised weights and activations, from a few images."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirkd_ray.errors import first_line
from cirkd_ray.files import whole_file
from cirkd_ray.weights.export import ExportError

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "Concat", "MaxPool", "GlobalAveragePool")
"""Operators that are quantised; what prepares the image and resizes the scores stays as it is."""


def quantize(source: Path, target: Path, images: Iterable[NDArray[np.float32]], what: str) -> int:
    """Write `source` with INT8 weights (a scale a channel) and activations, as QDQ nodes that runtimes fuse.

    Static quantisation of ONNX Runtime: the ranges of activations are the smallest and largest values
    over the images.

    Args:
        source: an ONNX file of `export_model`.
        target: the file; written in one step.
        images: each 1 x 3 x H x W as the graph takes them.
        what: the network's name, for messages.

    Returns:
        How many operators are quantised.

    Raises:
        ExportError: ONNX Runtime is missing, or it cannot quantise the network; with its reason.
    """
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static
    except ImportError as error:
        raise ExportError(f"--int8: {error.name} is missing; pip install '.[export]'") from None
    with whole_file(target) as draft, tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        name = onnx.load(str(source), load_external_data=False).graph.input[0].name
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(draft),
                _Reader(name, images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # of many kinds, which all mean the same here
            raise ExportError(f"--int8: {what} cannot be quantised: {first_line(error)}") from error
        count = int(sum(node.op_type == "QuantizeLinear" for node in onnx.load(str(draft)).graph.node))
        if not count:
            raise ExportError(f"--int8: {what} has no operator that can be quantised")
    return count


class _Reader:
    """Images one by one, as ONNX Runtime asks for them."""

    def __init__(self, name: str, images: Iterable[NDArray[np.float32]]) -> None:
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """The next image; None at the end."""
        image = next(self.images, None)
        return None if image is None else {self.name: image}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
