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


def _drive(identifier: str) -> str:
    """A direct link to a public file of the release's drive."""
    return f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t"


def _cirkd(data: str, model: str, identifier: str, note: str) -> KnownFile:
    name = f"cirkd_{data}_{model}"
    return KnownFile(name, _drive(identifier), model, f"{name}.pth", note)


def _imagenet(backbone: str, model: str, identifier: str) -> KnownFile:
    name = f"cirkd_imagenet_{backbone}"
    return KnownFile(name, _drive(identifier), model, f"{name}.pth", "ImageNet backbone of the CIRKD release")


def _hashed(name: str, url: str, model: str, note: str) -> KnownFile:
    """A file whose name ends in the beginning of its SHA-256."""
    file = url.rsplit("/", 1)[-1]
    return KnownFile(name, url, model, file, note, sha256=file.removesuffix(".pth").rsplit("-", 1)[-1])


_TORCHVISION = "https://download.pytorch.org/models"
_MMLAB = "https://download.openmmlab.com"

KNOWN_FILES: dict[str, KnownFile] = {
    entry.name: entry
    for entry in (
        _cirkd("cityscapes", "deeplabv3_resnet101", "1zUdhYPYCDCclWU3Wo7GbbTlM8ibQ_UC1", "teacher, 78.07"),
        _cirkd("cityscapes", "deeplabv3_resnet18", "1ebP28XJWJNDbU9OmnfT7x2JJWHWaDFMi", "CIRKD, 76.38"),
        _cirkd("cityscapes", "deeplabv3_mobilenetv2", "1iw8GXxj612C_nRtBdS72kgIZ5nYOU1Ys", "CIRKD, 75.42"),
        _cirkd("cityscapes", "pspnet_resnet18", "1zfpWVfzOpeVG7_WjeQPGB0rDl_XQX8ZG", "CIRKD, 74.73"),
        _cirkd("voc", "deeplabv3_resnet101", "1rYTaVq_ooiAI4oFOcDP8K3SpSbjURGnX", "teacher, 77.67"),
        _cirkd("camvid", "deeplabv3_resnet101", "1BK8Flukoz-Mtd0e1iwFG5rLxi_ES76d2", "teacher, 69.84"),
        _imagenet("resnet18", "deeplabv3_resnet18", "1_i0n3ZePtQuh66uQIftiSwN7QAUlFb8_"),
        _imagenet("resnet101", "deeplabv3_resnet101", "1V8-E4wm2VMsfnNiczSIDoSM7JJBMARkP"),
        _imagenet("mobilenetv2", "deeplabv3_mobilenetv2", "12EDZjDSCuIpxPv-dkk1vrxA7ka0b0Yjv"),
        _hashed(
            "torchvision_mobilenetv2",
            f"{_TORCHVISION}/mobilenet_v2-b0353104.pth",
            "deeplabv3_mobilenetv2",
            "ImageNet backbone of torchvision",
        ),
        _hashed(
            "torchvision_mobilenetv3_small",
            f"{_TORCHVISION}/mobilenet_v3_small-047dcff4.pth",
            "deeplabv3:mobilenetv3_small_100",
            "ImageNet backbone of torchvision (its own padding)",
        ),
        _hashed(
            "torchvision_mobilenetv3_large",
            f"{_TORCHVISION}/mobilenet_v3_large-8738ca79.pth",
            "deeplabv3:mobilenetv3_large_100",
            "ImageNet backbone of torchvision (its own padding)",
        ),
        _hashed(
            "torchvision_resnet18",
            f"{_TORCHVISION}/resnet18-f37072fd.pth",
            "deeplabv3:resnet18",
            "ImageNet backbone of torchvision (plain stem)",
        ),
        _hashed(
            "mmlab_mobilenetv3_small",
            f"{_MMLAB}/pretrain/third_party/mobilenet_v3_small-47085aa1.pth",
            "deeplabv3_mobilenetv3_small",
            "ImageNet backbone of CIRKDv2",
        ),
        _hashed(
            "mmlab_mobilenetv3_large",
            f"{_MMLAB}/pretrain/third_party/mobilenet_v3_large-bc2c3fd3.pth",
            "deeplabv3_mobilenetv3_large",
            "ImageNet backbone of CIRKDv2",
        ),
        _hashed(
            "mmlab_mobilevit_xxs",
            f"{_MMLAB}/mmclassification/v0/mobilevit/mobilevit-xxsmall_3rdparty_in1k_20221018-77835605.pth",
            "deeplabv3_mobilevit_xxs",
            "ImageNet backbone of CIRKDv2 (BGR, 0 to 1)",
        ),
    )
}
"""Known files by name. The release's SegFormer and MiT files need a browser: fetch those by hand."""
