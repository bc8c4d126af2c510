"""All that is looked at on a node. A new check is a line here."""

from __future__ import annotations

from cirkd_ray.doctor import machine, network, places, software
from cirkd_ray.doctor.checks import Check

CHECKS = (
    Check("packages", software.versions, software.judge_versions, software.compare_versions),
    Check("GPUs", software.gpus, software.judge_gpus, software.compare_gpus),
    Check("CPUs", machine.processors, machine.judge_processors),
    Check("memory", machine.memory, machine.judge_memory),
    Check("shared memory", machine.shared_memory, machine.judge_shared_memory),
    Check("disk", machine.disk, machine.judge_disk),
    Check("file limit", machine.file_limit, machine.judge_file_limit),
    Check("bytecode", machine.bytecode, machine.judge_bytecode),
    Check("name", network.name_address, compare=network.compare_names),
    Check("--out", places.write_out, places.judge_out),
    Check("data root", places.data_root, places.judge_data, places.compare_data),
)
