"""A rank's micro-batches, on its device."""

from __future__ import annotations

from collections.abc import Iterator

from cirkd_ray.data.appearance import Appearance
from cirkd_ray.data.loader import DeviceBatch, Patient, to_device, train_loader
from cirkd_ray.data.transforms import TrainTransform
from cirkd_ray.train.build import Run


def training_batches(
    run: Run, start: int, end: int, patience: Patient | None = None
) -> Iterator[DeviceBatch]:
    """This rank's micro-batches of the steps from `start` to before `end`."""
    spec, world = run.spec, run.world
    assert spec.data.crop is not None
    transform = TrainTransform(
        crop=spec.data.crop,
        scale_range=spec.data.scale_range,
        scale_step=spec.data.scale_step,
        flip=spec.data.flip,
        max_class_share=spec.data.max_class_share,
    )
    data = spec.data
    loader = train_loader(
        run.train_set,
        transform,
        seed=spec.seed,
        global_batch=spec.train.batch_size,
        rank=world.rank,
        world_size=world.size,
        start_step=start,
        total_steps=end,
        accumulate=spec.train.accumulate,
        workers=spec.data.workers,
        pin_memory=world.device.type == "cuda",
        patience=patience,
        appearance=Appearance(data.color_jitter, data.blur, data.erase, data.paste),
    )
    return (to_device(batch, world.device, world.device.type == "cuda") for batch in loader)
