"""Networks as files that run without this package: ONNX, TorchScript, torch.export; each is checked."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirkd_ray.errors import UserError, first_line
from cirkd_ray.files import require_writable, whole_file
from cirkd_ray.models.segmentation import EncoderDecoder
from cirkd_ray.types import Preprocess
from cirkd_ray.weights.package import LoadedModel

Kind = Literal["onnx", "torchscript", "torch-export"]
SUFFIXES: dict[Kind, str] = {"onnx": ".onnx", "torchscript": ".pt", "torch-export": ".pt2"}
OPSET = 20
TOLERANCE = 1e-3
"""Largest difference of scores that passes, as a part of the largest score."""
AGREEMENT = 0.999
"""Share of pixels that must get the same class."""


class ExportError(UserError):
    """A network cannot be exported, or its export computes something else."""


@dataclass(frozen=True)
class ExportOptions:
    """What the exported graph does.

    Attributes:
        preprocessing: it takes RGB images of 0..255 (float32); otherwise what `Preprocessing` makes of them.
        labels: it returns the class of every pixel (N x H x W, int64), otherwise class scores
            (N x K x H x W).
        dynamic: batch, height and width are free; otherwise they are those of the example.
        size: height and width of the example.
    """

    preprocessing: bool = True
    labels: bool = True
    dynamic: bool = True
    size: tuple[int, int] = (256, 512)


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares with PyTorch, over all checked images.

    Attributes:
        path: the file.
        kind: its format.
        opset: ONNX operator set, None for other kinds.
        mean_difference, largest_difference: of scores; of labels, the share of pixels that differ, twice.
        checked: batch, height and width of each check.
    """

    path: Path
    kind: Kind
    opset: int | None
    mean_difference: float
    largest_difference: float
    checked: tuple[tuple[int, int, int], ...]


class Deployable(nn.Module):
    """Image to scores or labels at the image's size, with what stands before and after the network.

    Args:
        loaded: the network and its preprocessing.
        options: see `ExportOptions`.
    """

    def __init__(self, loaded: LoadedModel, options: ExportOptions) -> None:
        super().__init__()
        self.model, self.options = loaded.model, options
        if isinstance(self.model, EncoderDecoder):
            self.model.auxiliary = None
        self.align_corners = loaded.model.align_corners
        self.prepare = Preprocess(loaded.preprocessing)

    def forward(self, images: Tensor) -> Tensor:
        """Labels or scores of N x 3 x H x W images."""
        x = self.prepare(images) if self.options.preprocessing else images
        logits = self.model(x).logits
        scores = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        return scores.argmax(1) if self.options.labels else scores


def export_model(
    loaded: LoadedModel, path: Path, kind: Kind, options: ExportOptions, *, opset: int = OPSET
) -> ExportReport:
    """Write the network to `path` and run the file against PyTorch on random images.

    With free sizes the check uses the example's size and two others with other batches, one of them odd.

    Args:
        loaded: the network; its auxiliary head is taken off.
        path: the file; written in one step, and only where it passes the check.
        kind: the format.
        options: what the graph does.
        opset: ONNX operator set.

    Raises:
        UserError: the file cannot be written, the network cannot be exported that way or with that operator
            set, or the file computes something else.
    """
    require_writable(path.parent)
    if path.is_dir():
        raise ExportError(f"{path}: cannot be written (it is a folder); choose another --out")
    module = Deployable(loaded, options).eval()
    example = _images(1 if not options.dynamic else 2, options)
    with whole_file(path) as draft:
        with _exporting(f"{loaded.model.name}: cannot be exported as {kind}", options):
            written = None
            if kind == "onnx":
                written = _write_onnx(module, example, options, opset, draft, _about(loaded, options))
            elif kind == "torchscript":
                _write_torchscript(module, example, draft)
            else:
                _write_torch_export(module, example, options, draft)
        if kind == "onnx" and written != opset:
            raise ExportError(
                f"--opset: {loaded.model.name} cannot be written with {opset}, PyTorch makes it {written}; "
                f"ask for that or a higher one, or leave --opset out ({OPSET})"
            )
        checks = [example]
        if options.dynamic:  # the odd size is a multiple of no stride: what is padded and cut off shows
            checks += [_images(3, options, (96, 64)), _images(1, options, (37, 61))]
        with _exporting(f"{path}: the {kind} file was tried", options):
            mean, largest = _compare(module, _reader(kind, draft), checks, options)
    shapes = tuple((len(x), x.shape[2], x.shape[3]) for x in checks)
    return ExportReport(path, kind, written, mean, largest, shapes)


def _images(batch: int, options: ExportOptions, change: tuple[int, int] = (0, 0)) -> Tensor:
    """Random images as the graph takes them; `change` is added to the example's size."""
    height, width = (side + more for side, more in zip(options.size, change, strict=True))
    generator = torch.Generator().manual_seed(batch)
    if options.preprocessing:
        return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()
    return torch.randn(batch, 3, height, width, generator=generator)


def _axes(options: ExportOptions, free: tuple[Any, Any, Any]) -> tuple[dict[int, Any]] | None:
    """Which axes of the input are free: batch, height and width as `free`, or none."""
    return ({0: free[0], 2: free[1], 3: free[2]},) if options.dynamic else None


def _about(loaded: LoadedModel, options: ExportOptions) -> dict[str, str]:
    """What the file says of itself, as JSON by key: for programs that have nothing but the file."""
    facts = {
        "classes": list(loaded.classes.names),
        "palette": [list(colour) for colour in loaded.classes.palette],
        "preprocessing": "in the graph" if options.preprocessing else loaded.preprocessing.to_dict(),
        "network": loaded.model.name,
        "input": "RGB, N x 3 x H x W, float32" + (", 0..255" if options.preprocessing else ", preprocessed"),
    }
    return {key: json.dumps(value) for key, value in facts.items()}


def _write_onnx(
    module: nn.Module,
    example: Tensor,
    options: ExportOptions,
    opset: int,
    path: Path,
    about: dict[str, str],
) -> int:
    """Returns the operator set, which is not always what was asked for."""
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=opset,
        input_names=["images"],
        output_names=["labels" if options.labels else "scores"],
        dynamic_shapes=_axes(options, ("batch", "height", "width")),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(str(path), external_data=False)
    return int(program.model.opset_imports[""])


def _write_torchscript(module: nn.Module, example: Tensor, path: Path) -> None:
    traced: Any = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(str(path))


def _write_torch_export(module: nn.Module, example: Tensor, options: ExportOptions, path: Path) -> None:
    axes = _axes(options, (torch.export.Dim.DYNAMIC,) * 3)
    buffer = io.BytesIO()  # the writer insists on the suffix .pt2, which the draft lacks
    torch.export.save(torch.export.export(module, (example,), dynamic_shapes=axes), buffer)
    path.write_bytes(buffer.getvalue())


def _reader(kind: Kind, path: Path) -> Callable[[Tensor], Tensor]:
    """The written file as a function."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])
    if kind == "torchscript":
        script: Callable[[Tensor], Tensor] = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        return script
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _compare(
    module: nn.Module, run: Callable[[Tensor], Tensor], checks: list[Tensor], options: ExportOptions
) -> tuple[float, float]:
    """Mean and largest difference over the checks.

    Raises:
        ExportError: they are too large.
    """
    mean = largest = 0.0
    for images in checks:
        expected, found = module(images), run(images)
        size = " x ".join(map(str, images.shape))
        if expected.shape != found.shape:
            raise ExportError(
                f"{size}: for such images the file gives {tuple(found.shape)}, not {tuple(expected.shape)}"
            )
        difference = (expected != found).float() if options.labels else (expected - found).abs()
        bound = 1 - AGREEMENT if options.labels else TOLERANCE * expected.abs().max().item()
        measured = difference.mean().item() if options.labels else difference.max().item()
        if not measured <= bound:
            raise ExportError(
                f"{size}: for such images the file differs from PyTorch by {measured:.3g} (> {bound:.3g})"
            )
        mean = max(mean, difference.mean().item())
        largest = max(largest, measured)
    return mean, largest


@contextlib.contextmanager
def _exporting(what: str, options: ExportOptions) -> Iterator[None]:
    """Without gradients and the exporters' warnings of things that the check would find.

    Errors of the exporters are told in one line that starts with `what` and names the way out.
    """
    hint = "; with --static its sizes may be fixed" if options.dynamic else ""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # they also log their warnings
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        raise ExportError(f"{what}: {error}{hint}") from None
    except ImportError as error:
        raise ExportError(f"{what}: {error.name} is missing; pip install '.[export]'") from None
    except Exception as error:  # exporters raise errors of many kinds, all of which mean the same here
        raise ExportError(f"{what}: {first_line(error)}{hint}") from error
    finally:
        logging.disable(before)
