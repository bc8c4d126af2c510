"""Values and gradients of the reference's losses (`losses.npz`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cirkd_ray.losses import LossInputs, build_loss
from cirkd_ray.losses.adversarial import discriminator_objective
from cirkd_ray.losses.context import ContextModule
from cirkd_ray.losses.task import TaskLoss
from cirkd_ray.types import IGNORE_INDEX, SegmentationOutput
from tests.paths import golden


class Case:
    """The arrays of one case as tensors."""

    def __init__(self, name: str, file: str = "losses.npz") -> None:
        self.name = name
        with np.load(golden(file)) as arrays:
            self.arrays = {
                k.removeprefix(name + "/"): v for k, v in arrays.items() if k.startswith(name + "/")
            }

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[key]))

    def leaf(self, key: str) -> Tensor:
        return self[key].requires_grad_()

    def close(self, value: Tensor, key: str, rtol: float = 1e-4) -> None:
        expected = self[key]
        torch.testing.assert_close(
            value.detach().to(expected.dtype),
            expected,
            rtol=rtol,
            atol=rtol * 1e-2 * float(expected.abs().max()),
        )


def output(
    feature: Tensor, num_classes: int = 5, logits: Tensor | None = None, aux: Tensor | None = None
) -> Any:
    n, _, h, w = feature.shape
    return SegmentationOutput(torch.zeros(n, num_classes, h, w) if logits is None else logits, aux, feature)


def zeros_like_labels(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], x.shape[2] * 4, x.shape[3] * 4, dtype=torch.int64)


def check_map_loss(case: Case, kind: str, term: str, tap: str, **settings: Any) -> torch.nn.Module:
    """Build the loss for the case's two maps; compare its value and gradients."""
    student, teacher = case.leaf("student"), case["teacher"]
    context = {"student_channels": student.shape[1], "teacher_channels": teacher.shape[1], "num_classes": 5}
    loss = build_loss(kind, **context, **settings)
    if "adapter_weight" in case.arrays:
        loss.load_state_dict({"adapter.weight": case["adapter_weight"]})
    as_output = (lambda x: output(x, logits=x)) if tap == "logits" else output
    terms = loss(LossInputs(as_output(student), as_output(teacher), zeros_like_labels(student)))
    case.close(terms[term], "loss")
    terms[term].backward()
    assert student.grad is not None
    case.close(student.grad, "grad_student")
    if "grad_adapter" in case.arrays:
        case.close(loss.adapter.weight.grad, "grad_adapter")
    return loss


@pytest.mark.parametrize("name", ["kd_T1", "kd_T4"])
def test_kd(name: str) -> None:
    case = Case(name)
    check_map_loss(case, "kd", "kd", "logits", temperature=float(case["temperature"]))


SINGLE = {
    "at": ("at", "at", "feature", {}),
    "fitnet": ("fitnet", "fitnet", "feature", {}),
    "skd_pairwise": ("skd", "skd", "feature", {}),
    "cwd_feature_T4": ("cwd", "cwd", "feature", {"temperature": 4.0}),
    "cwd_logit_T4": (
        "cwd",
        "cwd",
        "logits",
        {"temperature": 4.0, "student_tap": "logits", "teacher_tap": "logits"},
    ),
}


@pytest.mark.parametrize("name", SINGLE)
def test_losses_of_one_map(name: str) -> None:
    kind, term, tap, settings = SINGLE[name]
    check_map_loss(Case(name), kind, term, tap, **settings)


def test_ifvd() -> None:
    case = Case("ifvd")
    student, teacher = case.leaf("student"), case["teacher"]
    classes = int(case["num_classes"])
    loss = build_loss(
        "ifvd", student_channels=student.shape[1], teacher_channels=teacher.shape[1], num_classes=classes
    )
    value = loss(LossInputs(output(student), output(teacher), case["labels"]))["ifvd"]
    case.close(value, "loss")
    value.backward()
    case.close(student.grad, "grad_student")


@pytest.mark.parametrize("term", ["psd", "csd"])
def test_dsd(term: str) -> None:
    case = Case("dsd")
    s0, s1, logits = case.leaf("student_0"), case.leaf("student_1"), case.leaf("student_logits")
    loss = build_loss(
        "dsd",
        student_channels=s1.shape[1],
        teacher_channels=case["teacher_1"].shape[1],
        num_classes=logits.shape[1],
        active=frozenset({term}),
    )
    teacher = output(case["teacher_1"], logits=case["teacher_logits"], aux=case["teacher_0"])
    labels = zeros_like_labels(s1)
    terms = loss(LossInputs(output(s1, logits=logits, aux=s0), teacher, labels))
    assert set(terms) == {term}
    case.close(terms[term], term)
    terms[term].backward()
    # csd subtracts nearly equal Gram matrices in float32: its gradient differs by 3e-6 of its largest entry
    # from one make of CPU to another.
    case.close(logits.grad, f"grad_{term}_logits", rtol=1e-3 if term == "csd" else 1e-4)
    if term == "psd":
        case.close(s0.grad, "grad_psd_0")
        case.close(s1.grad, "grad_psd_1")


@pytest.mark.parametrize("objective", ["hinge", "wgan-gp"])
def test_adversarial_objectives(objective: str) -> None:
    case = Case(f"adversarial_{objective}")
    fake, real = case.leaf("d_student"), case["d_teacher"]
    generator = -fake.mean()
    case.close(generator, "generator")
    generator.backward()
    case.close(fake.grad, "grad_generator")
    fake.grad = None
    discriminator = discriminator_objective(fake, real, objective)
    case.close(discriminator, "discriminator")
    discriminator.backward()
    case.close(fake.grad, "grad_discriminator")


def test_task_cross_entropy() -> None:
    case = Case("cross_entropy")
    logits = case.leaf("logits")
    labels = case["labels"].masked_fill(case["labels"] == int(case["ignore_index"]), IGNORE_INDEX)
    loss = TaskLoss()(SegmentationOutput(logits, None, logits), labels)["task"]
    case.close(loss, "loss")
    loss.backward()
    case.close(logits.grad, "grad_logits")


@pytest.mark.parametrize(("name", "pool"), [("pool0", 1), ("pool1", 2), ("diffwidth", 1)])
def test_minibatch_pixel(name: str, pool: int) -> None:
    case = Case(f"minibatch_pixel_{name}")
    settings = {"temperature": float(case["temperature"]), "pool": pool, "group": "rank"}  # as published
    check_map_loss(case, "cirkd_minibatch", "minibatch_pixel", "feature", **settings)


def memory_loss(case: Case, mode: str, term: str) -> Any:
    """cirkd_memory with the case's projector and queues, drawing all slots."""
    classes, slots, width = case["pixel_queue_before"].shape
    regions = case["region_queue_before"].shape[1]
    loss = build_loss(
        "cirkd_memory",
        student_channels=case["student"].shape[1],
        teacher_channels=width,
        num_classes=classes,
        active=frozenset({term}),
        temperature=float(case["temperature"]),
        kd_temperature=float(case["kd_temperature"]),
        pixel_memory=slots,
        region_memory=regions,
        pixel_keys=(slots - 1) * classes,
        region_keys=(regions - 1) * classes,
        mode=mode,
    )
    state = {
        k: case[k.replace("projector.", "projector/")]
        for k in loss.state_dict()
        if k.startswith("projector.")
    }
    state |= {"pixel.queue": case["pixel_queue_before"], "region.queue": case["region_queue_before"]}
    state |= {f"{q}.ptr": torch.zeros(classes, dtype=torch.int64) for q in ("pixel", "region")}
    loss.load_state_dict({key: state[key] for key in loss.state_dict()})
    return loss.eval()


@pytest.mark.parametrize("name", ["memory_T1_tau0.1", "memory_T2_tau0.5"])
@pytest.mark.parametrize("term", ["pixel", "region"])
def test_memory_reference_mode(name: str, term: str) -> None:
    case = Case(name)
    loss, student = memory_loss(case, "reference", f"memory_{term}"), case.leaf("student")
    terms = loss(LossInputs(output(student), output(case["teacher"]), case["labels"]))
    assert set(terms) == {f"memory_{term}"}
    case.close(terms[f"memory_{term}"], f"{term}_loss")
    terms[f"memory_{term}"].backward()
    case.close(student.grad, f"grad_{term}_student")
    queue = getattr(loss, term)
    assert torch.equal(queue.ptr, case[f"{term}_ptr_after"])
    # The order inside the written slots is unspecified: compare them sorted by their first number.
    for mine, theirs, end in zip(queue.queue, case[f"{term}_queue_after"], queue.ptr.tolist(), strict=True):
        written, expected = (q[:end][q[:end, 0].argsort()] for q in (mine, theirs))
        torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(mine[end:], theirs[end:])


def test_memory_corrected_mode_holds_pixels_of_the_class() -> None:
    case = Case("memory_T1_tau0.1")
    loss = memory_loss(case, "class", "memory_pixel")
    loss(LossInputs(output(case["student"]), output(case["teacher"]), case["labels"]))
    assert torch.equal(loss.pixel.ptr, case["pixel_ptr_after"])
    vectors = torch.nn.functional.normalize(case["teacher"], dim=1).permute(0, 2, 3, 1)
    for k, end in enumerate(loss.pixel.ptr.tolist()):
        expected = vectors[case["labels_small"] == k]
        written = loss.pixel.queue[k, :end]
        torch.testing.assert_close(written[written[:, 0].argsort()], expected[expected[:, 0].argsort()])


@pytest.mark.parametrize("term", ["minibatch", "memory", "mse"])
def test_channel(term: str) -> None:
    case = Case("channel", "losses_v2.npz")
    student, teacher = case.leaf("student"), case["teacher"]
    slots, length = case["queue_before"].shape
    name = {"mse": "channel_mse"}.get(term, f"{term}_channel")
    loss = build_loss(
        "cirkd_channel",
        student_channels=student.shape[1],
        teacher_channels=teacher.shape[1],
        num_classes=5,
        active=frozenset({name}),
        temperature=float(case["temperature"]),
        kd_temperature=float(case["kd_temperature"]),
        length=length,
        channel_memory=slots,
        channel_keys=slots,
        group="rank",
    ).eval()
    state = {k: case[k.replace("projector.", "projector/")] for k in loss.state_dict() if "projector." in k}
    state |= {
        "channel.queue": case["queue_before"].unsqueeze(0),
        "channel.ptr": torch.zeros(1, dtype=torch.int64),
    }
    loss.load_state_dict({key: state[key] for key in loss.state_dict()})
    value = loss(LossInputs(output(student), output(teacher), zeros_like_labels(student)))[name]
    case.close(value, term)
    value.backward()
    case.close(student.grad, f"grad_{term}")
    if term == "memory":
        end = int(loss.channel.ptr)
        mine, theirs = loss.channel.queue[0], case["queue_after"]
        written, expected = (q[:end][q[:end, 0].argsort()] for q in (mine, theirs))
        torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(mine[end:], theirs[end:])


def test_context_module() -> None:
    case = Case("gcn", "losses_v2.npz")
    names = {"node_q": "query", "node_k": "key", "node_v": "value", "conv1": "expand", "out_conv": "fuse"}
    state = {}
    for name in case.arrays:
        if name.startswith("state/"):
            first, rest = name.removeprefix("state/").split(".", 1)
            state[f"{names[first]}.{rest}"] = case[name]
    module = ContextModule(case["x"].shape[1]).eval()
    module.load_state_dict(state)
    case.close(module(case["x"]), "out")
