"""What is submitted to clusters: scripts, runtime environments, KubeRay manifests; needs no cluster."""

from __future__ import annotations

import gzip
import os
import runpy
import shlex
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cirkd_ray.config import load_run
from cirkd_ray.sweep.space_check import check_space
from cirkd_ray.sweep.space_file import load_space
from tests.commandline import parsed
from tests.paths import REPO

JOBS = REPO / "jobs"
SCRIPTS = {
    "train.sh": ["quickstart", "first", "--set", "train.steps=3"],
    "tune.sh": ["smoke", "sweep", "--export", "/mnt/shared/runs/best.yaml"],
    "compare.sh": ["both", "quickstart", "--seeds", "2"],
    "eval.sh": ["first", "2"],
}
MANIFESTS = sorted((JOBS / "kuberay").glob("*.yaml"))


def run_script(
    name: str, arguments: list[str], tmp_path: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with a stand-in for Python that writes down how it was called."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in -m) ;; */upload.py) exit 0;; *) exit 7;; esac\n'
        f'printf "%s\\n" "$@" > {tmp_path}/called\n'
        f'while [ $# -gt 0 ]; do [ "$1" = --runtime-env ] && cp "$2" {tmp_path}/env.yaml; shift; done\n'
        f'echo "$RAY_AUTH_MODE" > {tmp_path}/mode\n'
    )
    python.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CIRKD_"))}
    return subprocess.run(
        ["bash", str(JOBS / name), *arguments],
        env={**clean, "CIRKD_PYTHON": str(python), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_submits_a_command_that_exists_and_passes_the_exit_code_on(
    name: str, tmp_path: Path
) -> None:
    done = run_script(
        name, SCRIPTS[name], tmp_path, RAY_ADDRESS="http://head:8265", CIRKD_OUT="/shared/my runs"
    )
    assert done.returncode == 7, done.stderr  # of the look at the job's own exit code
    called = (tmp_path / "called").read_text().splitlines()
    assert called[:4] == ["-m", "ray.scripts.scripts", "job", "submit"]
    assert called[called.index("--working-dir") + 1] == str(REPO)
    entry = called[called.index("--") + 1 :]
    assert entry[:3] == ["python", "-m", "cirkd_ray"]
    assert entry[3] == name.removesuffix(".sh")
    assert parsed(entry[3:])
    assert any("/shared/my runs" in part for part in entry)
    assert (tmp_path / "mode").read_text().strip() == ""


def test_a_token_turns_token_authentication_on(tmp_path: Path) -> None:
    run_script(
        "train.sh", ["a", "b"], tmp_path, RAY_ADDRESS="http://h:1", CIRKD_OUT="/s", RAY_AUTH_TOKEN="secret"
    )
    assert (tmp_path / "mode").read_text().strip() == "token"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["quickstart"], {}, "usage: jobs/train.sh RECIPE NAME"),
        (["quickstart", "a"], {"RAY_ADDRESS": "http://h:1"}, "set CIRKD_OUT"),
        (["quickstart", "a"], {"CIRKD_OUT": "/s"}, "set RAY_ADDRESS"),
        (
            ["quickstart", "a"],
            {"RAY_ADDRESS": "x", "CIRKD_OUT": "/s", "CIRKD_ENV": "conda"},
            "CIRKD_ENV=conda",
        ),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = run_script("train.sh", arguments, tmp_path, **environment)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_head_that_does_not_answer_is_75_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    main = runpy.run_path(str(JOBS / "exit_code.py"))["main"]
    assert main("cirkd-1") == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("job cirkd-1: the head does not answer (")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("Request failed with status code 503: no upstream", 75),
        ("Request failed with status code 404: no such job", 1),
    ],
)
def test_what_stands_before_a_dead_head_counts_as_the_head(
    error: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def get_job_info(self, submission_id: str) -> None:
            raise RuntimeError(error)

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    assert runpy.run_path(str(JOBS / "exit_code.py"))["main"]("cirkd-1") == code


@pytest.mark.parametrize("kind", sorted(path.stem for path in (JOBS / "env").glob("*.yaml")))
def test_a_runtime_environment_is_valid_and_follows_the_dependencies(kind: str, tmp_path: Path) -> None:
    from ray.runtime_env import RuntimeEnv

    run_script("train.sh", ["a", "b"], tmp_path, RAY_ADDRESS="http://h:1", CIRKD_OUT="/s", CIRKD_ENV=kind)
    tree = yaml.safe_load((tmp_path / "env.yaml").read_text())
    RuntimeEnv(**tree)
    assert "@PYPROJECT@" not in str(tree)
    if kind == "pip":
        assert tree["pip"]["packages"][0] == "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
        assert tree["pip"]["packages"][1].startswith("# ")


def strict(schema: Any) -> Any:
    """An openAPIV3 schema as JSON Schema that takes no unknown fields."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(found.get("properties"), dict) and "additionalProperties" not in found and "type" in found:
        found["additionalProperties"] = bool(found.get("x-kubernetes-preserve-unknown-fields"))
    if found.pop("nullable", False) and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    return found


@pytest.fixture(scope="module")
def rayjob_schema() -> Any:
    path = (
        Path(os.environ.get("CIRKD_KUBERAY", REPO.parent / "shared" / "kuberay")) / "ray.io_rayjobs.yaml.gz"
    )
    if not path.is_file():
        pytest.skip(f"KubeRay's resource definitions not found at {path}; set CIRKD_KUBERAY")
    definition = yaml.load(
        gzip.decompress(path.read_bytes()), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return strict(version["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_fits_kuberays_schema(path: Path, rayjob_schema: Any) -> None:
    import jsonschema

    manifest = yaml.safe_load(path.read_text())
    validator = jsonschema.Draft7Validator(rayjob_schema)
    assert [error.message for error in validator.iter_errors(manifest)] == []
    wrong = deepcopy(manifest)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert list(validator.iter_errors(wrong)), "the schema would let anything through"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifests_entry_point_is_a_command_that_resumes(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    entry = shlex.split(spec["entrypoint"])
    assert entry[:3] == ["python", "-m", "cirkd_ray"]
    values = parsed(entry[3:])
    assert values["name"]
    assert values["out"].startswith("/shared/")
    if entry[3] == "train":
        assert values["resume"] is not None
        load_run(values["recipe"], values["overrides"])
    else:
        check_space(load_space(values["space"], values["overrides"]))
    mounts = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ]
    assert {"name": "shared", "mountPath": "/shared"} in mounts


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A working directory with code, ignored files, links and data."""
    root = tmp_path / "checkout"
    for name, text in {
        "code/a.py": "x = 1",
        ".gitignore": "*.log\n/runs/\n",
        "big.log": "x" * 200,
        "data/a.png": "x",
        "code/data/b.py": "y = 2",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "blob").write_bytes(b"x" * 1000)
    (root / "my link").symlink_to(tmp_path / "elsewhere")
    (root / "code" / "blob").symlink_to(tmp_path / "elsewhere" / "blob")
    return root


def measured(root: Path, environment: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / "upload.py"), str(root), str(environment)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def sparse(path: Path, mebibytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)


def test_links_and_data_are_left_out_of_the_upload_and_named(checkout: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    environment = tmp_path / "env.yaml"
    environment.write_text("env_vars: {A: b}\nexcludes: [code/x]\n")
    done = measured(checkout, environment)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert all(name in line for name in ("data", "my link", "code/blob"))
    tree = yaml.safe_load(environment.read_text())
    assert tree["env_vars"] == {"A": "b"}
    assert "code/x" in tree["excludes"]
    found: list[Path] = []
    _dir_travel(checkout, [_get_excludes(checkout, tree["excludes"])], found.append, True)
    names = {str(path.relative_to(checkout)) for path in found if path.is_file()}
    assert names == {"code/a.py", "code/data/b.py", ".gitignore"}


def test_a_large_file_is_named_and_one_that_the_head_would_not_take_is_refused(
    checkout: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "env.yaml"
    environment.write_text("env_vars: {}\n")
    sparse(checkout / "weights.pth", 20)
    done = measured(checkout, environment)
    assert done.returncode == 0
    line = done.stderr.splitlines()[-1]
    assert "weights.pth" in line
    assert ".rayignore" in line
    sparse(checkout / "x.bin", 600)
    done = measured(checkout, environment)
    assert done.returncode == 2
    assert "x.bin 600.0 MiB" in done.stderr
    (checkout / ".rayignore").write_text("x.bin\nweights.pth\n")  # as the line says
    assert measured(checkout, environment).returncode == 0


def test_many_small_files_are_measured_by_their_folder(checkout: Path, tmp_path: Path) -> None:
    environment = tmp_path / "env.yaml"
    environment.write_text("env_vars: {}\n")
    (checkout / "frames").mkdir()
    for index in range(30):
        sparse(checkout / "frames" / f"{index}.png", 5)
    done = measured(checkout, environment)
    assert done.returncode == 2
    assert "frames/ 150.0 MiB" in done.stderr


@pytest.mark.parametrize("text", ["a: [", "- a", "excludes: data"])
def test_a_bad_environment_file_is_one_line(text: str, checkout: Path, tmp_path: Path) -> None:
    environment = tmp_path / "bad.yaml"
    environment.write_text(text)
    done = measured(checkout, environment)
    assert done.returncode == 2
    assert done.stderr.startswith("upload: CIRKD_ENV: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [1, 2])
def test_a_script_does_not_submit_what_is_refused(code: int, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in */upload.py) exit {code};; esac\ntouch {tmp_path}/submitted\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "CIRKD_PYTHON": str(python), "RAY_ADDRESS": "http://h:1", "CIRKD_OUT": "/s"}
    done = subprocess.run(["bash", str(JOBS / "train.sh"), "a", "b"], env=environment, check=False)
    assert done.returncode == 2
    assert not (tmp_path / "submitted").exists()


def test_of_a_librarys_traceback_one_line_is_left() -> None:
    text = (
        "a warning\nTraceback (most recent call last):\n  File x\n    raise A\nA: first\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  File y\n"
        "RuntimeError: Request failed with status code 413\nbody\n"
    )
    done = subprocess.run(
        [sys.executable, str(JOBS / "one_line.py")], input=text, capture_output=True, text=True, check=True
    )
    assert done.stderr == "a warning\nray: Request failed with status code 413\n"
