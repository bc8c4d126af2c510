"""What every network keeps to: over heads, over timm's families, and over the published names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cirkd_ray.errors import ConfigError
from cirkd_ray.models import SegmentationOutput, build_model
from cirkd_ray.models.build import model_names
from cirkd_ray.models.heads import HEADS
from tests.errors import refuses

FAMILIES = [
    "test_resnet",  # ResNet
    "test_byobnet",  # RegNet-like
    "test_efficientnet",  # EfficientNet, MobileNet
    "test_nfnet",  # normaliser-free
    "test_convnext",
    "test_mambaout",
    "test_vit",  # plain ViT
    "lcnet_035",
    "ghostnet_050",
    "starnet_s050",
    "pvt_v2_b0",
    "mobilevitv2_050",
    "efficientvit_b0",
    "xcit_nano_12_p16_224",
    "eva02_tiny_patch14_224",  # patches of 14, rotary positions
    "hrnet_w18_small",
    "swin_tiny_patch4_window7_224",  # channels last inside
    "vit_small_patch16_dinov3",  # DINO with register tokens
]
SIZES = dict.fromkeys(FAMILIES, (64, 96)) | dict.fromkeys(FAMILIES[::2], (65, 97))


def network(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    small = {"head_channels": 16, **({"pool_channels": 16} if name.startswith("upernet") else {})}
    return build_model(name, num_classes=3, **small, **settings)


def check_output(model: nn.Module, output: SegmentationOutput, size: tuple[int, int]) -> None:
    """The maps have the channels and strides that the network declares."""
    for name, stride in model.strides.items():
        shape = tuple(math.ceil(side / stride) for side in size)
        if name in ("logits", "feature", "aux") or output.stages:
            assert tuple(output.tap(name).shape[-2:]) == shape, name
    assert output.logits.shape[1] == model.num_classes
    assert output.feature.shape[1] == model.channels["feature"]


def train_one_step(name: str, size: tuple[int, int], **settings) -> None:
    """A small step lowers the loss of that very batch as the gradient says; every parameter takes part."""
    model = network(name, drop_path=0.0, **settings).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    output = model(images)
    check_output(model, output, size)

    def loss_of(result: SegmentationOutput) -> torch.Tensor:
        """Cross-entropy of class 1 everywhere, auxiliary scores included."""
        scores = [result.logits] if result.aux is None else [result.logits, result.aux]
        return sum(-x.log_softmax(1)[:, 1].mean() for x in scores)

    before = loss_of(output)
    before.backward()
    without = [key for key, p in model.named_parameters() if p.grad is None]
    assert not without, f"no gradient: {without[:5]}"
    assert all(p.grad.isfinite().all() for p in model.parameters())
    # A step along the gradient that should lower the loss by one percent.
    squared = sum(p.grad.square().sum() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=(0.01 * before / squared).item()).step()
    assert 0.97 * before < loss_of(model(images)) < 0.999 * before


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family: str):
    train_one_step(f"segformer:{family}", SIZES[family])


@pytest.mark.parametrize("head", HEADS.names())
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_every_head_trains_on_hierarchical_and_plain_encoders(head: str, backbone: str):
    train_one_step(f"{head}:{backbone}", (65, 97), aux=True)


@pytest.mark.parametrize("head", HEADS.names())
def test_evaluation_is_deterministic_and_leaves_no_trace(head: str):
    model = network(f"{head}:test_resnet").eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 48, 64)
    with torch.inference_mode():
        first, second = model(images), model(images)
        single = model(images[:1])
    assert torch.equal(first.logits, second.logits)
    torch.testing.assert_close(first.logits[:1], single.logits, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", model_names())
def test_published_networks_declare_what_they_return(name: str):
    """On the meta device, which computes shapes and nothing else."""
    with torch.device("meta"):
        model = build_model(name, num_classes=7, aux=True).eval()
        model.taps = frozenset(model.channels) - {"feature"}
        output = model(torch.zeros(1, 3, 65, 97))
    check_output(model, output, (65, 97))
    for key, channels in model.channels.items():
        assert output.tap(key).shape[1] == channels


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "maxvit_nano_rw_256"])
def test_families_of_one_size_are_refused_when_built(name: str):
    with refuses("model", ConfigError, f"{name!r}", "one size"):
        build_model(f"segformer:{name}", num_classes=2)


def test_plain_transformers_are_tapped_over_their_depth():
    encoder = build_model("dpt:test_vit", num_classes=2).encoder
    depth = len(encoder.body.feature_info)
    assert encoder.body.out_indices == [depth * (i + 1) // 4 - 1 for i in range(4)]


@pytest.mark.parametrize("name", ["deeplabv3_resnet18", "fcn:resnet18", "deeplabv3_mobilenetv2"])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride_keeps_the_weights_and_refines_the_maps(name: str, stride: int):
    """Dilation instead of stride: the same parameters see the same fields of view, at more places.

    So every map of the finer network holds that of the coarser one, borders included, where no layer averages
    over the whole map.
    """
    coarse, fine = (network(name, output_stride=s).eval() for s in (32, stride))
    for norm in (module for module in coarse.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # fresh, those that close a residual branch are zero
        nn.init.uniform_(norm.running_var, 0.05, 0.2)
    fine.load_state_dict(coarse.state_dict())
    assert (coarse.encoder.info.strides[-1], fine.encoder.info.strides[-1]) == (32, stride)
    images = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = zip(fine.encoder(images), coarse.encoder(images), strict=True)
    for refined, plain in maps:
        every = refined.shape[-1] // plain.shape[-1]
        scale = plain.std().item()
        assert scale > 0
        torch.testing.assert_close(refined[..., ::every, ::every], plain, rtol=1e-4, atol=1e-4 * scale)
