"""The measurement compares pipelines that do the same, and prints what it found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cirkd_ray.bench import data as bench
from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.data.files import FileDataset
from cirkd_ray.data.transforms import TrainTransform


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (_, extension) in bench.SETS.items():
        monkeypatch.setitem(bench.SETS, name, ((60, 100), extension))


@pytest.mark.parametrize("name", sorted(bench.SETS))
def test_both_pipelines_make_the_same_crop(name: str, tmp_path: Path) -> None:
    bench.draw_set(name, tmp_path, count=2)
    data = build_dataset(name, split="val", root=tmp_path, subset=True)
    assert isinstance(data, FileDataset)
    transform = TrainTransform(crop=(64, 72))
    for n in range(12):
        image, label = transform(data.open(n % 2), np.random.default_rng(n))
        other_image, other_label = bench.straightforward(data, transform, n % 2, np.random.default_rng(n))
        np.testing.assert_array_equal(np.where(label == 254, 255, label), other_label)
        inside = label != 254
        shown = other_image.transpose(1, 2, 0) + np.array(bench.MEAN, np.float32)
        assert np.abs(shown - image)[inside].max() <= 1.01
        assert (other_image.transpose(1, 2, 0)[~inside] == 0).all()


def test_the_command_prints_two_tables(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "camvid", "--seconds", "0.1", "--workers", "0", "--batch", "2", "--step-ms", "1"]
    assert main(["bench", "data", *options]) == 0
    shown = capsys.readouterr().out
    assert "images/s on one core" in shown
    assert "camvid, prepared" in shown
    assert main(["bench", "data", "--data", "nix"]) == 2
