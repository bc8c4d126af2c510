"""What every registered loss must do; a new loss is covered as soon as it is registered."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor

from cirkd_ray.errors import ConfigError
from cirkd_ray.losses import LOSSES, DistillationLoss, LossInputs, build_loss
from cirkd_ray.types import SegmentationOutput
from tests.contract.loss_cases import (
    CLASSES,
    HEIGHT,
    KINDS,
    SCALE,
    STUDENT,
    TEACHER,
    WIDTH,
    make_inputs,
    make_labels,
    naive_of,
    small_loss,
    student_maps,
    total,
)
from tests.errors import refuses

each_loss = pytest.mark.parametrize("kind", KINDS)


def gradients(terms: dict[str, Tensor], inputs: LossInputs) -> list[Tensor]:
    """Gradients of the sum of the terms with respect to the student's maps, 0 where a map is not used."""
    maps = student_maps(inputs)
    grads = torch.autograd.grad(total(terms), maps, allow_unused=True)
    return [torch.zeros_like(m) if g is None else g for m, g in zip(maps, grads, strict=True)]


@each_loss
def test_docstring_names_paper_and_equation(kind: str) -> None:
    text = LOSSES.get(kind).__doc__ or ""
    assert re.search(r"\b(19|20)\d\d\b", text), "the docstring names no paper with its year"
    assert re.search(r"eqs?\. \d|`[^`]*\(", text), "the docstring has no equation"


@each_loss
def test_value_is_that_of_the_equations(kind: str) -> None:
    loss, inputs = small_loss(kind), make_inputs()
    expected = naive_of(kind)(copy.deepcopy(loss), inputs)
    terms = loss(inputs)
    assert set(terms) == set(loss.terms) == set(expected)
    for name, value in terms.items():
        assert value.shape == ()
        torch.testing.assert_close(value.detach(), expected[name].detach(), rtol=1e-6, atol=1e-9, msg=name)


@each_loss
def test_gradient_only_to_the_student(kind: str) -> None:
    loss, inputs = small_loss(kind), make_inputs()
    teacher = SegmentationOutput(*(t.clone().requires_grad_() for t in inputs.teacher[:3]))
    total(loss(LossInputs(inputs.student, teacher, inputs.labels, step=3))).backward()
    assert all(t.grad is None for t in teacher[:3])
    assert any(t.grad is not None and bool(t.grad.abs().sum() > 0) for t in student_maps(inputs))


@each_loss
def test_gradcheck(kind: str) -> None:
    loss, inputs = small_loss(kind), make_inputs()

    def value(*maps: Tensor) -> Tensor:
        fresh = copy.deepcopy(loss)  # queues move on with every call
        return total(fresh(LossInputs(SegmentationOutput(*maps), inputs.teacher, inputs.labels)))

    assert torch.autograd.gradcheck(value, student_maps(inputs), fast_mode=True, atol=1e-5)


each_precision = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def unpredicted(inputs: LossInputs) -> LossInputs:
    """Neither network ever gives the last class a chance."""
    for output in (inputs.student, inputs.teacher):
        for scores in (output.logits, output.aux):
            assert scores is not None
            scores.data[:, -1] = -30.0
    return inputs


def constant(inputs: LossInputs) -> LossInputs:
    """Maps without any structure on both sides."""
    for output in (inputs.student, inputs.teacher):
        for x in output[:3]:
            x.data.fill_(1.0)
    return inputs


@each_loss
@each_precision
def test_all_ignored(kind: str, dtype: torch.dtype) -> None:
    labels = torch.full((2, HEIGHT * SCALE, WIDTH * SCALE), -1)
    loss, inputs = small_loss(kind).to(dtype).train(), make_inputs(labels=labels, dtype=dtype)
    terms = loss(inputs)
    for name, value in terms.items():
        assert value.requires_grad, name
        assert value.item() == pytest.approx(0.0, abs=1e-12), name
    assert all(bool(g.isfinite().all()) for g in gradients(terms, inputs))


@each_loss
@each_precision
@pytest.mark.parametrize("case", ["one class", "one image", "other size", "unpredicted class", "constant"])
def test_odd_batches_are_finite(kind: str, case: str, dtype: torch.dtype) -> None:
    inputs = {
        "one class": lambda: make_inputs(labels=torch.full_like(make_labels(2), 1), dtype=dtype),
        "one image": lambda: make_inputs(images=1, dtype=dtype),
        "other size": lambda: make_inputs(teacher_scale=2, dtype=dtype),
        "unpredicted class": lambda: unpredicted(make_inputs(dtype=dtype)),
        "constant": lambda: constant(make_inputs(dtype=dtype)),
    }[case]()
    loss = small_loss(kind).to(dtype).train()
    terms = loss(inputs)
    assert bool(total(terms).isfinite())
    assert all(bool(g.isfinite().all()) for g in gradients(terms, inputs))


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    exact = make_inputs(dtype=torch.float32)
    expected = small_loss(kind).float()(exact)
    half = SegmentationOutput(*(t.detach().to(dtype).requires_grad_() for t in student_maps(exact)))
    teacher = SegmentationOutput(*(t.to(dtype) for t in exact.teacher[:3]))
    inputs = LossInputs(half, teacher, exact.labels, seed=exact.seed)
    with torch.autocast("cpu", dtype=dtype):
        terms = small_loss(kind).float()(inputs)
    for name, value in terms.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.05, msg=name)
    assert all(bool(g.isfinite().all()) for g in gradients(terms, inputs))


@each_loss
def test_only_active_terms_are_computed(kind: str) -> None:
    both = small_loss(kind)(make_inputs())
    for term in LOSSES.get(kind).terms:
        alone = small_loss(kind, active=frozenset({term}))(make_inputs())
        assert set(alone) == {term}
        torch.testing.assert_close(alone[term], both[term])


@each_loss
def test_state_round_trip(kind: str) -> None:
    torch.manual_seed(1)
    first = small_loss(kind).train()
    for step in range(2):
        first(make_inputs(step=step))
    second = small_loss(kind).train()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    one, two = first(make_inputs(step=2)), second(make_inputs(step=2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


@each_loss
def test_nan_features_are_not_hidden(kind: str) -> None:
    inputs = make_inputs()
    broken = SegmentationOutput(*(t.detach().clone() for t in student_maps(inputs)))
    for t in broken[:3]:
        t[0, 0] = float("nan")
    assert not bool(total(small_loss(kind)(LossInputs(broken, inputs.teacher, inputs.labels))).isfinite())


def test_bad_inputs_name_loss_and_setting() -> None:
    for kind in KINDS:
        loss, good = small_loss(kind), make_inputs()
        wide = good.student._replace(feature=torch.zeros(2, STUDENT + 1, HEIGHT, WIDTH))
        classes = good.student._replace(logits=torch.zeros(2, CLASSES + 1, HEIGHT, WIDTH))
        high = good.labels.masked_fill(good.labels == 2, CLASSES)
        with refuses(f"loss {kind!r}", ConfigError, CLASSES + 1, f"num_classes={CLASSES}"):
            loss(LossInputs(classes, good.teacher, good.labels))
        with refuses(f"loss {kind!r}", ConfigError, CLASSES, f"0..{CLASSES - 1}", "num_classes"):
            loss(LossInputs(good.student, good.teacher, high))
        with refuses(f"loss {kind!r}", ConfigError, "N x H x W", str(tuple(good.labels.shape[1:]))):
            loss(LossInputs(good.student, good.teacher, good.labels[0]))
        if getattr(loss, "student_tap", "feature") == "feature":
            with refuses(f"loss {kind!r}", ConfigError, STUDENT + 1, STUDENT, "student_channels"):
                loss(LossInputs(wide, good.teacher, good.labels))


PUBLISHED: dict[str, dict[str, object]] = {
    "adversarial": {"objective": "hinge", "penalty": 10.0, "width": 64, "discriminator_weight": 0.1},
    "af_dcd": {"temperature": 0.07, "mask_ratio": 0.75, "pool": 4, "patch": 4, "groups": 16},
    "cirkd_channel": {"temperature": 0.1, "kd_temperature": 1.0, "pool": 4, "length": 512, "candidates": 256},
    "cirkd_memory": {"temperature": 0.1, "kd_temperature": 1.0, "pixel_keys": 4096, "region_keys": 1024},
    "cirkd_minibatch": {"temperature": 0.1, "pool": 1, "group": 2, "mask_ignored": True},
    "cirkd_v2": {"temperature": 0.1, "kd_temperature": 1.0, "pool": 1, "length": 512, "context": True},
    "cwd": {"temperature": 4.0, "student_tap": "feature", "teacher_tap": "feature"},
    "dist": {"temperature": 1.0, "student_tap": "logits", "teacher_tap": "logits"},
    "dkd": {"temperature": 4.0, "student_tap": "logits", "teacher_tap": "logits"},
    "dsd": {"temperature": 4.0},
    "ifvd": {"mask_ignored": False},
    "kd": {"temperature": 1.0, "logit_std": False, "student_tap": "logits", "mask_ignored": True},
    "mgd": {"mask_ratio": 0.75},
    "skd": {"pool": 2},
}
"""What the papers and their code set."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_settings_are_the_defaults(kind: str) -> None:
    loss = LOSSES.settings(kind)().model_dump()
    assert {name: loss[name] for name in PUBLISHED[kind]} == PUBLISHED[kind]


def test_settings_are_those_of_the_whole_class() -> None:
    common = {"student_tap", "teacher_tap", "mask_ignored"}
    assert set(LOSSES.settings("at").model_fields) == common  # without a constructor of its own
    assert set(LOSSES.settings("cwd").model_fields) == {"temperature", *common}
    assert set(LOSSES.settings("dkd").model_fields) == {"temperature", *common} - {"mask_ignored"}
    for kind in KINDS:
        assert not {*context(), "common"} & set(LOSSES.settings(kind).model_fields)


def context() -> dict[str, int]:
    return {"student_channels": STUDENT, "teacher_channels": TEACHER, "num_classes": CLASSES}


@each_loss
def test_bad_settings_name_the_loss(kind: str) -> None:
    fields = LOSSES.settings(kind).model_fields
    with refuses(f"loss {kind!r}.no_such", ConfigError):
        build_loss(kind, **context(), no_such=1)
    for name in {"temperature", "kd_temperature"} & set(fields):
        with refuses(f"loss {kind!r}.{name}", ConfigError, 0, -1.0):
            build_loss(kind, **context(), **{name: -1.0})
    with refuses(f"loss {kind!r}", ConfigError, "'nonsense'"):
        build_loss(kind, **context(), active=frozenset({"nonsense"}), **small_settings(kind))
    if "student_tap" in fields:
        with refuses(f"loss {kind!r}", ConfigError, "stage9"):
            build_loss(kind, **context(), **{**small_settings(kind), "student_tap": "stage9"})


def small_settings(kind: str) -> dict[str, object]:
    from tests.contract.loss_cases import own_module

    return dict(getattr(own_module(kind), "SETTINGS", {}))


def test_stages_are_asked_for_and_used() -> None:
    loss = build_loss(
        "fitnet",
        student_channels={"feature": STUDENT, "stage3": 5},
        teacher_channels={"feature": TEACHER, "stage4": 9},
        num_classes=CLASSES,
        student_tap="stage3",
        teacher_tap="stage4",
    )
    assert (loss.student_taps, loss.teacher_taps) == ({"stage3"}, {"stage4"})
    inputs = make_inputs(dtype=torch.float32)
    with refuses("loss 'fitnet', student_tap", ConfigError, "'stage3'"):
        loss(inputs)
    student = inputs.student._replace(stages={"stage3": torch.randn(2, 5, 3, 4)})
    teacher = inputs.teacher._replace(stages={"stage4": torch.randn(2, 9, 6, 8)})
    assert bool(loss(LossInputs(student, teacher, inputs.labels))["fitnet"].isfinite())


def test_weights_belong_to_terms() -> None:
    for kind in KINDS:
        cls = LOSSES.get(kind)
        assert issubclass(cls, DistillationLoss)
        assert cls.terms
        assert set(cls.default_weights) <= set(cls.terms)
        assert all(weight > 0 for weight in cls.default_weights.values())
