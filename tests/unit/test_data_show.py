"""Contact sheets show the right colours in the right places."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cirkd_ray.cli import main
from cirkd_ray.data.base import Sample
from cirkd_ray.data_tools.show import contact_sheet, overlay
from cirkd_ray.types import ClassSet
from tests.errors import require_error

CLASSES = ClassSet(("left", "right"), ((200, 0, 0), (0, 0, 200)))


def test_the_overlay_colours_classes_and_leaves_ignored_pixels() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    label = np.zeros((20, 30), np.uint8)
    label[:, 10:20], label[:, 20:] = 1, 255
    mixed = overlay(image, label, CLASSES, opacity=0.5)
    assert mixed[5, 3].tolist() == [150, 50, 50]
    assert mixed[5, 15].tolist() == [50, 50, 150]
    assert mixed[5, 28].tolist() == [100, 100, 100]
    assert overlay(image, np.full((20, 30), 7, np.uint8), CLASSES, opacity=1.0)[5, 5].tolist() == [
        255,
        0,
        255,
    ]
    assert (mixed[5, 9:11] == 255).all(axis=-1).any()


def test_a_sheet_has_a_place_for_every_sample() -> None:
    samples = [
        Sample(
            np.full((40 + n, 60, 3), 50 * n, np.uint8), np.full((40 + n, 60), n % 2, np.uint8), f"Straße {n}"
        )
        for n in range(5)
    ]
    sheet = contact_sheet(samples, CLASSES, columns=2, width=60)
    assert sheet.shape[1] == 2 * (120 + 8) + 8
    assert sheet.shape[0] > 3 * 40
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3).tolist()}
    assert {(200, 0, 0), (0, 0, 200)} <= colours, "the legend"
    assert {(50 * n, 50 * n, 50 * n) for n in range(5)} <= colours


def test_the_command_writes_whole_and_augmented_sheets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["data", "show", "shapes", "--set", "height=48", "--set", "width=64", "--count", "2"]
    for extra in ([], ["--augmented", "--split", "train", "--start", "5"]):
        out = tmp_path / f"sheet{len(extra)}.png"
        assert main([*common, "--out", str(out), *extra]) == 0
        picture = cv2.imread(str(out))
        assert picture is not None
        assert picture.std() > 20
    assert main([*common, "--start", "900"]) == 2
    require_error(capsys.readouterr().err, "--start", 200, "val")
    assert main([*common, "--out", str(tmp_path / "file" / "x.png"), "--count", "0"]) == 2
    assert main(["data", "show", "camvid"]) == 2
    require_error(capsys.readouterr().err, "ROOT", "'camvid'")
    assert main(["data", "show", "camvid", "--set", "root=x"]) == 2
    require_error(capsys.readouterr().err, "--set root", "camvid ROOT")
