"""`cirkd weights`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click import argument, option

from cirkd_ray.commands._options import Words, out_option, set_option, size_option
from cirkd_ray.commands._progress import steps

if TYPE_CHECKING:
    from rich.table import Table

_settings = set_option("NAME=VALUE", "A network setting.")


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
@argument("path", metavar="PATH")
@option("--model", metavar="NAME", help="Compare with this network instead of the likeliest.")
@_settings
def inspect(path: str, model: str | None, overrides: Words) -> None:
    """Whose weights these are, of which network, what does not fit."""
    from rich.table import Table

    from cirkd_ray.weights.fit import KINDS, describe_fit, first_names
    from cirkd_ray.weights.inspection import inspect

    found = inspect(path)
    table = Table(box=None, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("file", str(found.path))
    table.add_row("holds", f"{found.tensors} tensors, {found.parameters / 1e6:.2f} M parameters")
    if found.others and model is None:
        table.add_row("no tensors", f"{len(found.others)}: {first_names(found.others)}")
    table.add_row("kind", KINDS.get(found.kind, found.kind))
    if found.num_classes is not None:
        table.add_row("classes", str(found.num_classes))
    if bad := found.damaged:
        table.add_row("damaged", f"{len(bad)} entries hold NaN or infinity, e.g. {bad[0]}")
    for label, text in describe_fit(found, path, model, overrides):
        table.add_row(label, text)
    _print(table)


@command.command("import")
@argument("path", metavar="PATH")
@option("--model", "name", metavar="NAME", help="The network (default: the one that fits).")
@option("--data", metavar="NAME", help="Data set that names and colours the classes.")
@out_option(metavar="DIR", help="Folder to write (default: weights/ and the file's name).")
@_settings
def import_weights(path: str, name: str | None, data: str | None, out: str | None, overrides: Words) -> None:
    """Convert weights of the CIRKD release, timm or torchvision to a folder of this package.

    Ports of timm's networks that only call their entries otherwise are known by order and shapes.
    """
    from cirkd_ray.weights.fit import KINDS, classes_for, load_into, network_for
    from cirkd_ray.weights.inspection import inspect
    from cirkd_ray.weights.loading import aside
    from cirkd_ray.weights.package import save_encoder, save_model

    found = inspect(path)
    model = network_for(found, name, overrides)
    report = load_into(model, path, found)
    folder = Path(out) if out else Path("weights") / found.path.stem
    if report.kind.endswith("backbone"):
        target = save_encoder(model, folder)
        use = f"--set model.weights={target}"
    else:
        save_model(model, folder, classes_for(data, model.num_classes), source=found.path.name)
        target, use = folder, f"--set teacher.weights={folder}"
    print(f"{KINDS[report.kind]}: {report.loaded} entries of {model.name} -> {target}")
    for _, text in aside(report):
        print(f"  {text}")
    expects = model.preprocessing
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (expects.mean, expects.std))
    print(f"expects {expects.channels} images, mean {mean}, std {std}; use it with {use}")


@command.command()
@argument("path", metavar="PATH")
@option("--model", "name", metavar="NAME", help="The network, where the file does not say.")
@size_option("Of the image.", default=(256, 512))
@_settings
def verify(path: str, name: str | None, size: tuple[int, int], overrides: Words) -> None:
    """Load the weights and run one forward."""
    from cirkd_ray.weights.card import find_card
    from cirkd_ray.weights.fit import load_into, network_for, try_on_noise
    from cirkd_ray.weights.inspection import inspect
    from cirkd_ray.weights.loading import aside
    from cirkd_ray.weights.package import load_model

    found = inspect(path)
    card = find_card(path)
    if found.kind == "cirkd_ray" and name is None and not overrides and card is not None:
        model = load_model(path).model
    else:
        model = network_for(found, name, overrides)
        report = load_into(model, path, found)
        if report.fresh:
            print(f"{found.path} holds an encoder only: the heads are random, and so are the scores")
        for _, text in aside(report):
            print(text)
    print(try_on_noise(model, size, found.path))


@command.command()
@argument("name", required=False, metavar="[NAME_OR_URL]")
@out_option(default="weights", metavar="DIR", help="Where files go.")
@option("--sha256", metavar="HEX", help="The checksum or its beginning.")
@option("--offline", is_flag=True, help="Use no network: succeed only where the file is there.")
def get(name: str | None, out: str, sha256: str | None, offline: bool) -> None:
    """Download a known file, or any by its address; without a name, list them."""
    from cirkd_ray.errors import ConfigError, nearest
    from cirkd_ray.weights.catalogue import KNOWN_FILES
    from cirkd_ray.weights.fetch import download, file_name, read_origin

    if name is None:
        _list_known()
        return
    if "://" in name:
        url, file, checksum, model = name, file_name(name), sha256 or "", "NAME"
    elif name in KNOWN_FILES:
        known = KNOWN_FILES[name]
        url, file, checksum, model = known.url, known.file, sha256 or known.sha256, known.model
    else:
        raise ConfigError(f"{name}: no known weights of that name{nearest(name, KNOWN_FILES)}")
    target = Path(out) / file
    unknown = target.is_file() and not checksum and read_origin(target) is None
    with steps(sizes=True) as tell:
        progress = tell and partial(tell, target.name)
        path = download(url, target, sha256=checksum, offline=offline or None, progress=progress)
    if unknown:
        print("was there already, from where is not known: check it with --sha256, or remove it first")
    print(f"{path}\nnext: cirkd weights import {path} --model {model}")


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
