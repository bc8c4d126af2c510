"""What is submitted to clusters: scripts, runtime environments, KubeRay manifests; needs no cluster."""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
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
    """Run a script with a stand-in for `cirkd` that writes down how it was called."""
    stand_in = tmp_path / "cirkd"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\nexit 7\n')
    stand_in.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CIRKD_"))}
    return subprocess.run(
        ["bash", str(JOBS / name), *arguments],
        env={**clean, "CIRKD": str(stand_in), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_submits_a_command_that_exists_and_passes_the_exit_code_on(
    name: str, tmp_path: Path
) -> None:
    done = run_script(name, SCRIPTS[name], tmp_path, CIRKD_OUT="/shared/my runs")
    assert done.returncode == 7, done.stderr
    called = (tmp_path / "called").read_text().splitlines()
    values = parsed(called)
    assert called[0] == "submit"
    assert Path(values["root"]).resolve() == REPO
    assert values["words"][0] == name.removesuffix(".sh")
    inner = parsed(list(values["words"]))
    assert inner.get("name", inner.get("model")) in ("first", "sweep", "both", "/shared/my runs/first")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_its_arguments_says_which(name: str, tmp_path: Path) -> None:
    done = run_script(name, ["one"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert not (tmp_path / "called").exists()


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
