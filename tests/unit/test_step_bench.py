"""`cirkd bench step` on small crops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cirkd_ray.bench._step_count import COUNTERS, Tally
from cirkd_ray.bench._step_devices import PEAKS
from cirkd_ray.cli import main
from tests.errors import require_error

COUNTED = {"launch": 0}


def counters() -> dict[str, int]:
    """A device that counts ten launches whenever it is asked."""
    COUNTED["launch"] += 10
    return dict(COUNTED)


def measured(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    file = folder / "figures.json"
    assert main(["bench", "step", *words, "--device", "cpu", "--repeat", "1", "--json", str(file)]) == 0
    found: dict[str, dict[str, object]] = json.loads(file.read_text())
    return found


def test_two_recipes_have_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = ("quickstart", "cityscapes/skd_deeplabv3_resnet18")
    teacher = "teacher.set=[model.name=deeplabv3_resnet18]"
    found = measured(tmp_path, *recipes[:1], "--batch", "2", "--set", "data.crop=[32,64]")
    found |= measured(
        tmp_path, recipes[1], "--batch", "2", "--set", "data.crop=[32,64]", "--set", teacher, "--ranks", "2"
    )
    assert tuple(found) == recipes
    out = capsys.readouterr().out
    for recipe, values in found.items():
        assert recipe in out
        assert {"launches", "host_waits", "peak_bytes", "flops", "seconds"} <= values.keys()
        seconds, flops = values["seconds"], values["flops"]
        assert isinstance(seconds, dict)
        assert isinstance(flops, dict)
        assert {"data", "teacher", "student", "optimiser", "step"} <= seconds.keys() == flops.keys()
        assert any(name.startswith("loss ") for name in seconds)
        assert all(value > 0 for value in seconds.values())
        assert flops["teacher"]["float32"] > 0
        assert flops["student"]["float32"] == flops["step without distillation"]["float32"]
        assert flops["step"]["float32"] >= flops["student"]["float32"] + flops["teacher"]["float32"]
        assert values["host_waits"] == {}
        assert int(str(values["launches"])) > 100
        assert int(str(values["peak_bytes"])) > 10_000


def test_a_device_that_counts_gives_no_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COUNTERS, f"{__name__}:counters")
    found = measured(tmp_path, "quickstart", "--batch", "2", "--set", "data.crop=[32,64]")["quickstart"]
    assert found["counts_only"] is True
    assert set(found["seconds"].values()) == {None}  # type: ignore[attr-defined]
    assert (found["launches"], found["launches_are"]) == (10, "launches")


def test_wrong_counters_and_batches_are_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", "quickstart", "--device", "cpu", "--ranks", "3"]) == 2
    require_error(capsys.readouterr().err, "--ranks", 8, 3)
    monkeypatch.setenv(COUNTERS, "no_such_module:counters")
    assert main(["bench", "step", "quickstart", "--device", "cpu"]) == 2
    require_error(capsys.readouterr().err, COUNTERS)


def test_products_are_counted_by_type_in_both_passes() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    with Tally(PEAKS["H100"]) as tally:
        (x @ torch.randn(5, 7)).sum().backward()
        torch.randn(2, 5, dtype=torch.bfloat16) @ torch.randn(5, 3, dtype=torch.bfloat16)
    assert tally.flops == {"float32": 2 * 2 * 3 * 5 * 7, "bfloat16": 2 * 2 * 5 * 3}
    assert tally.model_seconds > 0


@pytest.mark.gpu
def test_a_step_on_cuda_waits_for_nothing(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    file = tmp_path / "figures.json"
    words = ["bench", "step", "quickstart", "--device", "cuda", "--repeat", "2", "--json", str(file)]
    for more in ([], ["--set", "train.precision=fp16"], ["--set", "train.ema=0.9"]):
        assert main([*words, *more]) == 0
        assert json.loads(file.read_text())["quickstart"]["host_waits"] == {}


def test_a_cohort_is_measured_together_and_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cohort.json"
    words = [
        "--members",
        "3",
        "--batch",
        "2",
        "--set",
        "data.crop=[32,64]",
        "--repeat",
        "1",
        "--device",
        "cpu",
    ]
    assert main(["bench", "cohort", *words, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert found["members"] == 3
    assert found["ratio"] == found["seconds"]["together"] / found["seconds"]["apart"]
    peaks = found["peak_bytes"]
    assert 0 < peaks["one"] < peaks["together"] <= 1.02 * peaks["teacher_and_students"] < 3 * peaks["one"]
    assert peaks["estimated"] == pytest.approx(peaks["together"], rel=0.15)
    assert found["memory_ratio"] == peaks["together"] / peaks["teacher_and_students"]
    assert f"together / apart: {found['ratio']:.2f}" in capsys.readouterr().out


def test_layouts_take_turns_and_give_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layout.json"
    words = ["--batch", "2", "--set", "data.crop=[32,64]", "--repeat", "1", "--device", "cpu"]
    assert main(["bench", "layout", "quickstart", "quickstart/baseline", *words, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert {recipe: set(works) for recipe, works in found.items()} == {
        "quickstart": {"student, evaluation", "teacher", "student, training"},
        "quickstart/baseline": {"student, evaluation", "student, training"},
    }
    for works in found.values():
        for seconds in works.values():
            assert seconds["ratio"] == seconds["first"] / seconds["last"] > 0
    assert "student, training" in capsys.readouterr().out
