"""Every named class says what it is, and every setting what it means: nobody has to read the source."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from cirkd_ray.cli import main
from cirkd_ray.config import sections, spec
from cirkd_ray.config.described import entry_of, settings_of
from cirkd_ray.config.registry import DATASETS, HEADS, LOSSES, TASK_LOSSES, Registry, network_models

ENTRIES = [(kind, name) for kind in (LOSSES, TASK_LOSSES, DATASETS, HEADS) for name in kind.names()]


@pytest.mark.parametrize(("registry", "name"), ENTRIES, ids=[f"{k.kind} {n}" for k, n in ENTRIES])
def test_every_entry_is_described(registry: Registry[Any], name: str) -> None:
    entry = entry_of(registry, name)
    assert len(entry.summary) > 20
    assert not [setting.name for setting in entry.settings if not setting.meaning]
    if registry is LOSSES:
        assert entry.terms
        assert any(year in entry.text for year in map(str, range(2014, 2027))), "names no source"


def test_every_field_of_a_recipe_is_described() -> None:
    own = [c for m in (spec, sections) for c in vars(m).values() if isinstance(c, type)]
    models = [c for c in own if issubclass(c, BaseModel) and c.__module__.startswith("cirkd_ray")]
    assert len(models) > 10
    for model in [*models, network_models()[-1]]:
        assert not [setting.name for setting in settings_of(model) if not setting.meaning], model


def test_commands_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    def run_cli(*words: str, code: int = 0) -> str:
        assert main(words) == code
        found = capsys.readouterr()
        return found.out + found.err

    listed = run_cli("losses", "list")
    assert all(name in listed for name in (*LOSSES.names(), *TASK_LOSSES.names()))
    shown = json.loads(run_cli("losses", "show", "cirkd_memory", "--json"))
    settings = {setting["name"]: setting for setting in shown["settings"]}
    assert settings["temperature"]["default"] == "0.1"
    assert settings["temperature"]["values"] == "number > 0"
    assert settings["mode"]["values"] == "class | reference"
    assert shown["terms"] == {"memory_pixel": 0.1, "memory_region": 0.1}
    assert "gamma" in run_cli("losses", "show", "focal")
    assert "output_stride" in run_cli("heads", "show", "deeplabv3")
    assert "camvid" in run_cli("data", "sets")
    assert "label_suffix" in run_cli("data", "sets", "folder")
    assert "did you mean 'cwd'" in run_cli("losses", "show", "cwdd", code=2)
