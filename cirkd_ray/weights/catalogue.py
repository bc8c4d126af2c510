"""Weights files that `cirkd weights get` knows where to find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFile:
    """A published file.

    Attributes:
        name: what it is asked for by.
        url: where it lies.
        model: a network that it fits.
        file: what it is saved as.
        note: what it is, with the published validation mIoU (%) where it is a whole network.
        sha256: the beginning of its checksum, where its publisher gives one (in the file's name).
    """

    name: str
    url: str
    model: str
    file: str
    note: str
    sha256: str = ""


def _cirkd(what: str, model: str, identifier: str, note: str) -> KnownFile:
    """A file of the release's public drive."""
    url = f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t"
    return KnownFile(f"cirkd_{what}", url, model, f"cirkd_{what}.pth", note)


def _trained(data: str, model: str, identifier: str, note: str) -> KnownFile:
    return _cirkd(f"{data}_{model}", model, identifier, note)


def _imagenet(backbone: str, identifier: str) -> KnownFile:
    model = f"deeplabv3_{backbone}"
    return _cirkd(f"imagenet_{backbone}", model, identifier, "ImageNet backbone of the CIRKD release")


def _hashed(name: str, url: str, model: str, note: str) -> KnownFile:
    """A file whose name ends in the beginning of its SHA-256."""
    file = url.rsplit("/", 1)[-1]
    checksum = file.removesuffix(".pth").rsplit("-", 1)[-1]
    return KnownFile(name, url, model, file, f"ImageNet backbone of {note}", sha256=checksum)


def _torchvision(backbone: str, file: str, model: str, note: str = "") -> KnownFile:
    url = f"https://download.pytorch.org/models/{file}.pth"
    return _hashed(f"torchvision_{backbone}", url, model, f"torchvision{note}")


def _mmlab(backbone: str, path: str, note: str = "") -> KnownFile:
    url = f"https://download.openmmlab.com/{path}.pth"
    return _hashed(f"mmlab_{backbone}", url, f"deeplabv3_{backbone}", f"CIRKDv2{note}")


_PADS = " (its own padding)"
_MOBILEVIT = "mmclassification/v0/mobilevit/mobilevit-xxsmall_3rdparty_in1k_20221018-77835605"

KNOWN_FILES: dict[str, KnownFile] = {
    entry.name: entry
    for entry in (
        _trained("cityscapes", "deeplabv3_resnet101", "1zUdhYPYCDCclWU3Wo7GbbTlM8ibQ_UC1", "teacher, 78.07"),
        _trained("cityscapes", "deeplabv3_resnet18", "1ebP28XJWJNDbU9OmnfT7x2JJWHWaDFMi", "CIRKD, 76.38"),
        _trained("cityscapes", "deeplabv3_mobilenetv2", "1iw8GXxj612C_nRtBdS72kgIZ5nYOU1Ys", "CIRKD, 75.42"),
        _trained("cityscapes", "pspnet_resnet18", "1zfpWVfzOpeVG7_WjeQPGB0rDl_XQX8ZG", "CIRKD, 74.73"),
        _trained("voc", "deeplabv3_resnet101", "1rYTaVq_ooiAI4oFOcDP8K3SpSbjURGnX", "teacher, 77.67"),
        _trained("camvid", "deeplabv3_resnet101", "1BK8Flukoz-Mtd0e1iwFG5rLxi_ES76d2", "teacher, 69.84"),
        _imagenet("resnet18", "1_i0n3ZePtQuh66uQIftiSwN7QAUlFb8_"),
        _imagenet("resnet101", "1V8-E4wm2VMsfnNiczSIDoSM7JJBMARkP"),
        _imagenet("mobilenetv2", "12EDZjDSCuIpxPv-dkk1vrxA7ka0b0Yjv"),
        _torchvision("mobilenetv2", "mobilenet_v2-b0353104", "deeplabv3_mobilenetv2"),
        *(
            _torchvision(f"mobilenetv3_{size}", file, f"deeplabv3:mobilenetv3_{size}_100", _PADS)
            for size, file in (
                ("small", "mobilenet_v3_small-047dcff4"),
                ("large", "mobilenet_v3_large-8738ca79"),
            )
        ),
        _torchvision("resnet18", "resnet18-f37072fd", "deeplabv3:resnet18", " (plain stem)"),
        _mmlab("mobilenetv3_small", "pretrain/third_party/mobilenet_v3_small-47085aa1"),
        _mmlab("mobilenetv3_large", "pretrain/third_party/mobilenet_v3_large-bc2c3fd3"),
        _mmlab("mobilevit_xxs", _MOBILEVIT, " (BGR, 0 to 1)"),
    )
}
"""Known files by name. The release's SegFormer and MiT files need a browser: fetch those by hand."""
