"""cirkd_minibatch without a mask, and pooled."""

from __future__ import annotations

import torch

from cirkd_ray.bench._losses_naive import pairs_of_images
from cirkd_ray.config import LossSpec
from cirkd_ray.losses import LossInputs
from tests.contract.loss_cases import make_inputs, small_loss

JOINED = {"group": "batch"}


def test_unmasked_is_the_mean_over_all_rows_and_pairs() -> None:
    inputs = make_inputs()
    student, teacher = ([x.flatten(1).T for x in o.feature] for o in (inputs.student, inputs.teacher))
    expected = pairs_of_images(student, teacher, 0.1)
    value = small_loss("cirkd_minibatch", mask_ignored=False)(inputs)["minibatch_pixel"]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_pooling_with_a_mask_counts_what_holds_a_valid_pixel() -> None:
    inputs = make_inputs()
    labels = inputs.labels.clone()
    labels[:, :8, :8] = -1  # the first pooled pixel of each image: nothing in it counts
    pooled = [torch.nn.functional.avg_pool2d(o.feature, 2) for o in (inputs.student, inputs.teacher)]
    small = labels[:, ::4, ::4].reshape(2, 3, 2, 4, 2)
    valid = (small != -1).any(4).any(2)
    assert not bool(valid[:, 0, 0].any())
    student, teacher = ([x[n][:, valid[n]].T for n in range(2)] for x in pooled)
    expected = pairs_of_images(student, teacher, 0.1)
    loss = small_loss("cirkd_minibatch", pool=2)
    value = loss(LossInputs(inputs.student, inputs.teacher, labels))["minibatch_pixel"]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_the_older_gather_is_read_as_a_group() -> None:
    assert LossSpec(kind="cirkd_minibatch", gather=True).settings == {"group": "batch"}
    assert LossSpec(kind="cirkd_minibatch", gather=False).settings == {"group": "rank"}
