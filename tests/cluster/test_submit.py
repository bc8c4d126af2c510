"""`cirkd submit`: what goes up, what is run, how the log is followed; with a stand-in for the head."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import AuthenticationTokenLoader, Config
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv

from cirkd_ray.cli import main
from cirkd_ray.cluster import submit
from cirkd_ray.cluster.upload import packed, requirements, runtime_environment
from cirkd_ray.errors import ConfigError
from tests.commandline import parsed
from tests.errors import refuses

ADDRESS = "http://head:8265"


@dataclass
class Job:
    status: JobStatus
    message: str = ""
    driver_exit_code: int | None = None
    submission_id: str = "other"
    entrypoint: str = ""


@dataclass
class Head:
    """Stands for a cluster's head: what was sent to it, and what it tells.

    `logs` are the connections to the log: each the parts that it yields, the last may be an error; `infos`
    what each look at the job finds, the last of them for ever.
    """

    logs: list[list[Any]] = field(default_factory=list)
    infos: list[Any] = field(default_factory=lambda: [Job(JobStatus.SUCCEEDED)])
    jobs: list[Job] = field(default_factory=list)
    sent: dict[str, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    executable: set[str] = field(default_factory=set)
    stopped: str = ""

    def __call__(self, address: str) -> Head:
        return self

    def list_jobs(self) -> list[Job]:
        return self.jobs

    def submit_job(self, **sent: Any) -> None:
        self.sent = sent
        folder = Path(sent["runtime_env"]["working_dir"])
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        self.names = set(files)
        self.executable = {name for name, path in files.items() if path.stat().st_mode & 0o100}

    def get_job_info(self, job: str) -> Any:
        found = self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]
        if isinstance(found, Exception):
            raise found
        return found

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for part in self.logs.pop(0) if self.logs else ():
            if isinstance(part, BaseException):
                raise part
            yield part

    def stop_job(self, job: str) -> None:
        self.stopped = job


@pytest.fixture(autouse=True)
def _own_tokens() -> Iterator[None]:
    """Ray keeps the mode and the token that it has read for as long as the process lives."""
    yield
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    found = Head()
    for name in [name for name in os.environ if name.startswith(("RAY_A", "CIRKD_OUT", "CIRKD_ENV"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("cirkd_ray.cluster.submit.JobSubmissionClient", found)
    monkeypatch.setattr("cirkd_ray.cluster.submit.PAUSE", 0.001)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with code, ignored files, links and data."""
    root = tmp_path / "work"
    for name, text in {
        "mine.yaml": "extends: quickstart\n",
        "code/a.py": "x = 1",
        ".gitignore": "*.log\n/runs/\nweights/\n",
        ".git/HEAD": "x",
        "big.log": "x" * 200,
        "code/run.sh": "true",
        "runs/a/run.yaml": "x",
        "data/a.png": "x",
        "code/data/b.py": "y = 2",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "code" / "run.sh").chmod(0o755)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "blob").write_bytes(b"x" * 1000)
    (root / "my link").symlink_to(tmp_path / "elsewhere")
    (root / "code" / "blob").symlink_to(tmp_path / "elsewhere" / "blob")
    monkeypatch.chdir(root)
    return root


OWN = {"mine.yaml", "code/a.py", "code/run.sh", "code/data/b.py"}


def run(*words: str) -> int:
    return main(["submit", "--address", ADDRESS, *words])


def entry(head: Head) -> list[str]:
    """The command line that was sent, without the program."""
    words = shlex.split(head.sent["entrypoint"])
    assert words[:3] == ["python", "-m", "cirkd_ray"]
    return words[3:]


def test_the_working_directory_and_the_package_go_up(
    head: Head, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--", "train", "mine.yaml", "--out", "/shared", "--name", "a", "--set", "optim.lr=0.1") == 0
    own = {name for name in head.names if not name.startswith("cirkd_ray/")}
    assert own == OWN
    # of which .gitignore has no say: the rooms `data` and `weights`
    assert {
        "cirkd_ray/data/base.py",
        "cirkd_ray/weights/open.py",
        "cirkd_ray/search_spaces/smoke.yaml",
    } < head.names
    assert not any("__pycache__" in name for name in head.names)
    assert head.executable == {"code/run.sh"}
    values = parsed(entry(head))
    assert (values["recipe"], values["name"], values["resume"]) == ("mine.yaml", "a", "")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("cirkd: left out: data, runs, ")
    assert all(name in said[0] for name in ("my link", "code/blob"))


def test_a_folder_that_holds_the_package_is_taken_as_it_is(head: Head, folder: Path) -> None:
    (folder / "cirkd_ray").mkdir()
    (folder / "cirkd_ray" / "__init__.py").write_text("mine")
    assert run("--", "train", "--out", "/shared", "--name", "a") == 0
    assert head.names == OWN | {"cirkd_ray/__init__.py"}


def test_a_large_file_is_named_and_one_that_the_head_would_not_take_is_refused(folder: Path) -> None:
    def sparse(name: str, mebibytes: int) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(mebibytes << 20)

    said: list[str] = []
    sparse("weights.pth", 20)
    with packed(folder, [], said.append) as place:
        assert (place / "weights.pth").is_file()
    assert "weights.pth 20.0 MiB" in said[-1]
    assert ".rayignore" in said[-1]
    sparse("x.bin", 600)
    with refuses(folder, ConfigError, "x.bin 600.0 MiB"), packed(folder, [], said.append):
        pass
    (folder / ".rayignore").write_text("x.bin\nweights.pth\n")  # as the line says
    with packed(folder, ["code"], said.append) as place:
        assert not (place / "code").exists()
    (folder / "frames").mkdir()
    for index in range(30):
        sparse(f"frames/{index}.png", 5)
    with refuses(folder, ConfigError, "frames/ 150.0 MiB"), packed(folder, [], said.append):
        pass


def test_a_name_is_made_and_told_where_train_has_none(
    head: Head, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIRKD_OUT", "s3://bucket/runs")
    assert run("--", "train") == 0
    line = entry(head)
    assert line[:3] == ["train", "--out", "s3://bucket/runs"]
    assert line[-1] == "--resume"
    name = line[line.index("--name") + 1]
    assert name.startswith("quickstart-")
    assert f"--name {name}: submit again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --name a", "--out runs: lies in the job's own folder"),
        ("tune smoke --out here", "--out here: lies in"),
        ("train quikstart --out /s", "did you mean 'quickstart'?"),
        ("train mine.yaml --out /s --set optim.lrr=1", "optim.lrr"),
        ("train ../other.yaml --out /s", "../other.yaml: lies outside of"),
        ("tune smkoe --out /s", "smkoe: no such search space"),
        ("trian --out /s", "did you mean 'train'?"),
        ("train --resum --out /s", "--resum"),
        ("submit -- train", "does not submit itself"),
        ("data", "data: name one of its commands"),
    ],
)
def test_what_cannot_run_is_told_before_anything_is_sent(
    words: str, message: str, head: Head, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--", *words.split()) == 2
    assert message in capsys.readouterr().err
    assert not head.sent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of: -- COMMAND ..., --follow ID, --stop ID"),
        (["--follow", "a", "--", "train"], "give one of"),
        (["--env", "conda", "--", "train", "--out", "/s"], "--env conda: pip, image or the path"),
        (["--var", "NOWHERE", "--", "train", "--out", "/s"], "--var NOWHERE: is not set here"),
        (["--dir", "nowhere", "--", "train", "--out", "/s"], "--dir nowhere: is no folder"),
        (["--address", "", "--", "train", "--out", "/s"], "--address: give the cluster's dashboard"),
    ],
)
def test_a_wrong_line_is_told(
    words: list[str], message: str, head: Head, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "s3://me:5ecret@bucket/x",
        "s3://me:5ec/5ecret@bucket/x",
        "https://h/x?X-Amz-Signature=5ecret",
        "https://5ecret@h/x",
        "https://[5ecret",
    ],
)
def test_a_secret_does_not_go_into_a_jobs_command_line(
    url: str, head: Head, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--", "train", "--out", "/s", "--set", f"data.root={url}") == 2
    assert "5ecret" not in capsys.readouterr().err
    assert not head.sent


@pytest.mark.parametrize("text", ["a: [", "- a", "excludes: data", "env_vars: [A]", "env_vars: {A: 1}"])
def test_a_bad_environment_file_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with refuses(f"--env {file}", ConfigError):
        runtime_environment(str(file), {})


def test_runtime_environments_are_valid_and_hold_the_variables(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("env_vars: {A: b}\nexcludes: [x]\n")
    for kind in ("pip", "image", str(file)):
        tree = runtime_environment(kind, {"C": "d"})
        RuntimeEnv(**{key: value for key, value in tree.items() if key != "excludes"})
        assert tree["env_vars"]["PYTHONUNBUFFERED"] == "1"
        assert tree["env_vars"]["C"] == "d"
    assert tree["env_vars"]["A"] == "b"
    assert any(line.startswith("torch>=") for line in requirements())


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (Job(JobStatus.SUCCEEDED), 0),
        (Job(JobStatus.FAILED, "exit code 2", 2), 2),
        (Job(JobStatus.FAILED, "node died"), 1),
        (Job(JobStatus.FAILED, "killed", -9), 137),
        (Job(JobStatus.STOPPED), 143),
    ],
)
def test_the_jobs_own_code_is_returned(
    job: Job, code: int, head: Head, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.infos, head.logs = [job], [["step 1\n", "step 2\n"]]
    assert run("--follow", "cirkd-1") == code
    captured = capsys.readouterr()
    assert captured.out == "step 1\nstep 2\n"
    assert job.message in captured.err


def test_a_log_that_breaks_off_goes_on_where_it_was(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.logs = [["a\nb\n", OSError("reset")], [RuntimeError("status code 503")], ["a\n", "b\nc\n", "d\n"]]
    head.infos = [Job(JobStatus.RUNNING)] * 3 + [Job(JobStatus.SUCCEEDED)]
    assert run("--follow", "cirkd-1") == 0
    captured = capsys.readouterr()
    assert captured.out == "a\nb\nc\nd\n"
    assert captured.err.count("does not answer") == 1


def test_a_head_that_stays_away_is_75_and_said(
    head: Head, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cirkd_ray.cluster.submit.PATIENCE", 0.01)
    head.infos = [ConnectionError("no route")]
    assert run("--follow", "cirkd-1") == submit.UNKNOWN == 75
    assert "job cirkd-1 may go on: cirkd submit --follow cirkd-1" in capsys.readouterr().err


def test_a_job_that_is_not_there_is_an_error(head: Head, capsys: pytest.CaptureFixture[str]) -> None:
    head.infos = [RuntimeError("Request failed with status code 404: Job nix does not exist.")]
    assert run("--follow", "nix") == 2
    assert capsys.readouterr().err.startswith("cirkd: job nix: Request failed with status code 404")


def test_nothing_is_sent_to_a_head_that_does_not_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"

    def client(asked: str) -> None:
        raise ConnectionError(f"Failed to connect to Ray at address: {asked}.")

    monkeypatch.setattr("cirkd_ray.cluster.submit.JobSubmissionClient", client)
    assert main(["submit", "--address", address, "--", "train", "--out", "/s", "--name", "a"]) == 75
    assert "nothing was submitted" in capsys.readouterr().err


def test_the_same_line_again_follows_the_job_that_runs(head: Head, folder: Path) -> None:
    line = ["--", "train", "--out", "/shared", "--name", "a"]
    assert run("--detach", *line) == 0
    same = Job(JobStatus.RUNNING, submission_id="cirkd-7", entrypoint=head.sent["entrypoint"])
    head.jobs, head.sent = [Job(JobStatus.RUNNING), same], {}
    assert run(*line) == 0
    assert not head.sent
    same.status = JobStatus.FAILED
    assert run(*line) == 0
    assert head.sent


def test_a_job_is_stopped_and_one_that_is_not_followed_goes_on(
    head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--stop", "cirkd-7") == 0
    assert head.stopped == "cirkd-7"
    head.logs = [["a\n", KeyboardInterrupt()]]
    head.stopped = ""
    assert run("--follow", "cirkd-7") == 130
    assert "job cirkd-7 goes on" in capsys.readouterr().err
    assert head.stopped == ""


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", ""])
def test_a_token_turns_token_authentication_on(
    name: str, head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE")
    run("--follow", "a")
    assert "RAY_AUTH_MODE" not in os.environ
    if name:
        monkeypatch.setenv(name, "x")
    else:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("x")
    run("--follow", "a")
    assert os.environ.pop("RAY_AUTH_MODE") == "token"
