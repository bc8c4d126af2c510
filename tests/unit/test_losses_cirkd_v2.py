"""cirkd_v2 is its parts on one context feature."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cirkd_ray.losses import DistillationLoss, LossInputs
from tests.contract.loss_cases import make_inputs, small_loss
from tests.unit import test_losses_cirkd_channel, test_losses_cirkd_memory
from tests.unit.test_losses_cirkd_minibatch import naive as naive_minibatch
from tests.unit.test_losses_fitnet import naive as naive_fitnet

MEMORY = {k: v for k, v in test_losses_cirkd_memory.SETTINGS.items() if k != "pixel_candidates"}
SETTINGS = {**MEMORY, "length": 4, "channel_memory": 40, "channel_keys": 9, "pixel_memory": 40}
JOINED = {"gather": True}


def naive(loss: DistillationLoss, inputs: LossInputs) -> dict[str, Tensor]:
    inputs = replace(inputs, student=inputs.student._replace(feature=loss.context(inputs.student.feature)))
    channel = dict(test_losses_cirkd_channel.SETTINGS)
    assert channel["kd_temperature"] == MEMORY["kd_temperature"]
    terms = {**naive_fitnet(loss.fitnet, inputs), **naive_minibatch(loss.minibatch, inputs)}
    terms |= test_losses_cirkd_memory.naive(loss.memory, inputs)
    by_kind = test_losses_cirkd_channel.naive(loss.channel, inputs)
    # Here all channels of both images are candidates, in the naive function three of each image.
    by_kind["memory_channel"] = memory_channel(loss, inputs)
    return terms | by_kind


def memory_channel(loss: DistillationLoss, inputs: LossInputs) -> Tensor:
    from cirkd_ray.losses import LOSSES

    alone = LOSSES.get("cirkd_channel")(
        student_channels=6,
        teacher_channels=8,
        num_classes=4,
        length=4,
        channel_memory=40,
        channel_keys=9,
        kd_temperature=2.0,
    )
    alone = alone.double().eval()
    alone.kind, alone.num_classes = "cirkd_channel", 4
    alone.load_state_dict(loss.channel.state_dict())
    alone.activate(frozenset({"memory_channel"}))
    return alone(inputs)["memory_channel"]


def test_without_context_the_feature_is_compared_itself() -> None:
    loss, inputs = small_loss("cirkd_v2", context=False), make_inputs()
    torch.testing.assert_close(
        loss(inputs)["minibatch_pixel"], naive_minibatch(loss, inputs)["minibatch_pixel"]
    )


def test_parts_without_a_weight_are_not_built() -> None:
    loss = small_loss("cirkd_v2", active=frozenset({"memory_pixel", "channel_mse"}))
    names = {name.split(".")[0] for name, _ in loss.named_parameters()}
    assert names == {"context", "memory", "channel"}
    assert {name for name, _ in loss.named_buffers() if name.endswith("queue")} == {"memory.pixel.queue"}
