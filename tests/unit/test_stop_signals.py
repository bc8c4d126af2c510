"""Ray, when it starts, leaves signals to us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from ray._private import services

from cirkd_ray.cluster.session import _signals_left_to_us


def test_ray_puts_in_no_handlers_and_its_processes_are_in_another_group() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)}
    with _signals_left_to_us():
        for number in before:
            signal.signal(number, lambda number, frame: None)
        process = services.ConsolePopen(
            [sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL
        )
    try:
        assert os.getpgid(process.pid) == process.pid != os.getpgrp()
        found = {number: signal.getsignal(number) for number in before}
        assert {number for number in before if found[number] != before[number]} == {signal.SIGUSR2}
    finally:
        signal.signal(signal.SIGUSR2, before[signal.SIGUSR2])
        process.kill()
        process.wait()
    assert services.ConsolePopen is type(process)
