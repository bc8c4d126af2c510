"""`cirkd predict`: files, folders and splits; what is damaged is named and the rest goes on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cirkd_ray.cli import main
from cirkd_ray.data import build_dataset
from cirkd_ray.data.codec import decode_image
from cirkd_ray.data_tools.pictures import colorize
from cirkd_ray.errors import DataError
from cirkd_ray.evaluate.predict import Predictor, find_images
from cirkd_ray.models import build_model
from cirkd_ray.weights import load_model, save_model
from tests.errors import refuses, require_error
from tests.unit.test_data_codec import impossible_size

SIZE = {"height": 32, "width": 48, "val_images": 3}
SET = [text for key, value in SIZE.items() for text in ("--set", f"data.{key}={value}")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    classes = build_dataset("shapes", split="val", **SIZE).classes
    folder = tmp_path_factory.mktemp("model")
    network = build_model("deeplabv3_mobilenetv2", num_classes=len(classes))
    save_model(network, folder, classes=classes, data="shapes")
    return folder


def image(seed: int = 0, size=(40, 56)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)


def expected_labels(model, rgb: np.ndarray) -> np.ndarray:
    network = load_model(model).model
    with torch.no_grad():
        pixels = network.preprocessing(torch.from_numpy(rgb).permute(2, 0, 1)[None])
        logits = torch.nn.functional.interpolate(
            network(pixels).logits, size=rgb.shape[:2], mode="bilinear", align_corners=True
        )
    return logits.argmax(1)[0].numpy()


def test_folders_and_files_become_ids_colors_and_blends(model, tmp_path):
    photos = tmp_path / "photos with space" / "déjà vu"
    photos.mkdir(parents=True)
    rgb = image()
    (photos / "one.png").write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
    single = tmp_path / "two.bmp"
    single.write_bytes(cv2.imencode(".bmp", image(1)[..., ::-1])[1].tobytes())
    out = tmp_path / "out"
    assert main(["predict", str(model), str(photos.parent), str(single), "--out", str(out)]) == 0
    written = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert written == [
        "blends/déjà vu/one.jpg",
        "blends/two.jpg",
        "colors/déjà vu/one.png",
        "colors/two.png",
        "ids/déjà vu/one.png",
        "ids/two.png",
    ]
    labels = expected_labels(model, rgb)
    ids = cv2.imdecode(np.fromfile(out / "ids/déjà vu/one.png", np.uint8), cv2.IMREAD_UNCHANGED)
    assert (ids == labels).all()
    colors = cv2.imdecode(np.fromfile(out / "colors/déjà vu/one.png", np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (colors == colorize(labels.astype(np.uint8), load_model(model).classes)).all()


def test_gray_alpha_and_16_bit_images_are_predicted(model, tmp_path):
    gray = image()[..., 0]
    cv2.imwrite(str(tmp_path / "gray.png"), gray)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([image(), gray]))
    cv2.imwrite(str(tmp_path / "deep.png"), image().astype(np.uint16) * 257)
    out = tmp_path / "out"
    assert main(["predict", str(model), str(tmp_path), "--out", str(out), "--write", "ids"]) == 0
    assert sorted(p.name for p in (out / "ids").iterdir()) == ["alpha.png", "deep.png", "gray.png"]
    same = expected_labels(model, np.dstack([gray] * 3))
    assert (cv2.imread(str(out / "ids" / "gray.png"), cv2.IMREAD_UNCHANGED) == same).all()


def test_the_first_of_several_images(model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(cv2.imencode(".png", image())[1].tobytes())
    out = tmp_path / "out"
    command = ["predict", str(model), str(tmp_path), "--limit", "1", "--write", "ids", "--out", str(out)]
    assert main(command) == 0
    assert [p.name for p in (out / "ids").iterdir()] == ["a.png"]


def test_pictures_of_before_and_hidden_files_are_no_images(model, tmp_path, capsys):
    for name in ("a.png", "._a.png"):
        (tmp_path / name).write_bytes(cv2.imencode(".png", image())[1].tobytes())
    command = ["predict", str(model), str(tmp_path), "--write", "ids", "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert main(command) == 0
    assert [p.name for p in (tmp_path / "out" / "ids").rglob("*.png")] == ["a.png"]


def test_one_file_has_one_orientation_unless_upright_is_asked_for(model, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise to see it so
    root = tmp_path / "set"
    for folder in ("images/val", "labels/val"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(image()).save(root / "images/val/photo.jpg", quality=95, exif=exif)
    cv2.imwrite(str(root / "labels/val/photo.png"), np.zeros(image().shape[:2], np.uint8))
    names = ", ".join(load_model(model).classes.names)
    (root / "dataset.yaml").write_text(f"classes: [{names}]\n")
    stored = decode_image((root / "images/val/photo.jpg").read_bytes(), "photo")

    def predicted(out, *arguments):
        assert main(["predict", str(model), *arguments, "--out", str(out)]) == 0
        return cv2.imread(str(next((out / "ids").rglob("photo.png"))), cv2.IMREAD_UNCHANGED)

    photo = str(root / "images/val/photo.jpg")
    as_file = predicted(tmp_path / "a", photo)
    assert "orientation tag, which is not applied" in capsys.readouterr().err
    as_sample = predicted(tmp_path / "b", "--data", "folder", "--root", str(root))
    assert (as_file == as_sample).all()
    assert (as_file == expected_labels(model, stored)).all()
    turned = predicted(tmp_path / "c", photo, "--upright")
    assert (turned == expected_labels(model, np.rot90(stored, -1).copy())).all()
    assert cv2.imread(str(tmp_path / "c" / "blends" / "photo.jpg")).shape[:2] == (56, 40)


def test_images_of_formats_that_are_not_read_are_named(model, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "in.png"), image())
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, content in (("a.png", tmp_path / "in.png"), ("b.heic", None), ("c.dng", tmp_path / "in.png")):
        (photos / name).write_bytes(content.read_bytes() if content else b"ftypheic")
    (photos / "notes.txt").write_text("no image")
    assert main(["predict", str(model), str(photos), "--write", "ids", "--out", str(tmp_path / "o")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 images predicted, 2 skipped" in shown
    assert "b.heic: " in shown
    assert "c.dng: a format that is not read; save it as PNG or JPEG" in shown


def test_a_range_of_values_is_declared_for_files(model, tmp_path, capsys):
    wide = image().astype(np.uint16) * 8
    cv2.imwrite(str(tmp_path / "wide.png"), wide[..., ::-1])
    common = [
        "predict",
        str(model),
        str(tmp_path / "wide.png"),
        "--write",
        "ids",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*common, "--range", "0", "2040"]) == 0
    assert "warning" not in capsys.readouterr().err
    ids = cv2.imread(str(tmp_path / "o/ids/wide.png"), cv2.IMREAD_UNCHANGED)
    assert (ids == expected_labels(model, image())).all()
    assert main(common) == 0
    assert "scaled from 0..4095, as measured" in capsys.readouterr().err
    assert main([*common, "--range", "5", "5"]) == 2
    assert main(["predict", str(model), "--split", "val", "--upright"]) == 2


def test_damaged_images_are_named_and_the_rest_is_predicted(model, tmp_path, capsys):
    whole = cv2.imencode(".jpg", image())[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(whole)
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.jpg").write_bytes(whole)
    (tmp_path / "e.jpg").write_bytes(impossible_size("JPEG"))
    out = tmp_path / "out"
    assert main(["predict", str(model), str(tmp_path), "--out", str(out), "--write", "colors"]) == 1
    printed = capsys.readouterr().out
    assert "2 images predicted, 3 skipped" in printed
    assert all(name in printed for name in ("b.jpg", "c.png", "e.jpg"))
    assert sorted(p.name for p in (out / "colors").iterdir()) == ["a.png", "d.png"]


def test_a_split_is_predicted_by_its_samples_names(model, tmp_path):
    out = tmp_path / "out"
    assert (
        main(["predict", str(model), *SET, "--limit", "2", "--out", str(out), "--write", "ids", "blends"])
        == 0
    )
    data = build_dataset("shapes", split="val", **SIZE)
    ids = cv2.imread(str(out / "ids" / f"{data.name(1)}.png"), cv2.IMREAD_UNCHANGED)
    assert (ids == expected_labels(model, data.load(1).image)).all()
    assert len(list((out / "blends").iterdir())) == 2


def test_worst_images_of_a_split(model, tmp_path, capsys):
    command = ["predict", str(model), *SET, "--worst", "2", "--batch-size", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    picture = cv2.imread(str(tmp_path / "worst.png"))
    assert picture.shape[0] > 2 * 32
    assert capsys.readouterr().out.count("val_") == 2


@pytest.mark.parametrize(
    ("arguments", "subject", "fact"),
    [
        ([], "IMAGES", "--split val"),
        (["nowhere"], "nowhere", "file or folder"),
        (["--worst", "0"], "--worst", "1"),
        (["--batch-size", "4", *SET], "--batch-size, --loaders", "--worst N"),
        (["--loaders", "0", *SET], "--batch-size, --loaders", "--worst N"),
        (["--limit", "0", *SET], "--limit", "1"),
        (["--submission", "x.zip", *SET], "data.root", "'cityscapes'"),
    ],
)
def test_mistakes_are_named(model, arguments, subject, fact, tmp_path, capsys):
    assert main(["predict", str(model), "--out", str(tmp_path), *arguments]) == 2
    require_error(capsys.readouterr().err, subject, fact)


def test_no_model_and_no_images(model, tmp_path, capsys):
    assert main(["predict"]) == 2
    require_error(capsys.readouterr().err, "MODEL", "folder")
    assert main(["predict", str(model), str(tmp_path)]) == 2
    require_error(capsys.readouterr().err, tmp_path, ".png")
    assert main(["predict", str(model), str(tmp_path), "--data", "shapes"]) == 2
    require_error(capsys.readouterr().err, "IMAGES", "--data, --submission")


def test_results_never_overwrite_each_other(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(b"1")
        (tmp_path / folder / "x.jpg").write_bytes(b"2")
    found = find_images([tmp_path / "a", tmp_path / "b", tmp_path / "b" / "x.jpg"])
    assert len(found) == 5
    assert len({name for _, name in found}) == 5
    (tmp_path / "empty").mkdir()
    with refuses(tmp_path / "empty", DataError, ".png"):
        find_images([tmp_path / "empty"])


def test_predictor_in_python_with_views(model):
    from cirkd_ray.evaluate.inference import Views

    predictor = Predictor.load(model, device="cpu", views=Views(scales=(0.5, 1.0), flip=True))
    found = predictor.labels(image())
    assert found.dtype == np.uint8
    assert found.shape == (40, 56)
    mirrored = predictor.labels(np.ascontiguousarray(image()[:, ::-1]))[:, ::-1]
    assert (found == mirrored).mean() > 0.99
