"""Joining a Ray cluster, or starting one on this machine for the length of a command."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from cirkd_ray.errors import ConfigError
from cirkd_ray.train.stop import EXIT_CODES, TEMPORARY, kept_handlers

# Read when Ray is imported, here and in every process that Ray starts. Each may be set from outside.
DEFAULTS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a finished run ends half a second later, not four
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",  # some clouds give half a minute's notice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # one source of hparams: ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours, see `cirkd_ray.train.stop`
    "RAY_USAGE_STATS_ENABLED": "0",  # a report to Ray's makers, of which the notice is not shown
}


VERBOSE = "CIRKD_RAY_LOGS"
"""Environment variable: show what Ray and the workers write (`--debug` sets it)."""


def in_cluster() -> bool:
    """Whether the environment names a cluster: `RAY_ADDRESS`, which a submitted job has too."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def _temporary() -> Iterator[str]:
    """A folder for the temporary files of a local cluster's processes: Ray kills these, so that they cannot
    remove them."""
    folder = tempfile.mkdtemp(prefix="cirkd-")
    TEMPORARY.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        TEMPORARY.discard(folder)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Within the block a new cluster, its processes and their gloo groups listen on this machine alone.

    Ray turns the address 127.0.0.1 into one that others reach. Where it takes a system for one that cannot
    have other nodes, as it takes Windows, it stays on the loopback interface.
    """
    from ray._private import ray_constants

    told = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        told["GLOO_SOCKET_IFNAME"] = "lo"
    nodes, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with _environment(told):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = nodes


@contextmanager
def _environment(told: dict[str, str]) -> Iterator[None]:
    """These environment variables for the length of the block."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _addressed(temporary: str) -> Iterator[None]:
    """Give a new local cluster a port that is known beforehand, and all its processes its address and TMPDIR.

    Ray Train has a stopped run's placement group removed by an actor that asks the state API whether the run
    lives. Without an address that API refuses to choose where several clusters run on one machine, and what
    stopped trials held is never given back.
    """
    from ray.util import get_node_ip_address

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    told = {
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{get_node_ip_address()}:{port}",
        "TMPDIR": temporary,
    }
    with _environment(told):
        yield


@contextmanager
def ray_session(minimum_cpus: float = 1.0) -> Iterator[None]:
    """Ray for the length of the block: the one that runs already, the cluster of the environment, or a new
    local one. The block is one call: a stop that is asked of this process is told to all of it.

    Args:
        minimum_cpus: CPUs that a new local cluster offers at least, even where the machine has fewer.

    Raises:
        ConfigError: the cluster of the environment cannot be joined.
    """
    with joined(minimum_cpus) as lives_on:
        from cirkd_ray.cluster.staging import unstaged
        from cirkd_ray.cluster.stopping import ask_to_stop, one_call

        with one_call(), unstaged():
            try:
                yield
            except BaseException:
                if lives_on:  # as in a notebook: an error, or Ctrl-C, leaves nothing of the call behind
                    ask_to_stop()
                raise


@contextmanager
def joined(minimum_cpus: float) -> Iterator[bool]:
    """Ray for the length of the block, which is no call; yields whether it runs on after it."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield True
        return
    verbose = bool(os.environ.get(VERBOSE))
    if not verbose:
        _without_noise()
        # A failed trial's traceback; TrialLog says in a line what became of each.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with ExitStack() as started:
        try:
            _start(minimum_cpus, logging.WARNING if verbose else logging.ERROR, verbose, started)
        except (ConnectionError, ValueError, RuntimeError) as error:
            address = os.environ.get("RAY_ADDRESS", "local")
            raise ConfigError(
                f"RAY_ADDRESS={address}: cannot join Ray ({_reason(error)}).\n"
                "Is the head running, and are RAY_AUTH_MODE and its token set?"
            ) from None
        started.callback(ray.shutdown)
        yield False


def _reason(error: Exception) -> str:
    """What Ray says is wrong: its first line, and its last where that is a cause's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return " ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else type(error).__name__


NOISE = ("worker processes have been started", "A worker died or was killed while executing a task")
"""In what Ray's nodes print to a driver: what it cannot act upon, or what the run's log says in a line."""


def _without_noise() -> None:
    """Leave those lines out, which no setting of Ray does."""
    from ray._private import worker

    shown = worker.print_to_stdstream
    if getattr(shown, "without_noise", False):
        return

    def show(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in data["lines"] if not any(noise in line for noise in NOISE)]
        if lines:
            shown({**data, "lines": lines}, ignore_prefix)

    show.without_noise = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = show


@contextmanager
def _signals_left_to_us() -> Iterator[None]:
    """Within the block Ray puts in no handlers, and its processes do not get the signals of our group.

    Its handler of SIGTERM ends the driver at once. A signal to the driver's process group, which schedulers
    and `timeout` send, would end the control store, without which no checkpoint can be written.
    """
    from ray._private import services

    handle, popen = signal.signal, services.ConsolePopen

    def ours(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in EXIT_CODES else handle(number, handler)

    signal.signal, services.ConsolePopen = ours, partial(popen, start_new_session=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal, services.ConsolePopen = handle, popen


def _start(minimum_cpus: float, level: int, verbose: bool, stack: ExitStack) -> None:
    """Join Ray or start it; what has to be undone after its end goes on the stack."""
    import ray

    with kept_handlers(), _signals_left_to_us():
        if in_cluster():
            ray.init(log_to_driver=verbose, logging_level=level)
            return
        cpus = max(os.cpu_count() or 1, int(-(-minimum_cpus // 1)))
        # The dashboard stays on: without it placement groups of stopped trials leak.
        with _on_loopback(), _addressed(stack.enter_context(_temporary())):
            ray.init(
                address="local",
                num_cpus=cpus,
                log_to_driver=verbose,
                logging_level=level,
                include_dashboard=True,
            )
