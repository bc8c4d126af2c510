"""A command as a job of a Ray cluster: sent, followed to its end, found again."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cirkd_ray.cluster.upload import packed, runtime_environment
from cirkd_ray.errors import ConfigError, first_line

UNKNOWN = 75
"""Exit code where nobody knows how the job ended: the head does not answer."""
STOPPED = 143
"""Exit code of a job that was stopped, as of a command that gets SIGTERM."""
PATIENCE = 60.0
"""Seconds for which a head that is away is asked again."""
PAUSE = 1.0
"""Seconds between two questions."""
Say = Callable[[str], None]


class HeadAway(Exception):
    """The head, or what stands before it, does not answer."""


@contextmanager
def _asked(about: str) -> Iterator[None]:
    """Say in one line what the head, its client or the way there complains of.

    Raises:
        HeadAway: it does not answer.
        ConfigError: it refuses.
    """
    try:
        yield
    except (ConfigError, HeadAway):
        raise
    except Exception as error:  # of the connection, the token, the head, by several libraries
        reason = first_line(error)
        if isinstance(error, OSError) or "status code 5" in reason:  # also a proxy before a dead head
            raise HeadAway(reason) from None
        raise ConfigError(f"{about}: {reason}") from None


@dataclass(frozen=True)
class Cluster:
    """The head that jobs are sent to.

    Args:
        address: of its dashboard.
        say: hears what happens.
    """

    address: str
    say: Say

    def client(self) -> JobSubmissionClient:
        """A connection.

        Raises:
            HeadAway, ConfigError: as `_asked` says.
        """
        with _asked(f"--address {self.address}"):
            return JobSubmissionClient(self.address)

    def submit(self, words: Sequence[str], root: Path, env: str, variables: dict[str, str]) -> str:
        """Send `cirkd WORDS`; returns the job's id, which is that of one under way with the same words.

        Args:
            words: of the command line, without the program.
            root: the working directory that goes up.
            env, variables: of `runtime_environment`.

        Raises:
            HeadAway, ConfigError: as `_asked` and `packed` say; nothing was submitted.
        """
        tree, client = runtime_environment(env, variables), self.client()
        entrypoint = shlex.join(["python", "-m", "cirkd_ray", *words])
        with _asked(f"--address {self.address}"):
            running = [job for job in client.list_jobs() if _is(job, entrypoint)]
        if running:
            job = str(running[0].submission_id)
            self.say(f"job {job} is doing this already")
            return job
        job = f"cirkd-{words[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with packed(root, list(tree.pop("excludes", None) or []), self.say) as folder:
            environment = {**tree, "working_dir": str(folder)}
            with _asked(f"--address {self.address}"):
                client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=environment)
        self.say(f"job {job} is submitted")
        return job

    def follow(self, job: str, write: Say) -> int:
        """Pass the job's log to `write` as it grows; returns the exit code of the job's own process.

        `UNKNOWN` where the head has not answered for `PATIENCE` seconds: the job may go on.

        Raises:
            ConfigError: there is no such job, or the head refuses.
        """
        log = _Log(write)
        away: float | None = None
        while True:
            try:
                client = self.client()
                with _asked(f"job {job}"):
                    self._wait_for_start(client, job)
                    asyncio.run(log.pull(client, job))
                    info = client.get_job_info(job)
                away = None
                if info.status.is_terminal():
                    return self._ended(job, info)
            except HeadAway as error:
                now = time.monotonic()
                if away is None:
                    self.say(f"the head does not answer ({error}); asking again for {PATIENCE:.0f} s")
                away = now if away is None else away
                if now - away >= PATIENCE:
                    self.say(f"the head does not answer; job {job} may go on: {follow_line(job)}")
                    return UNKNOWN
            time.sleep(PAUSE)

    def _wait_for_start(self, client: JobSubmissionClient, job: str) -> None:
        """Until the job's process is there; says once what it waits for."""
        begun, said = time.monotonic(), False
        while (info := client.get_job_info(job)).status == JobStatus.PENDING:
            if not said and time.monotonic() - begun > 5:
                said = True
                self.say(f"job {job} waits: {first_line(Exception(info.message or 'not started yet'))}")
            time.sleep(PAUSE)

    def _ended(self, job: str, info: Any) -> int:
        """The exit code; why it failed is said."""
        if info.status == JobStatus.SUCCEEDED:
            return 0
        reason = first_line(Exception(info.message or "no reason given"))
        self.say(f"job {job} {info.status.value.lower()}: {reason}")
        code = int(info.driver_exit_code or 0) or (STOPPED if info.status == JobStatus.STOPPED else 1)
        return code if code > 0 else 128 - code  # of a signal, as a shell tells it

    def stop(self, job: str) -> None:
        """Ask a job to stop: its process gets SIGTERM.

        Raises:
            HeadAway, ConfigError: as `_asked` says.
        """
        client = self.client()
        with _asked(f"job {job}"):
            client.stop_job(job)


def _is(job: JobDetails, entrypoint: str) -> bool:
    return job.entrypoint == entrypoint and bool(job.submission_id) and not job.status.is_terminal()


def follow_line(job: str) -> str:
    """The command line that follows a job."""
    return f"cirkd submit --follow {job}"


class _Log:
    """A job's log as far as it was shown; where the connection breaks, the next one goes on from there."""

    def __init__(self, write: Say) -> None:
        self.write, self.shown = write, 0

    async def pull(self, client: JobSubmissionClient, job: str) -> None:
        """Show what is new until the connection ends; each connection tells the log from its beginning."""
        position = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self.shown - position) :]
            position += len(text)
            if new:
                self.shown = position
                self.write(new)
