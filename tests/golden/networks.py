"""Golden numbers of the networks: the small copy in this folder, and how it was made from the full files.

    python -m tests.golden.networks FOLDER_OF_THE_FULL_FILES

Each file's inputs are successive draws of `default_rng(0)`, so they need not be stored; of each output every
`STEP`-th value is kept, beside the largest.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
STEP = 61
OUTPUTS = ("logits", "aux", "feature")

OURS = {
    "deeplabv3:resnet18": "deeplabv3_resnet18",
    "deeplabv3:resnet50": "deeplabv3_resnet50",
    "deeplabv3:resnet101": "deeplabv3_resnet101",
    "psp:resnet18": "pspnet_resnet18",
    "psp:resnet101": "pspnet_resnet101",
    "deeplab_mobile:mobilenetv2": "deeplabv3_mobilenetv2",
    "psp_mobile:mobilenetv2": "pspnet_mobilenetv2",
    **{f"segformer:MiT_B{level}": f"segformer_b{level}" for level in range(5)},
}
OURS_V2 = {
    "deeplabv3_mobilenet_ssseg:mobilenetv3_small": "deeplabv3_mobilenetv3_small",
    "deeplabv3_mobilenet_ssseg:mobilenetv3_large": "deeplabv3_mobilenetv3_large",
    "psp_mobile:mobilenetv3_small": "pspnet_mobilenetv3_small",
    "psp_mobile:mobilenetv3_large": "pspnet_mobilenetv3_large",
    "deeplab_mobile:mobilevit_xx_small": "deeplabv3_mobilevit_xxs",
    "psp_mobile:mobilevit_xx_small": "pspnet_mobilevit_xxs",
    "upernet_lite:resnet18": "upernet_resnet18",
    "deeplabv3:resnet18": "deeplabv3_resnet18_v2",
    "deeplabv3:resnet101": "deeplabv3_resnet101_v2",
}
NETWORKS = [*OURS.values(), *OURS_V2.values()]

SizedOutputs = dict[str, tuple[tuple[int, ...], float, NDArray[np.float32]]]


@dataclass(frozen=True)
class Golden:
    """One reference network in eval mode.

    Attributes:
        parameters: number of parameters.
        state: shape of every entry of its state dict, by reference name.
        images: the input, N x 3 x H x W.
        outputs: by name: full shape, largest absolute value, every `STEP`-th value of the flat array.
    """

    parameters: int
    state: dict[str, tuple[int, ...]]
    images: NDArray[np.float32]
    outputs: SizedOutputs


@functools.cache
def _stored() -> tuple[dict[str, dict[str, NDArray[np.float32]]], dict[str, dict[str, object]]]:
    with np.load(HERE / "networks.npz") as file:
        cards = json.loads(bytes(file["cards"]).decode())
        arrays = {name: file[name] for name in file.files if name != "cards"}
    samples = {name: {k: arrays[f"{name}/{k}"] for k in OUTPUTS if f"{name}/{k}" in arrays} for name in cards}
    return samples, cards


@functools.cache
def _images() -> dict[str, NDArray[np.float32]]:
    """Every network's input, drawn in the order of the full files."""
    _, cards = _stored()
    result = {}
    for family in (OURS, OURS_V2):
        rng = np.random.default_rng(0)
        for name in family.values():
            result[name] = rng.standard_normal(tuple(cards[name]["input"])).astype(np.float32)
    return result


def load(name: str) -> Golden:
    """The golden numbers of our network `name`."""
    samples, cards = _stored()
    card = cards[name]
    outputs = {k: (tuple(card["outputs"][k][0]), card["outputs"][k][1], v) for k, v in samples[name].items()}
    state = {key: tuple(shape) for key, shape in card["state"].items()}
    return Golden(card["parameters"], state, _images()[name], outputs)


def sample(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values that are kept of an output."""
    return values.ravel()[::STEP].astype(np.float32)


def main(folder: Path) -> None:
    """Write `networks.npz` from `models{,_v2}.{npz,json}`."""
    arrays: dict[str, NDArray[np.generic]] = {}
    cards = {}
    for stem, family in (("models", OURS), ("models_v2", OURS_V2)):
        described = json.loads((folder / f"{stem}.json").read_text())
        rng = np.random.default_rng(0)
        with np.load(folder / f"{stem}.npz") as file:
            for theirs, ours in family.items():
                images = file[f"{theirs}/input"]
                drawn = rng.standard_normal(images.shape).astype(np.float32)
                assert np.array_equal(images, drawn), theirs
                entry = described[theirs]
                outputs = {k: file[f"{theirs}/{k}"] for k in OUTPUTS if f"{theirs}/{k}" in file.files}
                cards[ours] = {
                    "parameters": entry["parameters"],
                    "input": images.shape,
                    "state": entry["state"],
                    "outputs": {k: [v.shape, float(np.abs(v).max())] for k, v in outputs.items()},
                }
                arrays.update({f"{ours}/{k}": sample(v) for k, v in outputs.items()})
    arrays["cards"] = np.frombuffer(json.dumps(cards).encode(), dtype=np.uint8)
    np.savez_compressed(HERE / "networks.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
