"""Evaluation against a loop written out, on tiny networks and sets."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cirkd_ray.data.loader import DeviceBatch, eval_loader
from cirkd_ray.errors import ConfigError, DataError
from cirkd_ray.evaluate.boundary import BoundaryMatrix, boundary
from cirkd_ray.evaluate.evaluation import evaluate, joined
from cirkd_ray.evaluate.inference import (
    SlidingWindow,
    Views,
    inference,
    window_corners,
)
from cirkd_ray.evaluate.scores import predict_logits, predicted_classes
from cirkd_ray.types import IGNORE_INDEX, IMAGENET, Preprocessing
from tests.errors import refuses
from tests.tiny import RandomSet, TinyNet

NET = TinyNet(seed=0).eval()


def pixels(height=24, width=36, seed=0, images=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def upsampled(view, size, mirrored=False):
    logits = NET(view.flip(-1) if mirrored else view).logits
    logits = logits.flip(-1) if mirrored else logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


@torch.no_grad()
def test_single_view_is_the_upsampled_output():
    images = pixels()
    expected = upsampled(IMAGENET(images), (24, 36))
    assert torch.equal(predict_logits(NET, IMAGENET, images), expected)
    other = predict_logits(NET, IMAGENET, images, size=(30, 31))
    assert torch.allclose(other, upsampled(IMAGENET(images), (30, 31)))


@torch.no_grad()
@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_scales_and_flip_average_all_views(average):
    images = pixels()
    views = []
    for size in ((12, 18), (24, 36), (36, 54)):
        view = F.interpolate(IMAGENET(images), size=size, mode="bilinear", align_corners=True)
        for mirrored in (False, True):
            scores = upsampled(view, (24, 36), mirrored)
            views.append(scores.softmax(1) if average == "probabilities" else scores)
    expected = torch.stack(views).mean(0)
    found = predict_logits(NET, IMAGENET, images, Views((0.5, 1.0, 1.5), flip=True, average=average))
    assert torch.allclose(found, expected, atol=1e-6)


@torch.no_grad()
def test_flip_makes_the_scores_of_a_mirrored_image_mirrored():
    images = pixels()
    one = predict_logits(NET, IMAGENET, images, Views(flip=True))
    other = predict_logits(NET, IMAGENET, images.flip(-1), Views(flip=True)).flip(-1)
    assert torch.allclose(one, other, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_average_where_they_overlap(batch):
    images = pixels()
    window = SlidingWindow((16, 16), (8, 12), batch)
    total, count = torch.zeros(2, 4, 24, 36), torch.zeros(24, 36)
    for top in (0, 8):
        for left in (0, 12, 20):
            crop = IMAGENET(images)[:, :, top : top + 16, left : left + 16]
            total[:, :, top : top + 16, left : left + 16] += upsampled(crop, (16, 16))
            count[top : top + 16, left : left + 16] += 1
    found = predict_logits(NET, IMAGENET, images, Views(window=window))
    assert torch.allclose(found, total / count, atol=1e-6)


@torch.no_grad()
def test_window_as_large_as_the_image_is_the_whole_image():
    images = pixels()
    whole = predict_logits(NET, IMAGENET, images)
    for size in ((24, 36), (100, 100)):
        found = predict_logits(NET, IMAGENET, images, Views(window=SlidingWindow(size)))
        assert torch.allclose(found, whole, atol=1e-6)


@pytest.mark.parametrize(("length", "size", "stride"), [(10, 10, 5), (11, 10, 5), (37, 10, 6), (5, 10, 6)])
def test_windows_cover_every_pixel_and_stay_inside(length, size, stride):
    corners = window_corners(length, size, stride)
    covered = {x for corner in corners for x in range(corner, corner + min(size, length))}
    assert covered == set(range(length))
    assert len(corners) == len(set(corners))


@pytest.mark.parametrize("classes", [1, 2, 19, 300])
def test_predicted_classes_are_those_of_the_highest_scores(classes):
    scores = torch.randn(2, classes, 5, 7, generator=torch.Generator().manual_seed(classes)).round(decimals=1)
    found = predicted_classes(scores).long()
    assert torch.equal(scores.gather(1, found[:, None])[:, 0], scores.amax(1))
    earlier = torch.arange(classes)[:, None, None] < found[:, None]
    assert not ((scores == scores.amax(1, keepdim=True)) & earlier).any()


def test_bad_views_are_named():
    for settings, message in (
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, -1.0)}, "scales"),
        ({"average": "mean"}, "average"),
    ):
        with refuses(message, ConfigError):
            Views(**settings)
    with refuses("window", ConfigError, 9, 8):
        SlidingWindow((8, 8), (9, 8))
    with pytest.raises(ValueError, match="N x 3 x H x W"):
        predict_logits(NET, IMAGENET, pixels()[0])


def test_evaluate_equals_a_loop_over_images():
    data = RandomSet(count=7)
    result = evaluate(NET, data, device="cpu", batch_size=3, per_image=True)
    matrix = np.zeros((4, 4), dtype=np.int64)
    for index in range(7):
        sample = data.load(index)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        with torch.no_grad():
            prediction = upsampled(NET.preprocessing(image), sample.label.shape).argmax(1)[0].numpy()
        own = np.zeros_like(matrix)
        valid = sample.label < 254
        np.add.at(own, (sample.label[valid], prediction[valid]), 1)
        assert (result.per_image[index] == np.stack([own.diagonal(), own.sum(1), own.sum(0)])).all()
        matrix += own
    assert (result.confusion.matrix.numpy() == matrix).all()
    assert result.images == 7
    assert result.names == tuple(data.name(i) for i in range(7))
    assert result.images_per_second == pytest.approx(7 / result.seconds)


def test_batches_hold_images_of_one_size_and_all_are_counted():
    data, seen = RandomSet(count=11, sizes=((16, 20), (16, 20), (24, 20))), []
    batched = evaluate(NET, data, device="cpu", batch_size=4, on_images=seen.append, per_image=True)
    assert sorted(seen) == [3, 4, 4]
    alone = evaluate(NET, data, device="cpu", per_image=True)
    assert abs(batched.per_image - alone.per_image).sum() <= 4  # rounding may turn a pixel


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_joined_batches_hold_every_image_once_and_few_wait(size):
    sizes = [(8, 8), (8, 12), (12, 8), *((4 + 4 * i, 8) for i in range(30)), *[(8, 8)] * 9]
    batches = [
        DeviceBatch(torch.zeros(1, 3, *s), torch.zeros(1, *s), None, torch.tensor([i]))
        for i, s in enumerate(sizes)
    ]
    given = 0

    def counted():
        nonlocal given
        for batch in batches:
            given += 1
            yield batch

    taken = []
    for batch in joined(counted(), size):
        assert len(batch.indices) == len(batch.images) == len(batch.labels) <= size
        taken += batch.indices.tolist()
        assert given - len(taken) <= 8 * size
    assert sorted(taken) == list(range(len(sizes)))


def test_metrics_are_plain_numbers_with_a_score_a_class():
    result = evaluate(NET, RandomSet(count=2), device="cpu", boundary=True)
    scores = result.metrics()
    assert set(scores) >= {"miou", "pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou"}
    assert set(scores) >= {"boundary_iou", "iou/sky", "iou/road", "iou/car", "iou/person"}
    assert (scores.pop("miou_classes"), scores.pop("classes")) == (4, 4)
    assert all(type(value) is float and 0 <= value <= 1 for value in scores.values())
    assert scores["miou"] == pytest.approx(np.mean([v for k, v in scores.items() if k.startswith("iou/")]))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_shares_of_all_ranks_add_up_to_one_process(world_size):
    data = RandomSet(count=11, sizes=((8, 12), (12, 8)))
    whole = evaluate(NET, data, device="cpu", per_image=True)
    shares = [
        evaluate(NET, data, device="cpu", rank=rank, world_size=world_size, per_image=True)
        for rank in range(world_size)
    ]
    assert torch.equal(sum(share.confusion.matrix for share in shares), whole.confusion.matrix)
    assert (sum(share.per_image for share in shares) == whole.per_image).all()


def test_limit_takes_the_first_images():
    data = RandomSet(count=6)
    limited = evaluate(NET, data, device="cpu", limit=2)
    assert torch.equal(
        limited.confusion.matrix, evaluate(NET, RandomSet(count=2), device="cpu").confusion.matrix
    )
    with refuses("limit", ConfigError, 0):
        evaluate(NET, data, device="cpu", limit=0)


def test_pictures_hold_the_asked_images_on_rank_0_only():
    data, teacher = RandomSet(count=5), TinyNet(seed=1)
    result = evaluate(NET, data, device="cpu", pictures=(3, 1, 99), teacher=teacher)
    assert [p.name for p in result.pictures] == ["random/3", "random/1"]
    picture, sample = result.pictures[0], data.load(3)
    assert (picture.image == sample.image).all()
    assert (picture.truth == sample.label).all()
    for network, label_map in ((NET, picture.student), (teacher, picture.teacher)):
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = predict_logits(network.eval(), network.preprocessing, image)
        assert label_map.dtype == np.uint8
        assert (label_map == logits.argmax(1)[0].numpy()).all()
    assert evaluate(NET, data, device="cpu", rank=1, world_size=2, pictures=(1,)).pictures == ()


def test_modes_and_gradients_are_put_back_even_after_an_error():
    model = nn.Sequential(TinyNet(), nn.Dropout())
    model.train()
    model[0].eval()

    def fail() -> None:
        with inference(model, device=torch.device("cpu")):
            assert not any(module.training for module in model.modules())
            assert torch.is_inference_mode_enabled()
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert torch.is_grad_enabled()


def test_the_network_can_be_trained_on_after_evaluation():
    model = TinyNet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, RandomSet(count=2), device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(torch.zeros(1, 3, 8, 8)).logits.sum().backward()


def test_bf16_runs_and_returns_float_scores():
    result = evaluate(TinyNet(), RandomSet(count=2), device="cpu", precision="bf16")
    assert int(result.confusion.matrix.sum()) > 0
    with refuses("precision", ConfigError, "'fp8'"):
        evaluate(NET, RandomSet(count=1), device="cpu", precision="fp8")


def test_another_number_of_classes_is_named():
    with refuses("network", ConfigError, "6 classes", 4):
        evaluate(TinyNet(classes=6), RandomSet(count=1), device="cpu")


def test_impossible_labels_are_an_error_not_a_score():
    data = RandomSet(count=2, bad_value=77)
    with refuses("labels", DataError, "2 pixels", 4):
        evaluate(NET, data, device="cpu")


def test_a_loader_may_be_kept_between_evaluations():
    data = RandomSet(count=5)
    batches = eval_loader(data, 1, 2, batch_size=2)
    expected = evaluate(NET, data, device="cpu", rank=1, world_size=2).confusion.matrix
    for _ in range(2):
        found = evaluate(NET, data, device="cpu", rank=1, world_size=2, batches=batches)
        assert torch.equal(found.confusion.matrix, expected)


def test_preprocessing_is_the_networks_own_unless_given():
    data = RandomSet(count=2)
    other = Preprocessing("bgr", 1.0, (9.0, 8.0, 7.0), (1.0, 1.0, 1.0))
    model = TinyNet(seed=0)
    own = evaluate(model, data, device="cpu").confusion.matrix
    given = evaluate(model, data, device="cpu", preprocessing=other).confusion.matrix
    model.preprocessing = other
    assert torch.equal(evaluate(model, data, device="cpu").confusion.matrix, given)
    assert not torch.equal(own, given)


def test_views_reach_the_network():
    data, views = RandomSet(count=2), Views((0.5, 1.0), flip=True, window=SlidingWindow((12, 12)))
    found = evaluate(NET, data, device="cpu", views=views).confusion.matrix
    assert not torch.equal(found, evaluate(NET, data, device="cpu").confusion.matrix)


def naive_boundary(labels, distance):
    """As the paper's code does it: the mask minus its erosion by 3 x 3, `distance` times, zeros outside."""
    result = np.zeros(labels.shape, dtype=bool)
    for value in np.unique(labels):
        mask = np.pad((labels == value).astype(np.uint8), 1)
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)
        result |= (mask - inside)[1:-1, 1:-1] > 0
    return result


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_boundary_equals_repeated_erosion(distance):
    rng = np.random.default_rng(distance)
    coarse = rng.integers(-1, 3, (2, 5, 6))
    labels = coarse.repeat(9, axis=1).repeat(8, axis=2)
    found = boundary(torch.from_numpy(labels), distance).numpy()
    for image in range(2):
        assert (found[image] == naive_boundary(labels[image], distance)).all()


def test_boundary_iou_equals_its_definition():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, (2, 6, 6)).repeat(10, axis=1).repeat(10, axis=2)
    prediction = np.where(rng.random(labels.shape) < 0.002, 0, np.roll(labels, 2, axis=2)).clip(0)
    matrix = BoundaryMatrix(3, ratio=0.05)
    matrix.update(torch.from_numpy(prediction), torch.from_numpy(labels))
    distance = round(0.05 * (60**2 + 60**2) ** 0.5)
    both, either = np.zeros(3), np.zeros(3)
    for p, t in zip(prediction, labels, strict=True):
        p = np.where(t == -1, -1, p)  # the convention: cut out where the labels are ignored
        edge_p, edge_t = naive_boundary(p, distance), naive_boundary(t, distance)
        for k in range(3):
            a, b = (p == k) & edge_p, (t == k) & edge_t
            both[k] += (a & b).sum()
            either[k] += (a | b).sum()
    assert matrix.iou().tolist() == pytest.approx((both / either).tolist())
    assert matrix.miou() == pytest.approx((both / either).mean())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_perfect_prediction_has_boundary_iou_one_beside_ignored_regions(dtype):
    rng = np.random.default_rng(1)
    whole = torch.from_numpy(rng.integers(0, 3, (2, 6, 6)).repeat(10, axis=1).repeat(10, axis=2))
    ignored = torch.from_numpy(rng.random((2, 12, 12)).repeat(5, axis=1).repeat(5, axis=2) < 0.2)
    matrix = BoundaryMatrix(3, ratio=0.02)
    matrix.update(whole.to(dtype), torch.where(ignored, IGNORE_INDEX, whole))
    assert matrix.iou().tolist() == [1.0, 1.0, 1.0]
