"""Whether this container's Ray node is well: `python healthy.py`. Does not import Ray, which takes seconds.

Asks the node's agent, at the port that the raylet was started with. Where no raylet runs there is nothing to
be ill: the container runs a command of its own.
"""

from __future__ import annotations

import re
import sys
import urllib.request
from pathlib import Path


def agent_port(proc: Path) -> int | None:
    """The port of the agent, from the raylet's command line; None where no raylet runs."""
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        found = re.search(r"--listen-port=(\d+)", " ".join(words))
        if words[0].endswith("/raylet") and found is not None:
            return int(found[1])
    return None


def main(proc: Path = Path("/proc")) -> int:
    """0 where it is well."""
    port = agent_port(proc)
    if port is None:
        return 0
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/local_raylet_healthz", timeout=4) as answer:
            return 0 if b"success" in answer.read() else 1
    except OSError as error:
        sys.stderr.write(f"the agent at port {port}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
