"""Samples a second of each data set's input pipeline on one core, and how long a step waits for its data.

Three ways with the same augmentation take turns: the straightforward one (the whole image becomes float, is
scaled, padded and cut; labels by a loop over ids), this package on the original files, and this package on
the prepared form. Without --root, files of each set's format and size are drawn first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cirkd_ray.data import SegmentationDataset
    from cirkd_ray.data.files import FileDataset
    from cirkd_ray.data.transforms import TrainTransform
    from cirkd_ray.report.tables import TextTable

MEAN = (122.7, 116.7, 104.0)

SETS: dict[str, tuple[tuple[int, int], str]] = {
    "cityscapes": ((1024, 2048), ".png"),
    "camvid": ((360, 480), ".jpg"),
    "voc": ((375, 500), ".jpg"),
    "ade20k": ((512, 683), ".jpg"),
    "coco_stuff_164k": ((480, 640), ".jpg"),
}
"""(height, width) of the drawn images of each set, and their format."""


def run(
    names: Sequence[str],
    *,
    root: str | None = None,
    split: str = "val",
    seconds: float = 6.0,
    workers: int = 1,
    batch: int = 8,
    step_ms: float = 200.0,
) -> tuple[TextTable, TextTable]:
    """Measure input pipelines.

    Args:
        names: data sets; empty for all of `SETS`.
        root: measure on these files, of one data set, instead of drawn ones.
        split: of `root`.
        seconds: for each set.
        workers, batch, step_ms: loader processes, images and length of the steps that wait for data.

    Returns:
        The table of images a second and that of the time that a step waits.

    Raises:
        ConfigError: a data set is not of `SETS`, or `root` comes with several.
    """
    import cv2

    from cirkd_ray.errors import ConfigError
    from cirkd_ray.report.progress import bar
    from cirkd_ray.report.tables import TextTable

    names = names or list(SETS)
    if (root and len(names) != 1) or not (root or set(names) <= set(SETS)):
        raise ConfigError(f"--data: is one of {', '.join(SETS)}; --root goes with one --data")
    cv2.setNumThreads(0)
    speeds, waits = [], []
    with tempfile.TemporaryDirectory() as folder, bar(len(names), "measure", "data sets") as advance:
        for name in names:
            forms = _both_forms(name, Path(folder) / name, root, split)
            speeds.append(_speed_row(name, measure(*forms, seconds)))
            for form, data in zip(("files", "prepared"), forms, strict=True):
                wait = 1000 * data_wait(data, forms[0].default_crop, batch, workers, step_ms / 1000)
                share = f"{100 * wait / (wait + step_ms):.0f} %"
                waits.append((f"{name}, {form}", f"{wait:.0f} ms", share))
            advance(1)
    title = f"waiting of a {step_ms:.0f} ms step, batch {batch}, {workers} loader processes"
    return (
        TextTable(
            ("data set", "straightforward", "files", "", "prepared", ""),
            tuple(speeds),
            "images/s on one core",
        ),
        TextTable(("data set", "wait", "of the time"), tuple(waits), title),
    )


def _speed_row(name: str, speeds: tuple[float, float, float]) -> tuple[str, ...]:
    naive, files, ready = speeds
    return (
        name,
        f"{naive:.1f}",
        f"{files:.1f}",
        f"{files / naive:.1f}x",
        f"{ready:.1f}",
        f"{ready / naive:.1f}x",
    )


def _both_forms(
    name: str, folder: Path, root: str | None, split: str
) -> tuple[FileDataset, SegmentationDataset]:
    """A data set on its own files and prepared."""
    from cirkd_ray.data import build_dataset
    from cirkd_ray.data.files import FileDataset
    from cirkd_ray.data_tools.prepare import prepare
    from cirkd_ray.errors import ConfigError

    if root is None:
        draw_set(name, folder / "raw")
    raw = build_dataset(name, split=split, root=root or folder / "raw", subset=True)
    if not isinstance(raw, FileDataset):
        raise ConfigError(f"--root: {root} is prepared already; give the original files")
    limit_ids(raw, 24)
    prepare({split: raw}, name, {}, str(folder / "prepared"))
    return raw, build_dataset(name, split=split, root=folder / "prepared")


_PATHS: dict[str, tuple[str, str]] = {
    "cityscapes": ("leftImg8bit/val/{}_leftImg8bit.png", "gtFine/val/{}_gtFine_labelIds.png"),
    "camvid": ("val/{}.png", "valannot/{}.png"),
    "voc": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "ade20k": ("images/validation/{}.jpg", "annotations/validation/{}.png"),
    "coco_stuff_164k": ("images/val2017/{}.jpg", "annotations/val2017/{}.png"),
}
"""Where the image and the labels of a sample of val lie."""


def limit_ids(data: FileDataset, count: int) -> None:
    """Keep `count` of the samples, spread over the set."""
    data.ids = data.ids[:: max(1, len(data.ids) // count)][:count]


def draw_set(name: str, root: Path, count: int = 4) -> None:
    """Files in the layout, size and format of the val split of `name`, drawn as street scenes."""
    import cv2
    import numpy as np

    from cirkd_ray.data.cityscapes import LABEL_IDS
    from cirkd_ray.data.files import packaged_list
    from cirkd_ray.data.sampler import sample_rng
    from cirkd_ray.data.shapes import draw_street
    from cirkd_ray.files import write_bytes

    # A stored value of the set for each of the twelve classes of the drawn scenes, and for ignored pixels.
    values, ignored = {
        "cityscapes": (LABEL_IDS[:12], 0),
        "camvid": ((*range(11), 10), 11),
        "ade20k": (range(1, 13), 0),
        "coco_stuff_164k": ((*range(11), 12), 255),
    }.get(name, (range(12), 255))
    stored = np.full(256, ignored, np.uint8)
    stored[:12] = values
    own = {"camvid": range(count), "ade20k": [f"ADE_val_{number + 1:08d}" for number in range(count)]}
    (height, width), extension = SETS[name]
    for number, stem in zip(range(count), own.get(name) or packaged_list(name, "val"), strict=False):
        image, label = draw_street(sample_rng(0, number), height, width)
        contents = cv2.cvtColor(image, cv2.COLOR_RGB2BGR), stored[label]
        for path, content, kind in zip(_PATHS[name], contents, (extension, ".png"), strict=True):
            encoded = cv2.imencode(kind, np.asarray(content))[1].tobytes()
            write_bytes(root / path.format(stem), encoded, durable=False)


def straightforward(
    data: FileDataset, transform: TrainTransform, index: int, rng: np.random.Generator
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The same augmentation without care: everything in float, everything scaled, ids by a loop.

    Returns:
        The image, 3 x h x w float32, RGB minus `MEAN`, zero where padded; the labels, h x w int32.
    """
    import cv2
    import numpy as np

    from cirkd_ray.data.masks import decode_label

    sample_id = data.ids[index]
    image_file, label_file = (data.storage.where(f(sample_id)) for f in (data.image_file, data.label_file))
    image = np.asarray(cv2.imdecode(np.fromfile(image_file, np.uint8), cv2.IMREAD_COLOR_RGB), np.float32)
    stored = decode_label(Path(label_file).read_bytes(), label_file)
    label = np.full(stored.shape, 255, np.int32)
    for value in np.flatnonzero(data.labels.possible):
        label[stored == value] = data.labels.table[value]
    scale = float(transform.scales[int(rng.integers(len(transform.scales)))])
    image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR))
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image -= np.array(MEAN, np.float32)
    (height, width), (crop_h, crop_w) = label.shape, transform.crop
    below, right = max(crop_h - height, 0), max(crop_w - width, 0)
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    label = cv2.copyMakeBorder(label, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(255,))
    top = int(rng.integers(label.shape[0] - crop_h + 1))
    left = int(rng.integers(label.shape[1] - crop_w + 1))
    cut = np.s_[top : top + crop_h, left : left + crop_w]
    image, label, step = image[cut], label[cut], -1 if rng.random() < 0.5 else 1
    flipped = image[:, ::step].transpose(2, 0, 1), label[:, ::step]
    return np.ascontiguousarray(flipped[0]), np.ascontiguousarray(flipped[1])


def measure(raw: FileDataset, prepared: SegmentationDataset, seconds: float) -> tuple[float, float, float]:
    """Images a second of CPU time: straightforward, this package on the files, and on the prepared form.

    They take turns with the same draws, so that a busy machine slows all of them alike.
    """
    from cirkd_ray.data.transforms import TrainTransform

    transform = TrainTransform(crop=raw.default_crop)
    ways: list[Callable[[int, np.random.Generator], Any]] = [
        lambda i, rng: straightforward(raw, transform, i, rng),
        lambda i, rng: transform(raw.open(i), rng),
        lambda i, rng: transform(prepared.open(i), rng),
    ]
    times = _take_turns(ways, len(raw), seconds)
    return 1 / times[0], 1 / times[1], 1 / times[2]


def _take_turns(
    ways: Sequence[Callable[[int, np.random.Generator], Any]], count: int, seconds: float
) -> list[float]:
    """Mean CPU seconds a call of each way, over the same samples."""
    import time

    from cirkd_ray.data.sampler import sample_rng

    spent, end, n = [0.0] * len(ways), time.monotonic() + seconds, 0
    for way in ways:
        way(0, sample_rng(0, 0))  # warm up
    while n < 16 or time.monotonic() < end:
        for number, way in enumerate(ways):
            start = time.process_time()
            way(n % count, sample_rng(1, n))
            spent[number] += time.process_time() - start
        n += 1
    return [total / n for total in spent]


def data_wait(
    data: SegmentationDataset, crop: tuple[int, int], batch: int, workers: int, step: float, steps: int = 8
) -> float:
    """Mean seconds between asking for a batch and having it, when a step takes `step` seconds."""
    import time

    from cirkd_ray.data.loader import train_loader
    from cirkd_ray.data.transforms import TrainTransform

    transform = TrainTransform(crop=crop)
    total = steps + 2
    loader = train_loader(data, transform, seed=0, global_batch=batch, total_steps=total, workers=workers)
    waited = 0.0
    for number in range(total):
        start = time.monotonic()
        next(loader)
        if number >= 2:  # the first two contain the processes' start
            waited += time.monotonic() - start
        time.sleep(step)
    return waited / steps
