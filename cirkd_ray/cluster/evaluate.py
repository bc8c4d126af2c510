"""An evaluation on the workers of a Ray cluster: the same counts as in one process, survives lost workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import ray

from cirkd_ray.cluster.resources import places_on
from cirkd_ray.cluster.session import ray_session
from cirkd_ray.errors import ConfigError, TrainingError, UserError
from cirkd_ray.evaluate.evaluation import EvaluationResult, merge_results
from cirkd_ray.evaluate.job import EvaluationJob, Evaluator, Subject
from cirkd_ray.evaluate.pictures import Picture

PIECES_PER_WORKER = 4
"""A worker takes its next piece when it has finished one, so that slow ones hold nobody up."""
RETRIES = 3


def gpus_per_worker(device: str, workers: int, available: float) -> int:
    """1 or 0: whether each worker takes a GPU.

    Args:
        device: "auto" (where the cluster has any), "cpu" or "cuda".
        workers: how many there will be.
        available: GPUs of the cluster.

    Raises:
        ConfigError: "auto", and there are GPUs, but fewer than workers.
    """
    if device == "auto" and 0 < available < workers:
        raise ConfigError(
            f"--workers {workers}: the cluster has {available:g} GPUs, and each worker takes one; "
            f"take at most {max(1, int(available))} workers, or --device cpu"
        )
    return int(device == "cuda" or (device == "auto" and available > 0))


def check_room(workers: int, cpus: int, gpus: int, nodes: Sequence[Mapping[str, float]]) -> None:
    """Whether each worker finds a node: Ray would wait for ever for one that is large enough.

    Args:
        workers: how many there will be.
        cpus, gpus: what each takes.
        nodes: the resources of each node that lives.

    Raises:
        ConfigError: the cluster, or each of its nodes, is too small; with the arithmetic.
    """
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        there = sum(node.get(name, 0.0) for node in nodes)
        if there < each * workers:
            raise ConfigError(
                f"--workers {workers}: needs {each * workers} {name}s ({cpus} CPUs and {gpus} GPUs each), "
                f"but the cluster has {there:g}"
            )
    room = places_on(nodes, cpus, gpus)
    if room < workers:
        raise ConfigError(
            f"--workers {workers}: each takes {cpus} CPUs and {gpus} GPUs of one node, but the {len(nodes)} "
            f"nodes have room for {room} such workers; lower --workers or --loaders"
        )


class RayEvaluator:
    """`Evaluator` on several workers; used through `ray_evaluator`.

    Args:
        job: what is evaluated; its model and data must be readable under the same path on all nodes.
        workers: how many, each with the job's loader processes and, with a GPU, one of those.
    """

    def __init__(self, job: EvaluationJob, workers: int) -> None:
        resources = ray.cluster_resources()
        gpus = gpus_per_worker(job.device, workers, resources.get("GPU", 0))
        cpus = 1 + job.workers
        check_room(workers, cpus, gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        job = replace(job, device="cuda" if gpus else "cpu")
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": RETRIES, "max_task_retries": RETRIES}
        remote = ray.remote(_Worker).options(**options)
        self._workers = [remote.remote(job) for _ in range(workers)]
        self._subject: Subject = _get([worker.subject.remote() for worker in self._workers])[0]

    @property
    def images(self) -> int:
        """How many images the whole job counts."""
        return self._subject.images

    def subject(self) -> Subject:
        """What is evaluated."""
        return self._subject

    def evaluate(self, on_images: Callable[[int], None] | None = None) -> EvaluationResult:
        """All images of the job, in pieces; a piece whose worker dies is done again."""
        start = perf_counter()
        result = merge_results(self._pieces(on_images), seconds=0.0)
        return merge_results([result], perf_counter() - start)

    def pictures(self, indices: Sequence[int]) -> tuple[Picture, ...]:
        """Those images with their predictions."""
        found: tuple[Picture, ...] = _get([self._workers[0].pictures.remote(list(indices))])[0]
        return found

    def findings(self, images: int, pixels: Sequence[int], ignored: int) -> tuple[str, ...]:
        """What is suspicious about the labels."""
        found: tuple[str, ...] = _get([self._workers[0].findings.remote(images, pixels, ignored)])[0]
        return found

    def _pieces(self, on_images: Callable[[int], None] | None) -> Iterator[EvaluationResult]:
        """The results of all pieces, as they come."""
        count = min(self.images, len(self._workers) * PIECES_PER_WORKER)
        waiting = iter(range(count))
        running: dict[Any, tuple[int, Any]] = {}

        def give(worker: Any) -> None:
            piece = next(waiting, None)
            if piece is not None:
                running[worker.evaluate.remote(piece, count)] = (piece, worker)

        for worker in self._workers:
            give(worker)
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            piece, worker = running.pop(done)
            result: EvaluationResult = _get([done])[0]
            give(worker)
            if on_images is not None:
                on_images(len(range(piece, self.images, count)))
            yield result


class _Worker:
    """An `Evaluator` in its own process, made at the first call: an actor that fails when made hides why."""

    def __init__(self, job: EvaluationJob) -> None:
        self._job = job
        self._made: Evaluator | None = None

    def _evaluator(self) -> Evaluator:
        if self._made is None:
            self._made = Evaluator(self._job)
        return self._made

    def subject(self) -> Subject:
        return self._evaluator().subject()

    def evaluate(self, rank: int, world_size: int) -> EvaluationResult:
        return self._evaluator().evaluate(rank, world_size)

    def pictures(self, indices: Sequence[int]) -> tuple[Picture, ...]:
        return self._evaluator().pictures(indices)

    def findings(self, images: int, pixels: Sequence[int], ignored: int) -> tuple[str, ...]:
        return self._evaluator().findings(images, pixels, ignored)


@contextmanager
def ray_evaluator(job: EvaluationJob, workers: int) -> Iterator[RayEvaluator]:
    """Workers on the environment's cluster, or on a local one, for the length of the block.

    Raises:
        UserError: what one of the workers raised, or the cluster is too small.
    """
    with ray_session(minimum_cpus=workers * (1 + job.workers)):
        evaluator = RayEvaluator(job, workers)
        try:
            yield evaluator
        finally:
            for worker in evaluator._workers:
                ray.kill(worker)


def _get(references: Sequence[Any]) -> list[Any]:
    """`ray.get` with the user's errors as they were raised.

    Raises:
        UserError: a worker's.
        TrainingError: a worker died again and again.
    """
    try:
        found: list[Any] = ray.get(list(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"--workers: an evaluation worker died {RETRIES + 1} times ({reason}); "
            "is there enough memory on the nodes?"
        ) from error
    return found
