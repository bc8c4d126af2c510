"""`model.json`, the card of a saved network: where it lies and how it is read."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from cirkd_ray.errors import DataError, WeightsError
from cirkd_ray.remote.address import is_url
from cirkd_ray.remote.copies import address, copy_of, url_of
from cirkd_ray.remote.reading import FACTS, fetch_file, fetch_folder
from cirkd_ray.types import Preprocessing
from cirkd_ray.weights.files import read_metadata

WEIGHTS_FILE = "student.safetensors"
CARD_FILE = "model.json"
ENCODER_FILE = "encoder.safetensors"
RUN_FILE = "run.yaml"
_ENDINGS = (".safetensors", ".pth", ".pt", ".pth.tar", ".ckpt", ".bin")
FORMAT = 1
NETWORK_FILES = (*FACTS, WEIGHTS_FILE, CARD_FILE, ENCODER_FILE, "encoder.json")
"""What a run's folder holds of a trained network and of what it was trained on."""
SHIPPED = "package:"
_RECIPES = Path(__file__).parents[1] / "recipes"


def shipped(path: str | Path) -> Path:
    """`package://NAME` as the folder of that name among the shipped recipes; other paths as they are."""
    first, *rest = Path(path).parts or ("",)
    return _RECIPES.joinpath(*rest) if first == SHIPPED else Path(path)


def on_this_machine(path: str | Path) -> Path:
    """A trained network's folder or file; of one behind a URL, its working copy with what belongs to it.

    Raises:
        DataError, TransientError: it cannot be fetched.
    """
    place = copy_of(path)
    if not is_url(path) and (url_of(place) is None or place.exists()):
        return place
    path = address(place)
    if place.name in NETWORK_FILES:
        fetch_folder(place.parent, NETWORK_FILES)
        return place
    if not place.name.endswith((*_ENDINGS, ".json")):
        fetch_folder(place, NETWORK_FILES)
        return place
    with suppress(DataError):  # a weights file need not have a card
        fetch_file(address(place.with_suffix(".json")))
    return fetch_file(path)


def locate(path: Path) -> tuple[Path, Path]:
    """The weights file and the card (which may not exist) that a run's folder or either of them means.

    A folder without a whole network means the encoder that is in it, where there is one.

    Raises:
        WeightsError: there is nothing at `path`, or no weights.
    """
    path = on_this_machine(shipped(path))
    if path.is_dir():
        weights, card = _locate_in(path)
    elif path.suffix == ".json":
        weights, card = path.with_name(WEIGHTS_FILE), path
    elif path.name == WEIGHTS_FILE:
        weights, card = path, path.with_name(CARD_FILE)
    else:
        weights, card = path, path.with_suffix(".json")
    if not path.exists():
        raise WeightsError(
            f"{address(path)}: nothing there; expected a run's folder, {WEIGHTS_FILE} or {CARD_FILE}"
        )
    if not weights.is_file():
        raise WeightsError(f"{address(weights)}: not there; it is written when a run first validates")
    return weights, card


def _locate_in(folder: Path) -> tuple[Path, Path]:
    """What a folder means; whether its weights are there is only known of one that is no run's."""
    weights, card, encoder = (folder / name for name in (WEIGHTS_FILE, CARD_FILE, ENCODER_FILE))
    if weights.is_file() or card.is_file() or (folder / RUN_FILE).is_file():
        return weights, card
    if encoder.is_file():
        return encoder, encoder.with_suffix(".json")
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(_ENDINGS) and path.is_file())
    if not found:
        raise WeightsError(f"{folder}: no run's folder, and holds no weights")
    more = ", ..." if len(found) > 3 else ""
    raise WeightsError(f"{folder}: no run's folder; name the file in it: {', '.join(found[:3])}{more}")


def find_card(path: str | Path) -> dict[str, Any] | None:
    """The card of the weights at `path`, or None where they have none."""
    weights, card = locate(Path(path))
    return read_card(card, weights) if _find(card, weights) is not None else None


def _find(card: Path, weights: Path) -> tuple[Path, str] | None:
    """The file that holds the card, and its text: the card's own, or the metadata of the weights.

    A JSON file that only its name makes a card must also look like one, and so must the metadata, where
    others write what they call a model.
    """
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        if card != weights.with_suffix(".json") or weights.name == WEIGHTS_FILE or _looks_like_one(text):
            return card, text
    text = read_metadata(weights).get("model", "") if weights.suffix == ".safetensors" else ""
    return (weights, text) if _looks_like_one(text) else None


def _looks_like_one(text: str) -> bool:
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and content.keys() >= {"format", "settings"}


def card_source(card: Path, weights: Path) -> Path:
    """The file whose card `read_card` reads: the card itself, or the weights where there is none."""
    found = _find(card, weights)
    return weights if found is None else found[0]


def find_preprocessing(path: str | Path) -> Preprocessing | None:
    """What the weights at `path` expect, where their card or their metadata says so.

    Raises:
        WeightsError: it cannot be read there.
    """
    weights, card_path = locate(Path(path))
    card = find_card(path)
    try:
        if card is not None:
            return Preprocessing.from_dict(card.get("preprocessing", {}))
        text = read_metadata(weights).get("preprocessing") if weights.suffix == ".safetensors" else None
        return Preprocessing.from_dict(json.loads(text)) if text else None
    except json.JSONDecodeError:
        reason = f"its metadata has a preprocessing that is not of cirkd_ray ({text!r:.60})"
    except ValueError as error:
        reason = str(error)
    source = card_source(card_path, weights)
    raise WeightsError(f"{source}: {reason};\nmend it, or save the weights again without it")


def read_card(path: Path, weights: Path) -> dict[str, Any]:
    """`model.json`, or its copy in the safetensors file's metadata.

    Raises:
        WeightsError: there is neither, or it is not a card that this version reads.
    """
    found = _find(path, weights)
    if found is None:
        if weights.name == ENCODER_FILE:
            raise WeightsError(f"{weights}: holds an encoder only; a whole network is needed here")
        raise WeightsError(
            f"{weights}: no {CARD_FILE} beside it; the file alone does not say which network it is"
        )
    path, text = found
    try:
        card = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{path}: truncated or not JSON ({error})") from None
    kinds = (("name", str), ("settings", dict))
    if not isinstance(card, dict) or not all(isinstance(card.get(key), kind) for key, kind in kinds):
        raise WeightsError(f"{path}: not a model card of cirkd_ray")
    if card.get("format") != FORMAT:
        raise WeightsError(f"{path}: of format {card.get('format')!r}; this version reads {FORMAT}")
    return card


def is_run(path: str | Path) -> bool:
    """Whether that is the folder of a run."""
    return (Path(path).expanduser() / RUN_FILE).is_file()


def run_of(path: str | Path) -> Path | None:
    """The run's folder that a path is or lies in, e.g. with its checkpoints; None where there is none."""
    if ":/" in str(path):  # a URL, or what comes with the package
        return None
    place = Path(path).expanduser().absolute()
    return next((folder for folder in (place, *place.parents)[:4] if is_run(folder)), None)
