"""Batches are the same for any number of loader processes, ranks and restarts; errors are short and named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from cirkd_ray.data import Sample, SegmentationDataset, build_dataset
from cirkd_ray.data import loader as loader_module
from cirkd_ray.data.loader import Batch, eval_loader, to_device, train_loader
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.types import ClassSet
from tests.errors import refuses

TRANSFORM = TrainTransform(crop=(24, 32))


class Numbered(SegmentationDataset):
    """Images of several sizes whose red channel is their number; number `bad` misbehaves."""

    classes = ClassSet(("a", "b"), ((0, 0, 0), (255, 255, 255)))

    def __init__(self, count: int = 20, bad: int = -1, trouble: str = "") -> None:
        self.count, self.bad, self.trouble, self.home = count, bad, trouble, os.getpid()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"{index}.png"

    def load(self, index: int) -> Sample:
        if index == self.bad and self.trouble == "error":
            raise DataError(f"/data/{index}.png: damaged or truncated (image file is truncated)")
        if index == self.bad and self.trouble == "killed" and os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.bad and self.trouble == "stuck":
            time.sleep(60)
        if index == self.bad and self.trouble == "bug":
            raise ZeroDivisionError("a bug")
        rng = np.random.default_rng(index)
        height = 30 if index % 4 < 2 else 36
        image = rng.integers(0, 256, (height, 40, 3), dtype=np.uint8)
        image[..., 0] = index
        return Sample(image, (image[..., 1] // 128).astype(np.uint8), self.name(index))


def run(data: SegmentationDataset, **options: int) -> list[Batch]:
    settings = {"seed": 3, "global_batch": 4, "total_steps": 8, **options}
    return list(train_loader(data, TRANSFORM, **settings))  # type: ignore[arg-type]


def same(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a[:3], b[:3], strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_batches_are_bytes_of_the_asked_size() -> None:
    batch = run(Numbered())[0]
    assert batch.images.shape == (4, 3, 24, 32)
    assert batch.images.dtype == batch.labels.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.shape == (4, 24, 32)
    reds = [int(image[0].max()) for image in batch.images]
    assert reds == batch.indices.tolist()


def test_the_same_with_two_loader_processes() -> None:
    same(run(Numbered(), workers=2), run(Numbered()))


def test_two_ranks_share_the_batches_of_one() -> None:
    one, ranks = run(Numbered()), [run(Numbered(), rank=r, world_size=2) for r in range(2)]
    for step in range(8):
        for part in range(3):
            joined = torch.cat([torch.as_tensor(rank[step][part]) for rank in ranks])
            torch.testing.assert_close(joined, one[step][part], rtol=0, atol=0)


def test_micro_steps_share_the_batch_of_one_step() -> None:
    one, micro = run(Numbered()), run(Numbered(), accumulate=2)
    assert len(micro) == 16
    torch.testing.assert_close(torch.cat([micro[6].images, micro[7].images]), one[3].images, rtol=0, atol=0)


def test_a_resumed_run_goes_on_with_the_same_batches() -> None:
    same(run(Numbered(), start_step=5), run(Numbered())[5:])


def test_epochs_cover_all_images() -> None:
    indices = torch.cat([batch.indices for batch in run(Numbered(), total_steps=10)]).tolist()
    assert sorted(indices[:20]) == sorted(indices[20:]) == list(range(20))


def test_a_batch_that_does_not_divide_is_refused_at_once() -> None:
    with refuses("train.batch_size", ConfigError, 4, "3 workers"):
        train_loader(Numbered(), TRANSFORM, seed=0, global_batch=4, world_size=3, total_steps=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named_without_a_traceback(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        run(Numbered(bad=7, trouble="error"), workers=workers)
    assert str(caught.value) == "/data/7.png: damaged or truncated (image file is truncated)"


def test_a_killed_loader_process_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_POLL", 1.0)
    with refuses("data.workers", DataError, "memory"):
        run(Numbered(bad=7, trouble="killed"), workers=1)


def test_a_stuck_loader_process_is_an_error_not_a_hang() -> None:
    loader = train_loader(
        Numbered(bad=7, trouble="stuck"),
        TRANSFORM,
        seed=3,
        global_batch=4,
        total_steps=8,
        workers=1,
        timeout=1.0,
    )
    with refuses("data.workers", DataError, "1 seconds"):
        list(loader)


def test_a_bug_keeps_its_own_kind() -> None:
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(Numbered(bad=7, trouble="bug"))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_evaluation_sees_every_image_once(world: int) -> None:
    data, seen = Numbered(101), []
    for rank in range(world):
        batches = list(eval_loader(data, rank, world))
        assert all(batch.images.shape[0] == 1 and not batch.padded for batch in batches)
        mine = [int(batch.indices[0]) for batch in batches]
        assert mine == list(range(rank, 101, world))
        seen += mine
    assert sorted(seen) == list(range(101))


def test_evaluation_batches_only_equal_sizes_and_can_be_repeated() -> None:
    data = Numbered(10)
    loader = eval_loader(data, batch_size=4, workers=1)
    for _ in range(2):
        batches = list(loader)
        assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
        for batch in batches:
            for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
                sample = data.load(int(index))
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), sample.image)
                np.testing.assert_array_equal(label.numpy(), sample.label)


def test_an_evaluation_left_in_the_middle_can_be_begun_anew() -> None:
    loader = eval_loader(Numbered(12), workers=1)
    for batch in loader:
        if int(batch.indices[0]) == 3:
            break
    assert [int(batch.indices[0]) for batch in loader] == list(range(12))


def test_on_the_device_labels_are_signed_and_padding_is_marked() -> None:
    images = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 3, 3).permute(0, 3, 1, 2)
    labels = torch.tensor([[[0, 253, 254], [255, 1, 2]]], dtype=torch.uint8).expand(2, 2, 3)
    for padded in (True, False):
        moved = to_device(Batch(images, labels, torch.tensor([4, 9]), padded), "cpu")
        assert moved.labels[0].tolist() == [[0, 253, -1], [-1, 1, 2]]
        assert moved.labels.dtype == torch.int64
        assert moved.images.is_contiguous()
        if padded:
            assert moved.padding is not None
            assert moved.padding[1].tolist() == [[False, False, True], [False, False, False]]
        else:
            assert moved.padding is None
    assert (
        to_device(Batch(images, labels, torch.tensor([4, 9]), True), "cpu", channels_last=True).images
        is images
    )


@pytest.mark.gpu
def test_the_way_to_the_device_does_not_wait() -> None:
    batch = run(Numbered())[0]
    pinned = Batch(batch.images.pin_memory(), batch.labels.pin_memory(), batch.indices, batch.padded)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = to_device(pinned, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(moved.images.cpu(), batch.images.contiguous())


def test_the_embedded_set_loads_in_a_loader_process(tmp_path: Path) -> None:
    data = build_dataset("shapes", split="train", height=48, width=64, train_images=8)
    same(run(data, workers=1, total_steps=2), run(data, total_steps=2))
