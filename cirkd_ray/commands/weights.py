"""`cirkd weights`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cirkd_ray.commands._options import settings
from cirkd_ray.commands._options import size as size_option

if TYPE_CHECKING:
    from rich.table import Table

    from cirkd_ray.models.segmentation import SegmentationModel
    from cirkd_ray.types import ClassSet
    from cirkd_ray.weights.inspection import Inspection
    from cirkd_ray.weights.loading import WeightsReport

_settings = settings("NAME=VALUE", "A network setting (repeatable).")


@click.group()
def command() -> None:
    """Weights of networks: say what a file holds, convert it, try it, fetch a known one."""


def _print(table: Table) -> None:
    """Print a table in the terminal's width, or whole where there is none."""
    from cirkd_ray.report.console import output

    console = output(highlight=False)
    console.width = console.width if console.is_terminal else 240
    console.print(table)


@command.command()
@click.argument("path", metavar="PATH")
@click.option("--model", metavar="NAME", help="Compare with this network instead of the likeliest.")
@_settings
def inspect(path: str, model: str | None, overrides: tuple[str, ...]) -> None:
    """Whose weights these are, of which network, what does not fit."""
    from rich.table import Table

    from cirkd_ray.weights.inspection import inspect

    found = inspect(path)
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("file", str(found.path))
    table.add_row("holds", f"{found.tensors} tensors, {found.parameters / 1e6:.2f} M parameters")
    if found.others and model is None:
        table.add_row("no tensors", f"{len(found.others)}: {_first(found.others)}")
    table.add_row("kind", _KINDS.get(found.kind, found.kind))
    if found.num_classes is not None:
        table.add_row("classes", str(found.num_classes))
    if bad := found.damaged:
        table.add_row("damaged", f"{len(bad)} entries hold NaN or infinity, e.g. {bad[0]}")
    for label, text in _fit(found, path, model, overrides):
        table.add_row(label, text)
    _print(table)


_KINDS = {
    "cirkd_ray": "a network of this package",
    "cirkd_ray backbone": "an encoder of this package",
    "reference": "a network of the CIRKD release",
    "reference backbone": "an ImageNet backbone of the CIRKD release",
    "timm backbone": "an ImageNet backbone of timm (or of torchvision, whose ResNets have the same names)",
    "torchvision backbone": "an ImageNet backbone of torchvision",
    "torchvision segmentation": "a segmentation network of torchvision: a teacher by "
    "module=cirkd_ray.weights.external:torchvision_model?name=NAME&weights=PATH",
    "unknown": "unknown; name a network with --model to see what does not fit",
}


def _fit(
    found: Inspection, path: str, wanted: str | None, overrides: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Rows of the network and of what does not fit it."""
    from cirkd_ray.weights.card import find_card

    own = found.kind == "cirkd_ray" and find_card(found.path) is not None
    if wanted is not None or overrides or own:
        from cirkd_ray.weights.loading import aside, compare, explain

        name = wanted or (found.best.name if found.best is not None else None)
        model = _network(found, name, overrides)
        report, _ = compare(model, path)
        problems = explain(report)
        return [
            ("network", f"{model.name}: {problems.strip() or f'fits ({report.loaded} entries)'}"),
            *aside(report),
        ]
    if found.best is None:
        ours = found.kind.startswith("cirkd_ray")
        return [("network", "none of the published ones; name it with --model NAME")] if ours else []
    name = found.best.name
    what = f"the encoder of {name}" if found.kind.endswith("backbone") else name
    if not found.best.problems:
        step = ("next", f"cirkd weights import {path} --model {name}")
        if found.kind == "cirkd_ray backbone":
            step = ("use it with", f"--set model.weights={found.path}")
        return [("network", f"{what}: fits"), *([] if found.damaged else [step])]
    lists = {k: getattr(found.best, k) for k in ("missing", "unexpected", "mismatched")}
    rows = [(k, f"{len(v)}: {_first(v)}") for k, v in lists.items() if v]
    return [("network", f"nearest is {what}, which it does not fit"), *rows]


def _first(names: Sequence[str], count: int = 5) -> str:
    """The first few of some names."""
    return ", ".join([*names[:count], *(["..."] if len(names) > count else [])])


def _network(found: Inspection, name: str | None, overrides: tuple[str, ...]) -> SegmentationModel:
    """The network of that name, or the one that fits the file."""
    from cirkd_ray.config.composition import overrides_from
    from cirkd_ray.errors import WeightsError
    from cirkd_ray.models.build import build_model
    from cirkd_ray.weights.card import find_card

    if name is None:
        if found.kind == "torchvision segmentation":
            raise WeightsError(_foreign(found))
        if found.best is None or found.best.problems:
            what = "holds an encoder and does" if found.kind.endswith("backbone") else "does"
            raise WeightsError(f"{found.path} {what} not say which network it is; name it with --model NAME")
        name = found.best.name
    card = find_card(found.path)
    settings: dict[str, Any] = dict(card["settings"]) if card and card["name"] == name else {}
    if not card and found.best is not None and found.best.name == name:
        settings = dict(found.best.settings)
    settings |= overrides_from(overrides)
    return build_model(name, num_classes=found.num_classes or 2, where=name, **settings)


def _foreign(found: Inspection) -> str:
    """Why a segmentation network of torchvision is not loaded, and how it is used."""
    use = _KINDS[found.kind].replace("PATH", str(found.path))
    return f"{found.path} cannot be read as a network of this package; it is {use}"


def _load(model: SegmentationModel, path: str, found: Inspection) -> WeightsReport:
    """Load them; where they do not fit, the error says what they are, as far as that is known."""
    from cirkd_ray.errors import WeightsError
    from cirkd_ray.weights.loading import load_weights

    try:
        return load_weights(model, path)
    except WeightsError as error:
        best = found.best
        if found.kind == "torchvision segmentation" and not found.damaged:
            raise WeightsError(_foreign(found)) from None
        if found.damaged or best is None or best.problems or best.name == model.name:
            raise
        what = f"the encoder of {best.name}" if found.kind.endswith("backbone") else best.name
        raise WeightsError(f"{error}\nit fits {what}; see `cirkd weights inspect {path}`") from None


@command.command("import")
@click.argument("path", metavar="PATH")
@click.option("--model", "name", metavar="NAME", help="The network (default: the one that fits).")
@click.option("--data", metavar="NAME", help="Data set that names and colours the classes.")
@click.option("--out", metavar="DIR", help="Folder to write (default: weights/ and the file's name).")
@_settings
def import_weights(
    path: str, name: str | None, data: str | None, out: str | None, overrides: tuple[str, ...]
) -> None:
    """Convert weights of the CIRKD release, timm or torchvision to a folder of this package."""
    from cirkd_ray.weights.inspection import inspect
    from cirkd_ray.weights.loading import aside
    from cirkd_ray.weights.package import save_encoder, save_model

    found = inspect(path)
    model = _network(found, name, overrides)
    report = _load(model, path, found)
    folder = Path(out) if out else Path("weights") / found.path.stem
    if report.kind.endswith("backbone"):
        target = save_encoder(model, folder)
        use = f"--set model.weights={target}"
    else:
        save_model(model, folder, _classes(data, model.num_classes), source=found.path.name)
        target, use = folder, f"--set teacher.weights={folder}"
    print(f"{_KINDS[report.kind]}: {report.loaded} entries of {model.name} -> {target}")
    for _, text in aside(report):
        print(f"  {text}")
    print(f"expects {model.preprocessing.channels} images; use it with {use}")


def _classes(data: str | None, count: int) -> ClassSet:
    """Names and colours from a data set, or numbers and the colours of VOC."""
    from cirkd_ray.errors import ConfigError
    from cirkd_ray.weights.package import numbered_classes

    if data is None:
        return numbered_classes(count)
    from cirkd_ray.data import DATASETS
    from cirkd_ray.types import ClassSet

    classes = getattr(DATASETS.get(data), "classes", None)
    if not isinstance(classes, ClassSet):
        raise ConfigError(f"--data {data}: has no classes of its own; leave --data out to number them")
    if len(classes) != count:
        raise ConfigError(f"--data {data}: {len(classes)} classes, but these weights score {count}")
    return classes


@command.command()
@click.argument("path", metavar="PATH")
@click.option("--model", "name", metavar="NAME", help="The network, where the file does not say.")
@size_option("Of the image.", default=(256, 512))
@_settings
def verify(path: str, name: str | None, size: tuple[int, int], overrides: tuple[str, ...]) -> None:
    """Load the weights and run one forward."""
    import time

    import torch

    from cirkd_ray.errors import WeightsError
    from cirkd_ray.weights.card import find_card
    from cirkd_ray.weights.inspection import inspect
    from cirkd_ray.weights.loading import aside
    from cirkd_ray.weights.package import load_model

    found = inspect(path)
    card = find_card(path)
    if found.kind == "cirkd_ray" and name is None and not overrides and card is not None:
        model = load_model(path).model
    else:
        model = _network(found, name, overrides)
        report = _load(model, path, found)
        if report.fresh:
            print(f"{found.path} holds an encoder only: the heads are random, and so are the scores")
        for _, text in aside(report):
            print(text)
    images = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        start = time.perf_counter()
        logits = model.eval()(model.preprocessing(images)).logits
        seconds = time.perf_counter() - start
    if not logits.isfinite().all():
        raise WeightsError(f"{found.path}: {model.name} gives scores that are not finite")
    shares = torch.bincount(logits.argmax(1).flatten(), minlength=model.num_classes).float()
    height, width = size
    print(
        f"{model.name}: {height} x {width} -> {' x '.join(map(str, logits.shape[1:]))} scores from "
        f"{logits.min():.3g} to {logits.max():.3g} in {seconds:.2f} s; "
        f"{int((shares > 0).sum())} of {model.num_classes} classes predicted on noise"
    )


@command.command()
@click.argument("name", required=False, metavar="[NAME_OR_URL]")
@click.option("--out", default="weights", metavar="DIR", help="Where files go.")
@click.option("--sha256", metavar="HEX", help="The checksum or its beginning.")
@click.option("--offline", is_flag=True, help="Use no network: succeed only where the file is there.")
def get(name: str | None, out: str, sha256: str | None, offline: bool) -> None:
    """Download a known file, or any by its address; without a name, list them."""
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.report.bar import steps
    from cirkd_ray.weights.catalogue import KNOWN_FILES
    from cirkd_ray.weights.fetch import download, read_origin

    if name is None:
        _list_known()
        return
    if "://" in name:
        url, file, checksum, model = name, _file_of(name), sha256 or "", "NAME"
    elif name in KNOWN_FILES:
        known = KNOWN_FILES[name]
        url, file, checksum, model = known.url, known.file, sha256 or known.sha256, known.model
    else:
        raise ConfigError(f"no known weights named {name!r}{nearest(name, KNOWN_FILES)}")
    target = Path(out) / file
    unknown = target.is_file() and not checksum and read_origin(target) is None
    with steps(sizes=True) as tell:
        progress = tell and partial(tell, target.name)
        path = download(url, target, sha256=checksum, offline=offline or None, progress=progress)
    if unknown:
        print("was there already, from where is not known: check it with --sha256, or remove it first")
    print(f"{path}\nnext: cirkd weights import {path} --model {model}")


def _file_of(url: str) -> str:
    """What a file at that address is saved as."""
    from urllib.parse import urlsplit

    from cirkd_ray.errors import ConfigError

    name = urlsplit(url).path.rsplit("/", 1)[-1] or "weights"
    if name in (".", ".."):
        raise ConfigError(f"{url} ends in {name!r}, which names no file")
    return name


def _list_known() -> None:
    """Print the table of known files."""
    from rich.table import Table

    from cirkd_ray.weights.catalogue import KNOWN_FILES

    table = Table(box=None)
    for column in ("name", "network", "what it is"):
        table.add_column(column, overflow="fold")
    for entry in KNOWN_FILES.values():
        table.add_row(entry.name, entry.model, entry.note)
    _print(table)
