"""`cirkd doctor` on one machine: planted defects are found, each with an advice; a sound machine has none."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.error
from collections import namedtuple
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cirkd_ray.cli import main
from cirkd_ray.device import memory_limit, share_cores, usable_cpus
from cirkd_ray.doctor import machine, network, places, software
from cirkd_ray.doctor.catalogue import CHECKS
from cirkd_ray.doctor.checks import Check, Finding, Level, Question, as_json, examine, judge, worst

Usage = namedtuple("Usage", "total used free")
MIB, GIB = 2**20, 2**30
QUESTION = Question("/runs")


def only(findings: Any, level: Level, check: str) -> Finding:
    """The one finding above OK: it is of that check and level, and advises something."""
    bad = [found for found in findings if found.level]
    assert [(found.check, found.level) for found in bad] == [(check, level)], bad
    assert bad[0].advice
    return bad[0]


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [(64 * MIB, 63 * MIB, 2), (512 * MIB, 512 * MIB, 1), (8 * GIB, 8 * GIB, 0), (8 * GIB, 64 * MIB, 2)],
)
def test_a_tiny_shared_memory(total: int, free: int, level: int) -> None:
    value = machine.shared_memory(QUESTION, usage=lambda place: Usage(total, total - free, free))
    (found,) = machine.judge_shared_memory(value, QUESTION)
    assert found.level == level
    assert bool(found.advice) == (level > 0)
    assert ("--shm-size" in found.advice) == (level > 0 and total < GIB)  # not where it is only full


def test_a_low_file_limit() -> None:
    for soft, level in ((256, 2), (1024, 1), (65536, 0), (-1, 0)):
        value = machine.file_limit(QUESTION, limit=lambda kind, soft=soft: (soft, 65536))
        (found,) = machine.judge_file_limit(value, QUESTION)
        assert found.level == level
        assert ("ulimit -n" in found.advice) == (level > 0)


def test_a_full_disk(tmp_path: Path) -> None:
    question = Question(str(tmp_path / "runs" / "deeper"))
    free = {str(tmp_path): MIB, **{str(each): MIB for each in tmp_path.parents}}
    value = machine.disk(
        question, usage=lambda p: Usage(100 * GIB, 0, free[p] if p == str(tmp_path) else 50 * GIB)
    )
    assert "--out: 1 MiB" in only(machine.judge_disk(value, question), Level.ERROR, "disk").text
    assert set(machine.disk(Question("s3://bucket/runs"))) == {"temporary files"}


def test_limits_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert (usable_cpus(tmp_path), memory_limit(tmp_path)) == (16.0, None)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (usable_cpus(tmp_path), memory_limit(tmp_path)) == (16.0, None)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert (usable_cpus(tmp_path), memory_limit(tmp_path)) == (1.5, 2 * GIB)
    older = tmp_path / "older"
    for name, text in (("cpu/cpu.cfs_quota_us", "200000"), ("cpu/cpu.cfs_period_us", "100000")):
        (older / name).parent.mkdir(parents=True, exist_ok=True)
        (older / name).write_text(text)
    (older / "memory").mkdir()
    (older / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert (usable_cpus(older), memory_limit(older)) == (2.0, None)
    (older / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert usable_cpus(older) == 16.0

    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    value = machine.processors(QUESTION, cgroup=tmp_path)
    found = only(machine.judge_processors(value, QUESTION), Level.WARNING, "CPUs")
    assert found.advice == "export OMP_NUM_THREADS=1"
    value |= {"ray": 16.0, "threads": None}
    found = only(machine.judge_processors(value, QUESTION), Level.WARNING, "CPUs")
    assert found.advice == "ray start --num-cpus=1"
    value |= {"ray": None, "usable": 2.0}
    found = only(machine.judge_processors(value, Question("/runs", loaders=4)), Level.WARNING, "CPUs")
    assert "data.workers=1" in found.advice

    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {60 * 2**20} kB\n")
    value = machine.memory(QUESTION, tmp_path, meminfo)
    assert "limited to 2.0 GiB" in only(machine.judge_memory(value, QUESTION), Level.WARNING, "memory").text
    value |= {"limit": 32 * GIB, "ray": float(60 * GIB)}
    assert only(machine.judge_memory(value, QUESTION), Level.WARNING, "memory").advice.startswith("ray start")
    assert not worst(machine.judge_memory({**value, "ray": float(32 * GIB)}, QUESTION))


def test_threads_are_shared_among_the_cpus_that_a_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setattr("cirkd_ray.device.usable_cpus", lambda: 6.5)
    share_cores(2)
    share_cores(2, loaders=8)
    assert threads == [3, 1]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    question = Question(str(tmp_path / "file" / "runs"), call="x")
    found = only(places.judge_out(places.write_out(question), question), Level.ERROR, "--out")
    assert "cannot be" in found.text
    sound = Question(str(tmp_path / "new" / "runs"), call="x")
    value = places.write_out(sound, "a")
    assert value["error"] == ""
    assert abs(value["ahead"]) < 1
    assert places.seen_out(sound) == ["a"]
    assert not worst(places.judge_out(value, sound))
    places.clean_out(sound, value["made"])
    assert not (tmp_path / "new" / "runs").exists()  # it was made for the probe


def test_what_lies_in_out_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    question = Question(str(tmp_path), call="x")
    places.clean_out(question, places.write_out(question)["made"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    empty = Question(str(tmp_path / "run"), call="x")
    places.clean_out(empty, places.write_out(empty)["made"])
    assert (tmp_path / "run").is_dir(), "somebody has made it, empty or not"


def test_a_place_behind_a_url() -> None:
    question = Question("memory://doctor/runs", call="x")
    value = places.write_out(question, "a")
    assert value == {"error": "", "ahead": None, "made": False}
    assert places.seen_out(question) == ["a"]
    places.clean_out(question, value["made"])
    assert places.seen_out(question) == []


def test_no_secret_of_a_url_is_told() -> None:
    secret = "memory://KEY:PASSWORD@doctor/runs"
    question = Question(secret, data=secret)
    found = [
        *places.judge_out({"error": "", "ahead": 1000}, question),
        *places.judge_shared({"a": True}, {"b": []}, question.out),
        *places.judge_data({"error": "", "names": 0}, question),
        *places.judge_data({"error": "", "names": 1}, question),
    ]
    assert len(found) == 5
    assert "PASSWORD" not in str(found)
    assert all("memory://doctor/runs" in each.text for each in found if "--out" not in each.text[:3])


class Hanging:
    """Stands for Ray and for visitors of two nodes, of which one hangs as soon as it writes to its mount."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, method: str) -> Any:
        def answer(*given: Any) -> Any:
            if method == "examine":
                return {"data root": {"error": "", "names": 1, "digest": ""}}
            if self.name == "ill":
                raise TimeoutError("no answer in time")
            return {
                "write": {"error": "", "ahead": None, "made": False},
                "seen": ["sound"],
                "clean": None,
                "now": 0.0,
                "listen": (1, b""),
                "take": 0,
            }[method]

        return SimpleNamespace(remote=lambda *given: partial(answer, *given))


def test_a_node_whose_mount_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from cirkd_ray.cluster import doctor

    nodes = [doctor.Node(name, name, name, {}) for name in ("sound", "ill")]
    stub = SimpleNamespace(get=lambda ask, timeout: ask(), wait=lambda *a, **k: None)
    monkeypatch.setattr(doctor, "ray", stub)
    monkeypatch.setattr(doctor, "living_nodes", lambda: nodes)
    monkeypatch.setattr(
        doctor, "_visitors", lambda nodes, clock: nullcontext({n.name: Hanging(n.name) for n in nodes})
    )
    monkeypatch.setattr(doctor, "skew", lambda ask: ask())
    findings, facts = doctor.visit(Question("/runs", data="/data"))
    (found,) = [each for each in findings if each.level is Level.ERROR]
    assert (found.check, found.nodes) == ("--out", ("ill",))
    assert "no answer in time" in found.text
    assert set(facts) == {"sound", "ill"}


def test_a_storage_whose_clock_is_off(tmp_path: Path) -> None:
    import time

    question = Question(str(tmp_path), call="x")
    value = places.write_out(question, clock=lambda: time.time() - 1000)
    assert only(places.judge_out(value, question), Level.ERROR, "clock").advice == places.SET_CLOCK


def test_storage_that_is_not_shared() -> None:
    wrote, seen = {"a": True, "b": True, "c": False}, {"a": ["a", "b"], "b": ["b"], "c": ["a", "b"]}
    found = only(places.judge_shared(wrote, seen, "/runs"), Level.ERROR, "--out")
    assert found.nodes == ("b",)
    assert "a wrote" in found.text
    assert not [*places.judge_shared(wrote, {"a": ["a", "b"]}, "/runs")]


def test_a_data_root_that_is_not_there_empty_or_another(tmp_path: Path) -> None:
    def look(root: Path) -> list[Finding]:
        question = Question("/runs", data=str(root))
        return [*places.judge_data(places.data_root(question), question)]

    assert only(look(tmp_path / "no"), Level.ERROR, "data root")
    assert "mounted" in only(look(tmp_path), Level.ERROR, "data root").text
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("")
    assert not worst(look(tmp_path / "one"))
    one, two = (places.data_root(Question("/runs", data=str(tmp_path / name))) for name in ("one", "two"))
    assert only(places.compare_data({"a": one, "b": two}), Level.ERROR, "data root")
    assert not [*places.compare_data({"a": one, "b": one})]
    assert not [*places.judge_data(places.data_root(QUESTION), QUESTION)]  # not asked for


def test_packages_that_are_missing_too_old_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    value = software.versions(QUESTION)
    assert not worst(software.judge_versions(value, QUESTION))
    without = {name: version for name, version in value["versions"].items() if name != "timm"}
    found = only(software.judge_versions({**value, "versions": without}, QUESTION), Level.ERROR, "packages")
    assert "timm is not installed" in found.text
    old = {**value["versions"], "torch": "2.1.0"}
    found = only(software.judge_versions({**value, "versions": old}, QUESTION), Level.ERROR, "packages")
    assert found.advice.startswith("pip install 'torch>=")

    def importing(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", importing)
    broken = software.versions(QUESTION)
    found = only(software.judge_versions(broken, QUESTION), Level.ERROR, "packages")
    assert "nms" in found.text
    assert "torch torchvision" in found.advice


def test_versions_that_differ_between_nodes() -> None:
    value = software.versions(QUESTION)
    other = {**value, "versions": {**value["versions"], "ray": "2.59.0"}}
    nodes = {"a": value, "b": value, "c": other}
    found = only(software.compare_versions(nodes), Level.ERROR, "packages")
    assert found.nodes == ("c",)
    assert found.advice == f"pip install ray=={value['versions']['ray']}"
    patched = {**value, "versions": {**value["versions"], "python": "3.11.99", "scipy": "1.14.0"}}
    patched_nodes = {"a": {**value, "versions": {**value["versions"], "python": "3.11.1"}}, "b": patched}
    assert {found.level for found in software.compare_versions(patched_nodes)} == {Level.WARNING}
    assert not [*software.compare_versions({"a": value, "b": value})]


GPU = {"name": "A100", "free": 79 * GIB, "total": 80 * GIB, "bf16": True}
DRIVER = {
    "cuda": "12.8",
    "driver": "550.54",
    "device_files": 1,
    "nccl": "2.27.3",
    "nccl_error": None,
    "gpus": [GPU],
}


@pytest.mark.parametrize(
    ("planted", "check", "level", "advice"),
    [
        ({"gpus": [], "cuda": None}, "GPUs", 2, "pip install"),
        ({"gpus": [], "device_files": 0}, "GPUs", 2, "--gpus all"),
        ({"gpus": []}, "GPUs", 2, "nvidia-smi"),
        ({"gpus": [{**GPU, "free": 10 * GIB}]}, "GPUs", 1, "nvidia-smi"),
        ({"nccl_error": "unhandled system error"}, "NCCL", 2, "NCCL_DEBUG"),
    ],
)
def test_gpus_that_cannot_be_used(planted: dict[str, Any], check: str, level: int, advice: str) -> None:
    found = only(software.judge_gpus({**DRIVER, **planted}, QUESTION), Level(level), check)
    assert advice in found.advice


def test_sound_gpus_and_nodes_whose_gpus_differ() -> None:
    told = [*software.judge_gpus(DRIVER, QUESTION)]
    assert not worst(told)
    assert any("bf16" in found.text and "550.54" in found.text for found in told)
    older = {**DRIVER, "gpus": [{**GPU, "name": "V100", "bf16": False}], "nccl": "2.21.5"}
    kinds = {found.check for found in software.compare_gpus({"a": DRIVER, "b": older})}
    assert kinds == {"GPUs", "NCCL"}
    assert not [*software.compare_gpus({"a": DRIVER, "b": {**DRIVER, "gpus": []}})]


def test_the_driver_is_read_where_torch_has_no_gpu(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert software.gpus(QUESTION, tmp_path)["driver"] is None
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n"
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").write_text("")
    found = software.gpus(QUESTION, tmp_path)
    assert (found["driver"], found["device_files"]) == ("550.54.15", 1)


def test_skewed_clocks() -> None:
    now = [100.0]

    def clock() -> float:
        now[0] += 0.01
        return now[0]

    assert abs(network.skew(lambda: clock(), clock)) < 1e-9
    assert network.skew(lambda: clock() + 7, clock) == pytest.approx(7)
    ahead = {"a": 0.01, "b": -7.0, "c": 400.0}
    found = [each for each in network.judge_clocks(ahead) if each.level]
    assert [(each.nodes, each.level) for each in found] == [(("b",), Level.WARNING), (("c",), Level.ERROR)]
    assert not worst(network.judge_clocks({"a": 0.01}))


def test_bytes_between_two_ends() -> None:
    sink, took = network.Sink("127.0.0.1"), []
    thread = threading.Thread(target=lambda: took.append(sink.take()))
    thread.start()
    sent = network.send("127.0.0.1", sink.port, sink.word)
    thread.join()
    assert took == [network.SENT]
    assert sent["error"] == ""
    assert sent["rate"] > 1e6


def test_a_sink_takes_nothing_from_others() -> None:
    sink, took = network.Sink("127.0.0.1"), []
    thread = threading.Thread(target=lambda: took.append(sink.take()))
    thread.start()
    assert network.send("127.0.0.1", sink.port, bytes(16))["error"]
    thread.join()
    assert took == [0]


def test_a_network_that_is_slow_or_closed() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = network.send("127.0.0.1", unused.getsockname()[1], b"")
    slow = {"rate": 1e7, "back": 1e-3, "error": ""}
    assert only(network.judge_network({("a", "b"): closed}), Level.ERROR, "network").nodes == ("a -> b",)
    assert "IFNAME" in only(network.judge_network({("a", "b"): slow}), Level.WARNING, "network").advice
    assert not worst(network.judge_network({("a", "b"): {**slow, "rate": 1e9}}))
    loop = {"address": "127.0.1.1", "error": "", "interface": None}
    assert only(network.compare_names({"a": loop}), Level.WARNING, "network").nodes == ("a",)
    assert not [
        *network.compare_names({"a": {**loop, "interface": "eth0"}, "b": {**loop, "address": "10.0.0.1"}})
    ]


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    at = {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert only(network.token(at), Level.ERROR, "token").advice == network.GET_TOKEN
    file.write_text("abc\n")
    file.chmod(0o644)
    assert not worst(network.token(at))  # pytest's folder is its owner's
    monkeypatch.setattr(network, "_others_can_read", lambda place: place.stat().st_mode & 0o004)
    assert only(network.token(at), Level.WARNING, "token").advice == f"chmod 600 {file}"
    file.chmod(0o600)
    assert not worst(network.token(at))
    head = {"RAY_ADDRESS": "head:6379"}
    assert "not sent" in only(network.token({**at, **head}), Level.WARNING, "token").text
    sent = {**at, **head, "RAY_AUTH_MODE": "token"}
    assert not worst(network.token(sent, joined=True))
    assert "run code" in only(network.token({**at, **head}, joined=True), Level.WARNING, "token").text


class Answer:
    status = 200

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *error: object) -> None: ...


def test_a_head_that_refuses_the_token() -> None:
    def guarded(request: Any, timeout: float) -> Answer:
        given = request.get_header("Authorization")
        if given != "Bearer right":
            raise urllib.error.HTTPError(request.full_url, 403 if given else 401, "no", {}, None)  # type: ignore[arg-type]
        return Answer()

    def away(request: Any, timeout: float) -> Answer:
        raise urllib.error.URLError(ConnectionRefusedError(111, "Connection refused"))

    head = "http://head:8265"
    assert not worst(network.ask_head(head, {"RAY_AUTH_TOKEN": "right"}, guarded))
    for given, said in (({"RAY_AUTH_TOKEN": "wrong"}, "refuses"), ({"RAY_AUTH_TOKEN_PATH": "/no"}, "wants")):
        found = only(network.ask_head(head, given, guarded), Level.ERROR, "token")
        assert said in found.text
        assert "wrong" not in found.text
    assert only(network.ask_head(head, {}, away), Level.ERROR, "head")
    open_to_all = network.ask_head(head, {}, lambda request, timeout: Answer())
    assert "run code" in only(open_to_all, Level.WARNING, "token").text


def test_a_probe_that_fails_is_a_finding_and_the_others_go_on() -> None:
    def fails(question: Question) -> None:
        raise OSError("no such device")

    checks = (Check("a", fails), Check("file limit", machine.file_limit, machine.judge_file_limit))
    facts = {"here": examine(checks, QUESTION)}
    findings = judge(checks, facts, QUESTION)
    assert [found.check for found in findings] == ["a", "file limit"]
    assert "no such device" in findings[0].text
    assert json.dumps(as_json(findings, facts))


def test_the_same_on_several_nodes_is_said_once() -> None:
    value = {"soft": 256, "hard": 256}
    checks = (Check("file limit", machine.file_limit, machine.judge_file_limit),)
    nodes = {
        "a": {"file limit": value},
        "b": {"file limit": value},
        "c": {"file limit": {**value, "soft": 9999}},
    }
    bad, good = judge(checks, nodes, QUESTION)
    assert (bad.nodes, good.nodes) == (("a", "b"), ("c",))


@pytest.fixture
def _light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checks that take long, or that depend on the machine that tests run on."""
    light = tuple(check for check in CHECKS if check.name in ("GPUs", "bytecode", "--out", "data root"))
    monkeypatch.setattr("cirkd_ray.doctor.catalogue.CHECKS", light)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_light")
def test_the_command_ends_with_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, out = tmp_path / "report.json", tmp_path / "runs"
    words = ["doctor", "--out", str(out), "--json", str(report)]
    assert main(["doctor", "--out", str(out), "--data", str(tmp_path / "no"), "--json", str(report)]) == 2
    told = json.loads(report.read_text())
    assert told["level"] == "error"
    assert [found["check"] for found in told["findings"] if found["level"] == "error"] == ["data root"]
    assert set(told["nodes"]["here"]) == {"GPUs", "bytecode", "data root", "--out"}
    printed = capsys.readouterr().out
    assert "does not exist" in printed
    assert "--set data.root=DIR" in printed
    assert not out.exists()

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert main(words) == 0
    assert main([*words, "--strict"]) == 1
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert main([*words, "--strict"]) == 0


@pytest.mark.usefixtures("_light")
def test_an_address_of_the_dashboard_is_asked_by_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert main(["doctor", "--out", str(tmp_path / "runs")]) == 2
    assert "does not answer" in capsys.readouterr().out
