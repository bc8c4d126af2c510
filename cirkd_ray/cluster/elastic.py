"""Workers that come and go: Ray Train's elastic range, kept to numbers that divide the global batch.

Where a node is lost, the run restarts at once with as many workers as still find a place. Where one comes
back, Ray Train would end the workers and start them again from the last checkpoint, however old. Here they
are asked for a checkpoint first, so that growing costs the start of the workers and no steps.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from cirkd_ray.cluster import pulse
from cirkd_ray.cluster.stopping import EVERY
from cirkd_ray.report.listeners import RunLog
from cirkd_ray.train.rundir import RunDirectory

LOOK = 30.0
"""Seconds between two looks whether the cluster has places for more workers."""
PATIENCE = 120.0
"""Seconds that a checkpoint before a change is waited for; then the last one has to do."""


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A trainer with `Sizes` for its policy.

    Args:
        sizes: numbers of workers that are used, the smallest first.
        run: the directory of the launch.
        options: of `TorchTrainer`; its `scaling_config` has the range.
    """

    def __init__(self, sizes: Sequence[int], run: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sizes, self.run = tuple(sizes), run

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        parts["scaling_policy"] = Sizes(self.scaling_config, self.sizes, self.run)
        return super()._initialize_and_run_controller(**parts)


class Sizes(ElasticScalingPolicy):  # type: ignore[misc]
    """Decides in a run's controller how many workers there are.

    Args:
        scaling_config: with the range.
        sizes, run: as of `ElasticTrainer`.
    """

    def __init__(self, scaling_config: ScalingConfig, sizes: Sequence[int], run: str) -> None:
        super().__init__(scaling_config)
        self.sizes, self.run = tuple(sizes), Path(run)
        self.request = ResizeRequest(self.run)
        self.wanted: ResizeDecision | None = None
        self.since = 0.0

    def _count_possible_workers(self, reserved_resources: Mapping[str, Mapping[str, float]]) -> int:
        """The largest number that is used and has places on living nodes; 0 where there is none.

        Ray Train's own count hears late of nodes that die.
        """
        living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        there = {node: found for node, found in reserved_resources.items() if node in living}
        count = super()._count_possible_workers(there)
        return max((size for size in self.sizes if size <= count), default=0)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Another number of workers, once they have written a checkpoint for it."""
        now = time.monotonic()
        if self.wanted is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                self.wanted, self.since = decision, now
                self._say(
                    f"{decision.num_workers} workers find a place, {worker_group_state.num_workers} run"
                )
                self.request.ask()
            return NoopDecision()
        if not self.request.is_met() and now - self.since < PATIENCE:
            return NoopDecision()
        wanted, self.wanted = self.wanted, None
        self.request.withdraw()
        reserved = self._get_reserved_resources()
        if reserved is None or self._count_possible_workers(reserved) != wanted.num_workers:
            return NoopDecision()  # that has passed
        pulse.restarting(self.run)
        return wanted

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many as there are places for now."""
        self.wanted = None
        self.request.withdraw()
        return super().make_decision_for_non_running_worker_group()

    def _say(self, text: str) -> None:
        with suppress(OSError):
            RunLog(RunDirectory(self.run)).message(f"{text}: a checkpoint is written, then they start again")


class ResizeRequest:
    """The wish of a launch's controller for a checkpoint, in the store of the cluster's head.

    Args:
        run: the directory of the launch.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.next, self.found = run, 0.0, False

    def ask(self) -> None:
        """Ask the workers for a checkpoint of the last step."""
        internal_kv._internal_kv_put(self._key("asked"), b"1")

    def stands(self) -> bool:
        """Whether they are asked; the store is looked at once in half a second."""
        if time.monotonic() >= self.next:
            self.found = bool(internal_kv._internal_kv_exists(self._key("asked")))
            self.next = time.monotonic() + EVERY
        return self.found

    def met(self) -> None:
        """They have written one."""
        self.found = False
        internal_kv._internal_kv_put(self._key("met"), b"1")
        internal_kv._internal_kv_del(self._key("asked"))

    def is_met(self) -> bool:
        """Whether they have."""
        return bool(internal_kv._internal_kv_exists(self._key("met")))

    def withdraw(self) -> None:
        """Ask no more."""
        internal_kv._internal_kv_del(self._key(), del_by_prefix=True)

    def _key(self, *words: str) -> str:
        digest = hashlib.sha256(str(self.run).encode()).hexdigest()[:16]
        return "-".join(["cirkd-resize", ray.get_runtime_context().get_job_id(), digest, *words])
