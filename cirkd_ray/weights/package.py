"""A trained network as two files: `student.safetensors` and `model.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save, save_file

import cirkd_ray
from cirkd_ray.errors import ConfigError, WeightsError
from cirkd_ray.files import whole_file, write_bytes, write_text
from cirkd_ray.models.build import build_model
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.types import ClassSet, Preprocessing
from cirkd_ray.weights.backbones import ENCODER
from cirkd_ray.weights.card import (
    CARD_FILE,
    ENCODER_FILE,
    FORMAT,
    WEIGHTS_FILE,
    card_source,
    locate,
    read_card,
)
from cirkd_ray.weights.loading import WeightsReport, load_weights, require_whole


@dataclass(frozen=True)
class LoadedModel:
    """A network read from disk.

    Attributes:
        model: on the CPU, in eval mode.
        preprocessing: what its weights expect.
        classes: names and palette.
        info: all of `model.json`, with whatever the run added (validation figures, step, ...).
        report: what loading its weights did, where no `model.json` described them.
        warnings: what the user should know of it (see `open_network`).
    """

    model: SegmentationModel
    preprocessing: Preprocessing
    classes: ClassSet
    info: dict[str, Any]
    report: WeightsReport | None = None
    warnings: tuple[str, ...] = ()


def save_model(
    model: SegmentationModel, folder: str | Path, classes: ClassSet, *, half: bool = False, **extra: Any
) -> None:
    """Write `student.safetensors` and `model.json` into `folder`, each replaced in one step.

    The card is also in the safetensors file's metadata, so that this file alone can be loaded.

    Args:
        model: the bare network (not wrapped by DDP or `torch.compile`).
        folder: created where missing.
        classes: one name and colour a class.
        half: in half precision, which every reader takes back to float32.
        extra: further plain values of the card, for example validation figures.

    Raises:
        ValueError: the class set does not fit the network, or an extra key is taken.
        OSError: the disk is full or not writable; earlier files stay whole.
    """
    if len(classes) != model.num_classes:
        raise ValueError(f"{len(classes)} classes but the network has {model.num_classes}")
    card = {
        "format": FORMAT,
        "cirkd_ray": cirkd_ray.__version__,
        "name": model.name,
        "num_classes": model.num_classes,
        "settings": {**model.settings, "pretrained": False},
        "classes": list(classes.names),
        "palette": [list(colour) for colour in classes.palette],
        "preprocessing": model.preprocessing.to_dict(),
    }
    taken = [key for key in extra if key in card]
    if taken:
        raise ValueError(f"model.json writes {', '.join(taken)} itself")
    card |= extra
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    # Not by `save_file`, whose errors do not say what a disk's are.
    write_bytes(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt", "model": json.dumps(card)}))
    write_text(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")


def save_encoder(model: SegmentationModel, folder: str | Path) -> Path:
    """Write the encoder alone as `encoder.safetensors`, for `load_weights` into any network that has it.

    Returns:
        The file.
    """
    folder = Path(folder)
    tensors = {
        name: value.contiguous() for name, value in model.state_dict().items() if name.startswith(ENCODER)
    }
    metadata = {"format": "pt", "preprocessing": json.dumps(model.preprocessing.to_dict())}
    with whole_file(folder / ENCODER_FILE) as path:
        save_file(tensors, path, metadata=metadata)
    return folder / ENCODER_FILE


def numbered_classes(count: int) -> ClassSet:
    """`class 0` and so on, in the colours of VOC: the number's bits go to the channels in turn."""
    palette = []
    for number in range(count):
        channels = [
            sum((number >> (3 * place + channel) & 1) << (7 - place) for place in range(8))
            for channel in range(3)
        ]
        palette.append((channels[0], channels[1], channels[2]))
    return ClassSet(tuple(f"class {number}" for number in range(count)), tuple(palette))


def load_model(path: str | Path) -> LoadedModel:
    """Read a network written by `save_model`. For one that has to fit a data set, see `open_network`.

    Args:
        path: a run's folder, its `student.safetensors` or its `model.json`.

    Raises:
        WeightsError: a file is missing, truncated or does not fit the other.
    """
    weights, card_path = locate(Path(path))
    card = read_card(card_path, weights)
    card_path = card_source(card_path, weights)
    try:
        model = build_model(card["name"], num_classes=int(card["num_classes"]), **card["settings"])
        classes = ClassSet(tuple(card["classes"]), tuple(tuple(colour) for colour in card["palette"]))
        model.preprocessing = Preprocessing.from_dict(card["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{card_path}: lacks or spoils an entry: {error}") from None
    except ConfigError as error:
        raise WeightsError(f"{card_path}: names a network that this version cannot build: {error}") from None
    if len(classes) != model.num_classes:
        raise WeightsError(f"{card_path}: {len(classes)} class names but num_classes {model.num_classes}")
    require_whole(load_weights(model, weights))
    return LoadedModel(model.eval(), model.preprocessing, classes, card)
