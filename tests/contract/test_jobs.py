"""What starts work on clusters: scripts, KubeRay's manifests, SLURM's script, Ray's autoscaler file."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import subprocess
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cirkd_ray.config import load_run
from cirkd_ray.sweep.space_check import check_space
from cirkd_ray.sweep.space_file import load_space
from tests.commandline import parsed
from tests.contract.kustomize import render
from tests.contract.test_images import pinned, require_ray_start
from tests.paths import REPO

JOBS = REPO / "jobs"
SCRIPTS = {
    "train.sh": ["quickstart", "first", "--set", "train.steps=3"],
    "tune.sh": ["smoke", "sweep", "--export", "/mnt/shared/runs/best.yaml"],
    "compare.sh": ["both", "quickstart", "--seeds", "2"],
    "eval.sh": ["first", "2"],
}
FOLDERS = sorted(path.parent for path in (JOBS / "kuberay").glob("[!s]*/**/kustomization.yaml"))
"""Of resources: those in `storage` are parts of others."""


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


def schema(kind: str) -> Any:
    path = (
        Path(os.environ.get("CIRKD_KUBERAY", REPO.parent / "shared" / "kuberay")) / f"ray.io_{kind}s.yaml.gz"
    )
    if not path.is_file():
        pytest.skip(f"KubeRay's resource definitions not found at {path}; set CIRKD_KUBERAY")
    definition = yaml.load(
        gzip.decompress(path.read_bytes()), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    return strict(version["schema"]["openAPIV3Schema"])


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.Draft7Validator]:
    return {kind: jsonschema.Draft7Validator(schema(kind.lower())) for kind in ("RayJob", "RayCluster")}


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The specifications of the head's pod and of each worker group's."""
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_manifest_fits_kuberays_schema(folder: Path, validators: dict[str, Any]) -> None:
    (manifest,) = render(folder)
    validator = validators[manifest["kind"]]
    assert [error.message for error in validator.iter_errors(manifest)] == []
    wrong = deepcopy(manifest)
    pods(wrong)[0]["containers"][0]["imagee"] = "x"
    assert list(validator.iter_errors(wrong)), "the schema would let anything through"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_container_has_bounds_and_probes_and_no_rights(folder: Path) -> None:
    (manifest,) = render(folder)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == pinned()["ray"]
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["image"].startswith("cirkd-ray:")
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["exec"]["command"] == ["python", "/opt/healthy.py"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.parent.name == "overlays"], ids=lambda f: f.name)
def test_a_manifests_entry_point_is_a_command_that_resumes(folder: Path) -> None:
    (manifest,) = render(folder)
    assert manifest["metadata"]["name"] == f"cirkd-{folder.name}"
    assert manifest["spec"]["submissionMode"] == "K8sJobMode"
    entry = shlex.split(manifest["spec"]["entrypoint"])
    place = "s3://bucket" if folder.name.endswith("-bucket") else "/shared"
    options = dict(zip(entry, [*entry[1:], ""], strict=True))
    assert options["--out"].startswith(place)
    if place == "/shared":
        assert all({"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
                   for pod in pods(manifest))  # fmt: skip
    else:
        assert all(pod["containers"][0]["envFrom"] for pod in pods(manifest))
    assert entry[0] == "cirkd"
    values = parsed([word.replace("s3://", "/") if word == options["--out"] else word for word in entry[1:]])
    assert values["name"]
    if entry[1] == "train":
        assert values["resume"] is not None
        load_run(values["recipe"], values["overrides"])
    else:
        check_space(load_space(values["space"], values["overrides"]))


def test_the_cluster_has_spot_machines_and_nothing_while_nothing_runs() -> None:
    (manifest,) = render(JOBS / "kuberay" / "cluster")
    spot = manifest["spec"]["workerGroupSpecs"][1]
    assert spot["groupName"] == "gpu-spot"
    assert spot["template"]["spec"]["nodeSelector"]
    assert manifest["spec"]["enableInTreeAutoscaling"] is True
    assert all(group["minReplicas"] == 0 for group in manifest["spec"]["workerGroupSpecs"])


def test_the_autoscalers_file_fits_rays_schema_and_starts_ray_as_ray_takes_it() -> None:
    import ray.autoscaler

    tree = yaml.safe_load((JOBS / "autoscaler" / "aws.yaml").read_text())
    known = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(tree, known)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**tree, "dockerr": {}}, known)
    assert tree["head_node_type"] in tree["available_node_types"]
    spot = tree["available_node_types"]["gpu_spot"]["node_config"]
    assert spot["InstanceMarketOptions"] == {"MarketType": "spot"}
    for line in (tree["head_start_ray_commands"][-1], tree["worker_start_ray_commands"][-1]):
        mode, *words = shlex.split(line)
        assert mode == "RAY_AUTH_MODE=token"
        require_ray_start(words)


SLURM = {
    "scontrol": '[ "$1" = show ] && printf "n1\\nn2\\n" || echo "$@" >> "$TOLD/requeued"',
    "srun": 'case "$*" in *hostname*) echo "::1 10.0.0.1";; '
    '*) echo "$@" >> "$TOLD/srun"; echo "$RAY_AUTH_TOKEN" >> "$TOLD/tokens"; exec sleep 60;; esac',
    "ray": "exit 0",
    "cirkd": 'echo "$RAY_ADDRESS $RAY_AUTH_MODE $*" > "$TOLD/cirkd"; trap "exit 143" TERM; '
    'n=0; until [ "$(grep -c . "$TOLD/tokens")" = 2 ] || [ $n -ge 100 ]; do sleep 0.1; n=$((n+1)); done; '
    'n=0; while [ -e "$TOLD/wait" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done; exit "${CODE:-0}"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes, with stand-ins for SLURM, Ray and cirkd."""
    for name, body in SLURM.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "4"}
    return {
        **os.environ,
        **job,
        "SLURM_GPUS_ON_NODE": "2",
        "CIRKD_BIN": str(tmp_path / "bin"),
        "TOLD": str(tmp_path),
    }


def slurm_line(*words: str) -> list[str]:
    return ["bash", str(JOBS / "slurm" / "ray.sbatch"), *words]


@pytest.mark.parametrize("code", [0, 3])
def test_slurm_starts_a_node_each_and_passes_the_code_on(
    code: int, slurm: dict[str, str], tmp_path: Path
) -> None:
    environment = {**slurm, "CODE": str(code)}
    done = subprocess.run(
        slurm_line("train", "x y"), env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "cirkd").read_text() == "10.0.0.1:20077 token train x y\n"
    calls = [line.split(" ray start ") for line in (tmp_path / "srun").read_text().splitlines()]
    assert sorted(call[0].split("--nodelist=")[1] for call in calls) == ["n1", "n2"]
    for _, words in calls:
        require_ray_start(["ray", "start", *words.split()])
        assert "--num-gpus=2" in words
    (token,) = set((tmp_path / "tokens").read_text().split())
    assert len(token) == 64
    assert not (tmp_path / "requeued").exists()


def test_slurms_notice_reaches_the_run_and_the_job_is_queued_again(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    job = subprocess.Popen(slurm_line("train"), env=slurm, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "cirkd").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)  # its trap is set
    job.terminate()
    assert job.wait(timeout=60) == 143
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
