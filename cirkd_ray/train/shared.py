"""What the members of a cohort see of a micro-batch, made once: images and the teacher's maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cirkd_ray.config.spec import TrainSpec
from cirkd_ray.data.loader import DeviceBatch
from cirkd_ray.device import autocast
from cirkd_ray.losses import DistillationLoss
from cirkd_ray.models.segmentation import SegmentationModel
from cirkd_ray.train.distributed import World
from cirkd_ray.train.frozen import cast_weights, freeze
from cirkd_ray.train.recorded import Recorded
from cirkd_ray.train.sharded import shard
from cirkd_ray.types import Preprocess, Preprocessing, SegmentationOutput


class SharedForward:
    """Makes a micro-batch ready for students: networks' inputs, and the forward pass of their teacher.

    Args:
        teacher: frozen network in eval mode, or None.
        precision: "fp32", "bf16" or "fp16".
        device: of everything.
        channels_last: whether the networks take images in that memory format.
        generator: its state, from which the first values of each member's losses are drawn.
        sharded: whether the teacher's weights are shared out to the ranks (`sharded.py`), which run it alike.
    """

    def __init__(
        self,
        teacher: SegmentationModel | None,
        precision: str,
        device: torch.device,
        channels_last: bool = False,
        generator: Tensor | None = None,
        sharded: bool = False,
    ) -> None:
        self.teacher, self.precision, self.device = teacher, precision, device
        self.sharded = sharded
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.generator = generator
        self.recorded: Recorded | None = None
        self._prepare: dict[Preprocessing, Preprocess] = {}

    def use(
        self,
        teacher: SegmentationModel,
        losses: Sequence[DistillationLoss],
        train: TrainSpec,
        world: World,
    ) -> None:
        """Let a teacher deliver what these losses read, and what others have it deliver already.

        Args:
            teacher: the one that there is, or a new one.
        """
        before = frozenset() if self.teacher is None else self.teacher.taps
        taps = before.union(*(loss.teacher_taps for loss in losses))
        if teacher is self.teacher and taps == before:
            return
        teacher.taps = taps
        if teacher is not self.teacher:
            freeze(teacher, losses)
            if self.sharded:
                cast_weights(teacher, self.precision)
                shard(teacher, world, self.precision)
            else:  # on CPUs, too, the channel last: networks that are not trained are faster so
                move(teacher, self.device, bool(train.channels_last))
                cast_weights(teacher, self.precision)
                if train.compile is True:
                    teacher.compile()
        recorded = train.compile == "auto" and self.device.type == "cuda" and not train.deterministic
        self.teacher = teacher
        self.recorded = Recorded(teacher, self.precision) if recorded and not self.sharded else None

    def __call__(self, batch: DeviceBatch, readers: int = 1) -> MicroBatch:
        """The micro-batch of so many members."""
        return MicroBatch(self, batch, readers)

    def network_input(self, preprocessing: Preprocessing, batch: DeviceBatch) -> Tensor:
        """What a network takes, in its memory format."""
        if preprocessing not in self._prepare:
            self._prepare[preprocessing] = Preprocess(preprocessing).to(self.device)
        images: Tensor = self._prepare[preprocessing](batch.images, batch.padding)
        return images.contiguous(memory_format=self.memory_format)

    def teach(self, images: Tensor) -> SegmentationOutput:
        """The teacher's maps, which have no history."""
        assert self.teacher is not None
        if self.recorded is not None:
            return self.recorded(images)
        # Not inference mode: losses save these maps for their backward pass.
        with torch.no_grad(), autocast(self.precision, self.device):
            found: SegmentationOutput = self.teacher(images)
        return found


class MicroBatch:
    """One micro-batch of this rank. What is made of it goes when the last of its readers leaves."""

    def __init__(self, shared: SharedForward, batch: DeviceBatch, readers: int) -> None:
        self.shared, self.batch, self.readers = shared, batch, readers
        self._images: dict[Preprocessing, Tensor] = {}
        self._taught: SegmentationOutput | None = None

    @property
    def labels(self) -> Tensor:
        """N x H x W int64: class index or `IGNORE_INDEX`."""
        return self.batch.labels

    def images(self, preprocessing: Preprocessing) -> Tensor:
        """The input of a network, N x 3 x H x W."""
        if preprocessing not in self._images:
            self._images[preprocessing] = self.shared.network_input(preprocessing, self.batch)
        return self._images[preprocessing]

    def taught(self) -> SegmentationOutput | None:
        """The teacher's maps; None where there is no teacher."""
        teacher = self.shared.teacher
        if teacher is not None and self._taught is None:
            self._taught = self.shared.teach(self.images(teacher.preprocessing))
        return self._taught

    def leave(self) -> None:
        """A reader needs it no more."""
        self.readers -= 1
        if self.readers == 0:
            self._images, self._taught = {}, None


def move(module: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Move a network in place."""
    module.to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)
