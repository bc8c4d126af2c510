"""The command line: quick help, short errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from cirkd_ray.cli import main


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from cirkd_ray.cli import build_parser; build_parser().format_help();"
        "heavy = {'torch', 'ray', 'cv2', 'timm', 'matplotlib', 'rich'} & set(sys.modules);"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "argv",
    [
        ["recipes", "show", "quickstrat"],
        ["train", "--set", "optim.lrr=1"],
        ["train", "--resume", "nowhere"],
        ["train", "--name", ".."],
        ["train", "--name", " "],
        ["train", "--out", "/dev/null/x"],
        ["train", "--set", "train.steps=99999999999999999999"],
        ["train", "--set", "optim.lr=.inf"],
        ["train", "--set", "teacher=null"],
    ],
)
def test_errors_of_the_user_are_short_and_exit_with_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("cirkd: ")
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error


def test_recipes_list_show_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "list"]) == 0
    assert "camvid/cirkd_deeplabv3_mobilenetv2" in capsys.readouterr().out
    assert main(["recipes", "show", "quickstart", "--set", "seed=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["seed"] == 7
    assert main(["recipes", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(shown)
    shown["distill"]["losses"]["kd"]["temperature"] = "hot"
    assert not validator.is_valid(shown)
    shown["distill"]["losses"]["kd"] = {"kind": "nothing"}
    assert not validator.is_valid(shown)
