"""The command line: quick help, short errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest
import yaml

from cirkd_ray import __version__
from cirkd_ray.cli import main
from cirkd_ray.commands._options import local
from cirkd_ray.errors import UserError
from tests.commandline import command_at, command_paths, parsed
from tests.paths import REPO


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from cirkd_ray.cli import main; from tests.commandline import command_paths;"
        "main(['--help']);"
        "early = [name for name in sys.modules if name.startswith('cirkd_ray.commands.')];"
        "codes = [main([*path, '--help']) for path in command_paths()];"
        "heavy = {'torch', 'ray', 'cv2', 'timm', 'matplotlib', 'rich', 'numpy', 'yaml'} & set(sys.modules);"
        "sys.exit(f'{early} {heavy} {codes}' if early or heavy or any(codes) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("path", list(command_paths()), ids=" ".join)
def test_every_command_has_help_and_each_option_says_what_it_does(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {' '.join(('cirkd', *path))} ")
    options = [param for param in command_at(path).params if isinstance(param, click.Option)]
    assert "--debug" in {name for option in options for name in option.opts}
    assert all(option.help for option in options)


@pytest.mark.parametrize(
    ("words", "model", "scales", "flip"),
    [
        ("eval RUN --scales 0.75 1 1.25", "RUN", (0.75, 1.0, 1.25), False),
        ("eval RUN --scales 0.75 1 1.25 --flip", "RUN", (0.75, 1.0, 1.25), True),
        ("eval --flip --scales 0.5 1 --limit 3 RUN", "RUN", (0.5, 1.0), True),
        ("eval --scales 2 -- RUN", "RUN", (2.0,), False),
        ("eval --scales=2 RUN", "RUN", (2.0,), False),
        ("eval RUN", "RUN", (1.0,), False),
    ],
)
def test_an_option_of_several_words(words: str, model: str, scales: tuple[float, ...], flip: bool) -> None:
    values = parsed(words.split())
    assert (values["model"], values["scales"], values["flip"]) == (model, scales, flip)


def test_images_stand_before_and_after_options() -> None:
    words = "predict RUN a.png --write colors ids --out o b/ --set data.x=1 --set data.y=2 c.png"
    values = parsed(words.split())
    assert values["model"] == "RUN"
    assert values["inputs"] == ("a.png", "b/", "c.png")
    assert values["forms"] == ("colors", "ids")
    assert values["overrides"] == ("data.x=1", "data.y=2")


@pytest.mark.parametrize(
    ("words", "resume", "recipe"),
    [
        ("r", None, "r"),
        ("r --resume", "", "r"),
        ("--resume run", "run", None),
        ("--resume --local r", "", "r"),
    ],
)
def test_resume_takes_a_run_or_none(words: str, resume: str | None, recipe: str | None) -> None:
    values = parsed(["train", *words.split()])
    assert (values["resume"], values["recipe"]) == (resume, recipe)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian", "did you mean 'train'"),
        ("xyz", "known: bench, compare, data"),
        ("data chekc", "Did you mean 'check'"),
        ("train --resum", "Did you mean one of: '--restart', '--resume'"),
        ("train --accept-dat", "Did you mean '--accept-data'"),
        ("eval", "Missing argument 'MODEL'"),
        ("eval RUN --scales", "'--scales' requires an argument"),
        ("eval RUN --scales 1 x", "--scales: 'x' is not a valid float"),
        ("eval RUN --window 3xx", "--window: '3xx' is no size; write HEIGHTxWIDTH"),
        ("predict RUN --write colours", "is not one of 'colors', 'blends', 'ids'"),
        ("eval RUN --limit 0", "--limit: must be at least 1, not 0"),
        ("models --size 4", "'--size' requires 2 arguments"),
        ("train a b", "unexpected extra argument (b)"),
    ],
)
def test_a_wrong_command_line_is_told_in_two_lines(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("cirkd: ")
    assert hint in first
    assert second.endswith("--help` shows what it takes")


READ = {
    *(
        "recipe",
        "recipes",
        "space",
        "model",
        "folder",
        "path",
        "inputs",
        "root",
        "mirror",
        "check_submission",
    ),
    *("resume", "name", "names", "network", "data", "split", "chosen", "losses", "shapes", "sha256"),
    *("overrides", "differ", "window", "stride"),
    *("words", "address", "env", "variables", "follow", "stop"),
}
"""Words of command lines that are no place to write to: they are read, or name something."""
TO_URLS = {"data prepare", "doctor", "train", "tune", "compare", "eval", "predict", "export"}
"""Commands whose `--out` may be a URL."""


def words_of(command: click.Command) -> list[click.Parameter]:
    """Its arguments and options that take text."""
    plain = (click.Choice, click.IntRange, click.FloatRange, type(click.INT), type(click.FLOAT))
    return [p for p in command.params if not getattr(p, "is_flag", False) and not isinstance(p.type, plain)]


COMMANDS = {" ".join(path): command_at(path) for path in command_paths()}
WRITTEN = [
    (name, param)
    for name, command in COMMANDS.items()
    for param in words_of(command)
    if param.callback is local
]


def test_every_word_of_a_command_line_is_known_to_be_written_to_or_not() -> None:
    """A new one is refused here until it has `callback=local` or stands in one of the sets."""
    unknown = [
        f"cirkd {name}: {param.name}"
        for name, command in COMMANDS.items()
        for param in words_of(command)
        if param.callback is not local
        and param.name not in READ
        and (param.name, name in TO_URLS) != ("out", True)
    ]
    assert not unknown
    assert all(param.name not in READ or param.name == "root" for _, param in WRITTEN)


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "file:///x"])
@pytest.mark.parametrize(("name", "param"), WRITTEN, ids=[f"{n} {p.name}" for n, p in WRITTEN])
def test_a_url_is_no_place_for_results(
    name: str,
    param: click.Parameter,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [
        url if each is param else "x"
        for each in COMMANDS[name].params
        if isinstance(each, click.Argument) and (each.required or each is param)
    ]
    option = [param.opts[0], url] if isinstance(param, click.Option) else []
    assert main([*name.split(), *given, *option]) == 2
    shown = param.opts[0] if option else param.opts[0].upper()
    assert capsys.readouterr().err.startswith(f"cirkd: {shown} {url}: ")
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("Usage: cirkd ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cirkd_ray {__version__}\n"


def test_an_interruption_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cirkd_ray.config.schema.json_schema", interrupted)
    assert main(["recipes", "schema"]) == 130
    assert capsys.readouterr().err == "cirkd: interrupted\n"


@pytest.mark.parametrize("words", ["--debug recipes show nix", "recipes show nix --debug"])
def test_debug_shows_the_traceback(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRKD_RAY_LOGS", "0")
    with pytest.raises(UserError):
        main(words.split())
    assert os.environ["CIRKD_RAY_LOGS"] == "1"


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


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--json"],
        ["bench", "step", "--json"],
        ["bench", "scale", "--json"],
        ["data", "check", "shapes", ".", "--json"],
        ["tune", "smoke", "--export"],
    ],
)
def test_a_file_that_cannot_be_written_at_the_end_is_told_at_the_start(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "x.json"):
        assert main([*words, str(place)]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert words[-1] in err
        assert str(tmp_path) in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
