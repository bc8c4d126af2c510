"""What makes networks faster changes no number: memory format, compilation, fused attention, precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cirkd_ray.models import SegmentationOutput, build_model

NETWORKS = [
    "deeplabv3:test_resnet",
    "pspnet:lcnet_035",
    "segformer:pvt_v2_b0",
    "upernet:test_convnext",
    "dpt:test_vit",
]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {"pool_channels": 16} if name.startswith("upernet") else {}
    model = build_model(name, num_classes=4, head_channels=16, aux=True, drop_path=0.0, **settings)
    for module in model.modules():  # so that training and evaluation can both be compared
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def assert_close(found: SegmentationOutput, expected: SegmentationOutput, tolerance: float = 1e-4) -> None:
    for name in ("logits", "feature", "aux"):
        largest = expected.tap(name).abs().max().item()
        difference = (found.tap(name).float() - expected.tap(name)).abs().max().item()
        assert difference <= tolerance * largest, f"{name} differs by {difference} of {largest}"


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """Networks share their code, and so the number of times that it may be compiled in one process."""
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last(name):
    plain, model = network(name), network(name).to(memory_format=torch.channels_last)
    x = images()
    expected, found = plain(x), model(x.to(memory_format=torch.channels_last))
    assert_close(found, expected)
    expected.logits.square().sum().backward()
    found.logits.square().sum().backward()
    gradients = [
        torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (plain, model)
    ]
    assert (gradients[0] - gradients[1]).norm() <= 2e-3 * gradients[0].norm()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def test_the_whole_network_is_one_graph_of_any_size(name):
    """Captured without a break, forward as eager; a second size is captured with free sizes."""
    model = network(name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(images()), model(images()), 0.0)
        other = torch.randn(1, 3, 32, 128)
        assert_close(compiled(other), model(other), 0.0)


@pytest.mark.parametrize("name", ["pspnet:test_resnet", "segformer:test_vit"])
def test_the_whole_network_is_one_graph(name):
    model = network(name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert_close(compiled(images()), model(images()), 0.0)


def test_compiled_training_has_eager_gradients():
    eager, model = network(NETWORKS[0]), network(NETWORKS[0])
    model.compile(backend="aot_eager")
    eager(images()).logits.square().sum().backward()
    model(images()).logits.square().sum().backward()
    torch.testing.assert_close(
        model.head.fuse.conv.weight.grad, eager.head.fuse.conv.weight.grad, rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [NETWORKS[0], NETWORKS[2]])
def test_inductor(name):
    model = network(name).eval()
    with torch.no_grad():
        assert_close(torch.compile(model)(images()), model(images()), 1e-3)


def test_segformer_attention_is_fused_and_equal():
    model = network("segformer_b0").eval()
    attentions = [m for m in model.modules() if hasattr(m, "fused_attn")]
    assert len(attentions) == 8
    assert all(m.fused_attn for m in attentions)
    with torch.no_grad():
        fused = model(images())
        with sdpa_kernel(SDPBackend.MATH):
            assert_close(model(images()), fused)
        for module in attentions:
            module.fused_attn = False
        assert_close(model(images()), fused)


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_is_close_and_returns_to_training(name):
    model = network(name).train()
    with torch.no_grad():
        expected = model.eval()(images())
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(model(images()), expected, 0.06)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(images()).logits.float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_equals_cpu(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = network(name).eval()
    with torch.no_grad():
        expected = model(images())
        found = model.cuda()(images().cuda())
        assert_close(SegmentationOutput(*(x.cpu() for x in found[:3])), expected, 1e-3)
        compiled = torch.compile(model.to(memory_format=torch.channels_last))
        found = compiled(images().cuda().to(memory_format=torch.channels_last))
        assert_close(SegmentationOutput(*(x.cpu() for x in found[:3])), expected, 1e-3)
