"""Images/s, memory and ratios of two shipped recipes, printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirkd_ray.cli import main

RECIPES = ("cityscapes/cirkd_deeplabv3_resnet18", "camvid/cirkd_pspnet_resnet18")
SMALL = ["--set", "data.crop=[32,64]", "--set", "teacher.set=[model.name=deeplabv3_resnet18]"]
CASES = [
    pytest.param("cpu", RECIPES[:1], ["--batch", "2", *SMALL], id="cpu"),
    *(pytest.param("cuda", (r,), ["--batch", b], marks=pytest.mark.gpu) for r in RECIPES for b in ("2", "8")),
]


@pytest.mark.parametrize(("device", "recipes", "more"), CASES)
def test_a_shipped_recipe(
    device: str, recipes: tuple[str, ...], more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    words = [*recipes, "--device", device, "--repeat", "2", "--json", str(file), *more]
    assert main(["bench", "step", *words]) == 0
    found = json.loads(file.read_text())
    with capsys.disabled():
        for recipe, values in found.items():
            speed = values["images"] / values["seconds"]["step"]
            ratios = ", ".join(f"{name}: {ratio:.2f}" for name, ratio in values["ratios"].items())
            print(
                f"\n{recipe} on {values['device']}, {values['images']} images: {speed:.1f} images/s, "
                f"{values['peak_bytes'] / 2**30:.2f} GiB, {values['launches']} launches; {ratios}"
            )
    assert all(values["host_waits"] == {} for values in found.values())
    assert all(values["peak_bytes"] > 0 for values in found.values())
