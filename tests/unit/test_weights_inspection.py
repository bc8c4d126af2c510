"""What `inspect` makes of files of every kind; tensors without memory where names and shapes are enough."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cirkd_ray.models import inspection
from tests.golden import networks

LIGHT = [name for name in networks.NETWORKS if not name.startswith("segformer_b") or name == "segformer_b0"]


def inspected(state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch) -> inspection.Inspection:
    """`inspect` of a file that holds `state`."""
    path = tmp_path / "file.pth"
    path.touch()
    monkeypatch.setattr(inspection, "read_state", lambda _: (state, ()))
    return inspection.inspect(path)


@pytest.mark.parametrize("name", LIGHT)
def test_every_official_checkpoint_is_known(name, tmp_path, monkeypatch):
    """PSPNet's classifier is called as ours are."""
    state = {key: torch.empty(shape, device="meta") for key, shape in networks.load(name).state.items()}
    found = inspected(state, tmp_path, monkeypatch)
    assert found.kind == "reference"
    assert (found.best.name, found.best.problems) == (name, 0)
    assert found.num_classes == 19
