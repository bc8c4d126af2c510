"""Free memory of a machine and of a container."""

from __future__ import annotations

from pathlib import Path

import torch

from cirkd_ray.device import available_bytes

CPU = torch.device("cpu")


def container(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("990000\n")
    (folder / "memory.stat").write_text(
        "anon 290000\nfile 700000\nshmem 200000\ninactive_file 300000\nactive_file 200000\n"
    )
    return folder


def test_cached_files_of_a_container_are_free_memory(tmp_path: Path) -> None:
    assert available_bytes(CPU, container(tmp_path, "1000000")) == 1_000_000 - 990_000 + 500_000


def test_a_container_without_a_limit_has_the_machines_memory(tmp_path: Path) -> None:
    assert (available_bytes(CPU, container(tmp_path, "max")) or 0) > 10_000_000
