"""What `cirkd eval` and `cirkd predict` share: which network, which data, seen how."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirkd_ray.commands._common import add_set

if TYPE_CHECKING:
    from cirkd_ray.evaluate.inference import Views
    from cirkd_ray.evaluate.job import EvaluationJob


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """The model, its data and how it is seen."""
    add_model(parser)
    add_data(parser)
    add_views(parser)


def add_model(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """MODEL, `--network`, `--device`, `--precision`."""
    parser.add_argument(
        "model",
        nargs="?" if optional else None,
        metavar="MODEL",
        help="a run's folder, model.json, or a weights file",
    )
    parser.add_argument("--network", metavar="NAME", help="the network of a weights file that does not say")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32")


def add_data(parser: argparse.ArgumentParser, evaluated: str = "") -> None:
    """`--data`, `--root`, `--split`, `--set`, and how images are read.

    Args:
        evaluated: when the command evaluates, for the help of what applies only then.
    """
    parser.add_argument("--data", metavar="NAME", help="data set (default: the run's)")
    parser.add_argument("--root", metavar="DIR", help="the folder that it lies in (default: the run's)")
    parser.add_argument("--split", help="default: the run's validation split, or val")
    add_set(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"images of equal size run together{evaluated} (default: 1)",
    )
    parser.add_argument(
        "--loaders",
        type=int,
        metavar="N",
        help=f"processes that read images, per worker{evaluated} (default: 0)",
    )


def add_views(parser: argparse.ArgumentParser) -> None:
    """`--scales`, `--flip`, `--window`, `--stride`, `--average`."""
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], metavar="S", help="e.g. 0.75 1 1.25"
    )
    parser.add_argument("--flip", action="store_true", help="also the mirror image at each scale")
    parser.add_argument(
        "--window", type=_size, metavar="HxW", help="slide a window of that size over each image"
    )
    parser.add_argument(
        "--stride", type=_size, metavar="HxW", help="of the window (default: two thirds of it)"
    )
    parser.add_argument(
        "--average", choices=("logits", "probabilities"), default="logits", help="what views are averaged as"
    )


def make_views(args: argparse.Namespace) -> Views:
    """How the images are seen."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.inference import SlidingWindow, Views

    if args.stride and not args.window:
        raise ConfigError("--stride goes with --window")
    bad = [scale for scale in args.scales if not (math.isfinite(scale) and scale > 0)]
    if bad:
        raise ConfigError(f"--scales: factors must be positive, got {bad[0]:g}")
    window = SlidingWindow(args.window, args.stride) if args.window else None
    return Views(tuple(args.scales), args.flip, window, args.average)


def make_job(args: argparse.Namespace) -> EvaluationJob:
    """The evaluation that the arguments describe.

    Raises:
        ConfigError: no data set is known, or a setting is wrong.
    """
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.evaluate.job import EvaluationJob

    batch_size, loaders = args.batch_size, args.loaders or 0
    if batch_size is None:
        batch_size = 1
    if batch_size < 1 or loaders < 0 or (args.limit is not None and args.limit < 1):
        raise ConfigError("--batch-size and --limit must be at least 1, --loaders at least 0")
    data = data_settings(args)
    split = args.split or data.pop("val_split", None) or "val"
    name, root = data.pop("name"), data.pop("root", None)
    data.pop("val_split", None)
    return EvaluationJob(
        model=str(Path(args.model).expanduser().absolute()),
        network=args.network,
        data=name,
        split=split,
        root=_place(root),
        settings=data,
        device=args.device,
        precision=args.precision,
        batch_size=batch_size,
        workers=loaders,
        limit=args.limit,
        boundary=getattr(args, "boundary", False),
        views=make_views(args),
    )


def data_settings(args: argparse.Namespace) -> dict[str, Any]:
    """`name`, `root`, `val_split` and the data set's own settings: the run's, changed by the arguments.

    Raises:
        ConfigError: no data set is known.
    """
    from cirkd_ray.config.composition import apply_overrides, overrides_from
    from cirkd_ray.errors import ConfigError

    known = run_data(args.model) if args.model else {}
    if args.data is not None and args.data != known.get("name"):
        known = {"name": args.data}
    if args.root is not None:
        known["root"] = args.root
    overrides = overrides_from(args.overrides)
    for path in overrides:
        if not path.startswith("data."):
            raise ConfigError(f"--set {path}: only settings of the data set (data.NAME) apply here")
    data: dict[str, Any] = apply_overrides({"data": known}, overrides)["data"]
    if not data.get("name"):
        if args.model and not Path(args.model).expanduser().exists():
            raise ConfigError(f"nothing at {args.model}; give a run's folder, a model.json or a weights file")
        raise ConfigError(
            f"{args.model} does not say which data it belongs to; give --data NAME and --root DIR"
        )
    return data


def run_data(model: str) -> dict[str, Any]:
    """The data set of a run, without what concerns training alone; of other models, what their card says."""
    from cirkd_ray.config import DataSpec
    from cirkd_ray.train.rundir import RunDirectory
    from cirkd_ray.weights.card import is_run

    if is_run(model):
        spec = RunDirectory(model).spec().data
        assert isinstance(spec, DataSpec)
        return {"name": spec.name, "root": spec.root, "val_split": spec.val_split, **spec.settings}
    path = Path(model).expanduser()
    card = path if path.suffix == ".json" else (path if path.is_dir() else path.parent) / "model.json"
    try:
        name = json.loads(card.read_text(encoding="utf-8")).get("data")
    except (OSError, ValueError, AttributeError):
        return {}
    return {"name": name} if isinstance(name, str) else {}


def warn(warnings: Iterable[str]) -> None:
    """Say what the user should know, beside and not within what the command prints."""
    for warning in warnings:
        sys.stderr.write(f"cirkd: warning: {warning}\n")


def _place(root: str | None) -> str | None:
    """The same folder for processes that run elsewhere; addresses stay as they are."""
    return root if root is None or "://" in root else str(Path(root).expanduser().absolute())


def _size(text: str) -> tuple[int, int]:
    """`512x1024` or `769` as (height, width)."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write HEIGHTxWIDTH, e.g. 512x1024")
    return int(parts[0]), int(parts[-1])
