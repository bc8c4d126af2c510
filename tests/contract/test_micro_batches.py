"""A step's values, gradients and queues do not depend on how many micro-batches its batch is split into."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cirkd_ray.losses import LossInputs
from cirkd_ray.losses.task import TaskLoss
from cirkd_ray.losses.whole import WholeStep
from cirkd_ray.types import SegmentationOutput
from tests.contract.loss_cases import KINDS, make_inputs, small_loss, student_maps, total

IMAGES, STEPS = 4, 2
WHOLE: dict[str, dict[str, frozenset[str]]] = {"dist": {"active": frozenset({"dist_inter"})}}
"""Without the term that is one statistic of all pixels of a micro-batch."""


def step_inputs(step: int) -> LossInputs:
    """Four images, of which the halves have unlike numbers of ignored pixels; one has no other."""
    inputs = make_inputs(images=IMAGES, step=step)
    labels = inputs.labels.clone()
    labels[0, 4:] = -1
    labels[1] = -1
    return replace(inputs, labels=labels)


def micro_batches(inputs: LossInputs, parts: int) -> list[LossInputs]:
    """The same images in that many parts that know of each other, with leaves of their own."""
    rows = [slice(i * IMAGES // parts, (i + 1) * IMAGES // parts) for i in range(parts)]
    taught = [SegmentationOutput(*(t[each] for t in inputs.teacher[:3])) for each in rows]
    whole = WholeStep({i: inputs.labels[each] for i, each in enumerate(rows)}, taught.__getitem__)
    return [
        replace(
            inputs,
            student=SegmentationOutput(
                *(t.detach()[each].clone().requires_grad_() for t in student_maps(inputs))
            ),
            teacher=taught[i],
            labels=whole.labels[i],
            micro=i,
            whole=whole,
        )
        for i, each in enumerate(rows)
    ]


def run(kind: str, parts: int) -> dict[str, list[Tensor]]:
    """Some steps of a loss, as the engine accumulates them."""
    loss = small_loss(kind, **WHOLE.get(kind, {}))
    maps, values = [], []
    for step in range(STEPS):
        found, grads = [], []
        for inputs in micro_batches(step_inputs(step), parts):
            terms = loss(inputs)
            (total(terms) / parts).backward()
            found.append(torch.stack([terms[name].detach() for name in sorted(terms)]))
            leaves = student_maps(inputs)
            grads.append([torch.zeros_like(t) if t.grad is None else t.grad for t in leaves])
        values.append(torch.stack(found).mean(0))
        maps += [torch.cat(each) for each in zip(*grads, strict=True)]
    trained = [torch.zeros_like(p) if p.grad is None else p.grad for p in loss.parameters()]
    if loss.discriminator is not None:  # its gradients are the step's own; here it is not trained
        trained = []
    return {
        "maps": maps,
        "values": values,
        "trained": trained,
        "buffers": [b.clone() for b in loss.buffers()],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_parts_is_the_step(kind: str) -> None:
    one, two = run(kind, 1), run(kind, 2)
    for what in one:
        for mine, theirs in zip(two[what], one[what], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, msg=lambda m, w=what: f"{w}: {m}")


def test_the_cross_entropy_of_a_step_in_parts() -> None:
    loss, inputs = TaskLoss(), step_inputs(0)
    whole = loss(inputs.student, inputs.labels)
    size = (inputs.labels.shape[-2], inputs.labels.shape[-1])
    parts = [
        loss(part.student, part.labels, part.step_batch.scale(size)) for part in micro_batches(inputs, 4)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)


def test_parts_draw_the_same_slots_and_different_candidates() -> None:
    first, second = micro_batches(step_inputs(0), 2)
    assert first.key("slots") == second.key("slots")
    bits = first.bits("x", 2, 8, torch.device("cpu"))
    assert not torch.equal(bits, second.bits("x", 2, 8, torch.device("cpu")))
    assert torch.equal(second.bits("x", 2, 8, torch.device("cpu")), first.bits("x", 4, 8, bits.device)[2:])
