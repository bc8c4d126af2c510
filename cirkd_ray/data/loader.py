"""Batches of a data set: order and augmentation by sample number, loader processes, way to the device."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from typing import Any, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cirkd_ray.data.appearance import Appearance
from cirkd_ray.data.base import SegmentationDataset, UInt8
from cirkd_ray.data.sampler import appearance_rng, batch_numbers, local_batch, sample_index, sample_rng
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.errors import TransientError, UserError
from cirkd_ray.types import IGNORE_INDEX, PADDING_LABEL

T = TypeVar("T")
_POLL = 10.0
"""Seconds between two looks at whether the loader processes live."""
_LAST_SECONDS = 60
"""That a loader process goes on after SIGTERM."""


class Batch(NamedTuple):
    """A batch in main memory.

    Attributes:
        images: N x 3 x H x W uint8 RGB; in memory, the channel comes last (`torch.channels_last`).
        labels: N x H x W uint8: class index, 255 ignored, 254 padding.
        indices: N int64, each sample's index in its data set.
        padded: whether padding may occur; the same for all batches of a loader.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    padded: bool


class DeviceBatch(NamedTuple):
    """A batch on the device.

    Attributes:
        images: N x 3 x H x W uint8 RGB.
        labels: N x H x W int64: class index or `IGNORE_INDEX`.
        padding: N x H x W bool, true where the pixel was invented; None where no pixel can be.
        indices: N int64, in main memory.
    """

    images: Tensor
    labels: Tensor
    padding: Tensor | None
    indices: Tensor


def to_device(batch: Batch, device: torch.device | str, channels_last: bool = False) -> DeviceBatch:
    """Move a batch as bytes and make its labels there; a pinned batch moves while the caller goes ahead.

    Args:
        channels_last: keep the channel last in memory; else images are contiguous.
    """
    images = batch.images.to(device, non_blocking=True)
    stored = batch.labels.to(device, non_blocking=True)
    images = images.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    labels = stored.to(torch.int64).masked_fill_(stored >= PADDING_LABEL, IGNORE_INDEX)
    padding = stored == PADDING_LABEL if batch.padded else None
    return DeviceBatch(images, labels, padding, batch.indices)


class Patient(Protocol):
    """Calls again what raises a `TransientError`, for a while."""

    def __call__(self, act: Callable[[], T]) -> T: ...


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way out of a loader process: raised there, it would arrive with a traceback."""

    error: UserError


def train_loader(
    dataset: SegmentationDataset,
    transform: TrainTransform,
    *,
    seed: int,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    total_steps: int,
    accumulate: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool | None = None,
    timeout: float = 600.0,
    patience: Patient | None = None,
    appearance: Appearance | None = None,
) -> Iterator[Batch]:
    """One rank's batches for steps `start_step` .. `total_steps - 1`, `accumulate` of them a step.

    Args:
        workers: loader processes; 0 loads in this process.
        prefetch: batches that each process holds ready.
        pin_memory: put batches into page-locked memory; by default where CUDA is available.
        timeout: seconds without a batch after which loading counts as stuck.
        patience: waits for storage that is away.
        appearance: further augmentation.

    Raises:
        ConfigError: the global batch does not divide.
        DataError: while iterating: a file is unreadable or wrong, a loader process died, or none answers.
    """
    local_batch(global_batch, world_size, accumulate)
    numbers = _Steps(range(start_step, total_steps), global_batch, rank, world_size, accumulate)
    samples = _TrainSamples(dataset, transform, seed, appearance)
    return iter(Batches(samples, numbers, workers, prefetch, pin_memory, timeout, patience))


def eval_loader(
    dataset: SegmentationDataset,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    *,
    batch_size: int = 1,
    prefetch: int = 2,
    pin_memory: bool | None = None,
    timeout: float = 600.0,
    indices: Sequence[int] | None = None,
    patience: Patient | None = None,
) -> Batches:
    """Whole images `rank`, `rank + world_size`, ...: every image once over all ranks, none twice.

    With `batch_size` > 1 neighbours of equal size share a batch. Iterate as often as needed: the loader's
    processes stay.

    Args:
        indices: the images to go through, all by default.
        patience: waits for storage that is away.

    Raises:
        DataError: while iterating, as for `train_loader`.
    """
    mine = list(range(len(dataset)) if indices is None else indices)[rank::world_size]
    groups = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return Batches(_WholeImages(dataset), groups, workers, prefetch, pin_memory, timeout, patience)


class _Steps(Sequence[list[int]]):
    """The lists of sample numbers of all micro-steps, made when asked for."""

    def __init__(self, steps: range, global_batch: int, rank: int, world_size: int, accumulate: int) -> None:
        self.steps = steps
        self.accumulate = accumulate
        self.split = (global_batch, rank, world_size, accumulate)

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __getitem__(self, index: Any) -> Any:
        step = self.steps[index // self.accumulate]
        return list(batch_numbers(step, *self.split)[index % self.accumulate])


class _TrainSamples(Dataset[Any]):
    def __init__(
        self,
        dataset: SegmentationDataset,
        transform: TrainTransform,
        seed: int,
        appearance: Appearance | None,
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.appearance = appearance if appearance is not None and appearance.changes else None

    def __getitems__(self, numbers: Sequence[int]) -> list[Batch] | _Failure:
        try:
            indices = [sample_index(self.seed, n, len(self.dataset)) for n in numbers]
            pairs = [self._pair(n, i) for n, i in zip(numbers, indices, strict=True)]
        except UserError as error:
            return _Failure(self.dataset.explained(error, indices))
        return [_stack(pairs, indices, padded=True)]

    def _pair(self, n: int, index: int) -> tuple[UInt8, UInt8]:
        """Image and labels of sample `n`."""
        pair = self.transform(self.dataset.open(index), sample_rng(self.seed, n))
        if self.appearance is None:
            return pair
        rng = appearance_rng(self.seed, n)

        def other() -> tuple[UInt8, UInt8]:
            return self.transform(self.dataset.open(int(rng.integers(len(self.dataset)))), rng)

        return self.appearance(pair, rng, other)


class _WholeImages(Dataset[Any]):
    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: Sequence[int]) -> list[Batch] | _Failure:
        try:
            samples = [self.dataset.load(i) for i in indices]
        except UserError as error:
            return _Failure(self.dataset.explained(error, indices))
        starts = [i for i in range(len(samples)) if i == 0 or samples[i].size != samples[i - 1].size]
        ends = [*starts[1:], len(samples)]
        return [
            _stack([(s.image, s.label) for s in samples[a:b]], indices[a:b], padded=False)
            for a, b in zip(starts, ends, strict=True)
        ]


def _stack(pairs: Sequence[tuple[UInt8, UInt8]], indices: Sequence[int], padded: bool) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.stack([label for _, label in pairs]))
    return Batch(images, labels, torch.tensor(indices, dtype=torch.int64), padded)


def _same(batches: Any) -> Any:
    return batches


def _start_worker(environment: dict[str, str], worker_id: int) -> None:
    # A terminal and schedulers send signals to all processes of a command: the run still
    # needs a batch to end its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_LAST_SECONDS))
    # A forkserver's children have the environment that it was started with, perhaps by an earlier loader.
    os.environ.update(environment)
    # A process a core: OpenCV's own threads would only fight each other.
    cv2.setNumThreads(0)


class Batches(Iterable[Batch]):
    """The batches of a loader; each iteration goes through all of them with the same loader processes."""

    def __init__(
        self,
        samples: _TrainSamples | _WholeImages,
        groups: Sequence[list[int]],
        workers: int,
        prefetch: int,
        pin: bool | None,
        timeout: float,
        patience: Patient | None = None,
    ) -> None:
        self._samples, self._groups, self._patience = samples, groups, patience
        options: dict[str, Any] = {}
        if workers:
            # Not fork: it may deadlock under the threads of a Ray actor or of CUDA.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            get_temp_dir()  # made now, it is that of the loader's processes too, and goes with this one
            options = {
                "multiprocessing_context": context,
                "persistent_workers": True,
                "prefetch_factor": prefetch,
                "worker_init_fn": functools.partial(_start_worker, dict(os.environ)),
                "timeout": min(timeout, _POLL),
            }
        self._timeout = timeout
        self._loader: DataLoader[Any] = DataLoader(
            samples,
            batch_sampler=groups,
            num_workers=workers,
            collate_fn=_same,
            pin_memory=torch.cuda.is_available() if pin is None else pin,
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:
        iterator = self._attempt(lambda: iter(self._loader), patient=False)
        number = 0
        while (batches := self._attempt(lambda: next(iterator, None))) is not None:
            if isinstance(batches, _Failure):
                batches = self._again(batches, self._groups[number])
            yield from batches
            number += 1

    def _again(self, failure: _Failure, group: list[int]) -> list[Batch]:
        """The batches of a group that could not be read, where that may pass: read again in this process."""
        if self._patience is None or not isinstance(failure.error, TransientError):
            raise failure.error

        def read() -> list[Batch]:
            found = self._samples.__getitems__(group)
            if isinstance(found, _Failure):
                raise found.error
            return found

        return self._patience(read)

    def _attempt(self, request: Callable[[], T], patient: bool = True) -> T:
        """What the loader answers; a dead or stuck loader process becomes a `TransientError`."""
        # The loader looks whether its processes live only between two waits, and no signal tells of the death
        # of a forkserver's child: so it waits often and shortly.
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                return request()
            except RuntimeError as error:
                if patient and "timed out" in str(error) and time.monotonic() < give_up:
                    continue
                reason = _loader_trouble(error, self._timeout)
                if reason is None:
                    raise
                raise TransientError(reason) from error


def _loader_trouble(error: RuntimeError, timeout: float) -> str | None:
    """What to tell the user about a loader process that died or hangs; None for other errors."""
    text = str(error)
    if "timed out" in text:
        return f"data.workers: no batch for {timeout:.0f} seconds; is the storage reachable?"
    if "exited unexpectedly" in text or "is killed by signal" in text:
        guess = "is /dev/shm too small?" if "Bus error" in text else "out of memory?"
        return f"data.workers: a loader process died ({text.splitlines()[0]}); {guess}"
    return None
