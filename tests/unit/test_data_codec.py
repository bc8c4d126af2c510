"""Images and labels are read whole and right, or not at all."""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cirkd_ray.data.codec import decode_image, decode_label, opencv_decode
from cirkd_ray.errors import DataError
from tests.errors import refuses


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height))


def indices(top: int = 20, height: int = 40, width: int = 60) -> np.ndarray:
    label = np.random.default_rng(1).integers(0, top + 1, (height, width), dtype=np.uint8)
    label[:3] = 255 if top < 255 else 0
    return label


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_colours_come_as_rgb() -> None:
    red = Image.new("RGB", (5, 4), (250, 20, 10))
    assert decode_image(encode(red), "x")[0, 0].tolist() == [250, 20, 10]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "LA"])
def test_every_kind_of_picture_becomes_rgb_bytes(mode: str) -> None:
    if mode == "I;16":
        wide = picture()[..., 0].astype(np.uint16) * 257
        data, expected = encode(Image.fromarray(wide)), np.repeat(picture()[..., :1], 3, axis=2)
    else:
        image = Image.fromarray(picture()).convert(mode)
        data, expected = (
            encode(image),
            np.asarray(image.convert("RGBA" if mode == "RGBA" else "RGB"))[..., :3],
        )
    decoded = decode_image(data, "x")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


def test_jpeg_under_a_png_name_and_webp_are_told_by_content() -> None:
    for kind in ("JPEG", "WEBP"):
        decoded = decode_image(encode(Image.fromarray(picture()), kind, quality=95), "x.png")
        assert np.abs(decoded.astype(int) - picture()).mean() < 6


def test_an_orientation_tag_turns_the_pixels_only_where_asked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(picture()), "JPEG", exif=exif)
    stored = decode_image(data, "x")
    assert stored.shape == (40, 60, 3)
    np.testing.assert_array_equal(decode_image(data, "x", upright=True), np.rot90(stored, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.995])
def test_a_truncated_picture_is_an_error(kind: str, share: float) -> None:
    data = encode(Image.fromarray(picture(200, 300)), kind)
    with refuses("street.jpg", DataError):
        decode_image(data[: int(len(data) * share)], "street.jpg")


def test_bytes_after_the_end_are_no_damage() -> None:
    data = encode(Image.fromarray(picture()), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"\0\0camera notes", "x"), decode_image(data, "x"))


def test_text_is_not_an_image() -> None:
    for data in (b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with refuses("page.png", DataError):
            decode_image(data, "page.png")


@pytest.mark.parametrize("mode", ["L", "P"])
def test_gray_and_palette_labels_are_the_same_indices(mode: str) -> None:
    label = indices()
    image = Image.fromarray(label)
    if mode == "P":
        image = image.copy()
        image.putpalette(np.random.default_rng(2).integers(0, 256, 768, dtype=np.uint8).tobytes())
    data = encode(image)
    assert Image.open(io.BytesIO(data)).mode == mode
    np.testing.assert_array_equal(decode_label(data, "x"), label)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("palette", [False, True])
def test_labels_of_few_bits_keep_their_numbers(bits: int, palette: bool) -> None:
    label = np.random.default_rng(3).integers(0, 2**bits, (9, 13), dtype=np.uint8)
    np.testing.assert_array_equal(decode_label(few_bits(label, bits, palette), "x"), label)


def few_bits(label: np.ndarray, bits: int, palette: bool) -> bytes:
    """A PNG of 1, 2 or 4 bits a pixel, put together by hand: common libraries write only some of these."""
    import struct

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    spread = ((label[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(len(label), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(spread.astype(np.uint8), axis=1))
    header = struct.pack(">IIBBBBB", label.shape[1], label.shape[0], bits, 3 if palette else 0, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(range(100, 100 + 3 * 2**bits))) if palette else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header) + colours + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip


def test_sixteen_bits_are_read_where_they_fit() -> None:
    label = indices().astype(np.uint16)
    np.testing.assert_array_equal(decode_label(encode(Image.fromarray(label)), "x"), label)
    label[5, 5] = 700
    with refuses("mask.png", DataError, "16-bit", 700, 255):
        decode_label(encode(Image.fromarray(label)), "mask.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_pictures_are_no_labels(mode: str) -> None:
    with refuses("mask.png", DataError, "gray", "palette"):
        decode_label(encode(Image.fromarray(picture()).convert(mode)), "mask.png")
    with refuses("mask.jpg", DataError, "PNG"):
        decode_label(encode(Image.fromarray(picture()), "JPEG"), "mask.jpg")


@pytest.mark.parametrize("mode", ["L", "P"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_label_is_an_error(mode: str, share: float) -> None:
    image = Image.fromarray(indices(200, 300, 300))
    if mode == "P":
        image = image.copy()
        image.putpalette(bytes(range(256)) * 3)
    data = encode(image)
    with refuses("mask.png", DataError):
        decode_label(data[: int(len(data) * share)], "mask.png")


@pytest.mark.parametrize("mode", ["L", "P", "few bits"])
def test_a_label_with_one_wrong_byte_is_an_error(mode: str) -> None:
    """Rows of one value, as labels have them: most changes still decode, to other classes."""
    label = np.repeat(np.arange(40, dtype=np.uint8) % 4, 60).reshape(40, 60)
    image = Image.fromarray(label)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    data = few_bits(label, 2, palette=False) if mode == "few bits" else encode(image)
    for place in range(8, len(data)):
        changed = bytearray(data)
        changed[place] ^= 4
        with refuses("mask.png", DataError):
            decode_label(bytes(changed), "mask.png")
    np.testing.assert_array_equal(decode_label(data + b"bytes after the end", "x"), label)


def impossible_size(kind: str) -> bytes:
    """A sound small image whose header claims 65500 x 65500 pixels."""
    data = bytearray(encode(Image.fromarray(picture()), kind))
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = (65500).to_bytes(2, "big") * 2
        return bytes(data)
    data[16:24] = (65500).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rows", [1, 39])
def test_a_label_with_fewer_rows_than_it_says_is_an_error(bits: int, rows: int) -> None:
    label = np.random.default_rng(3).integers(0, 2**bits, (40, 13), dtype=np.uint8)
    whole = few_bits(label, bits, palette=True)
    cut = few_bits(label[:rows], bits, palette=True)
    height = len(label).to_bytes(4, "big")
    header = b"IHDR" + cut[16:20] + height + cut[24:29]
    forged = cut[:12] + header + zlib.crc32(header).to_bytes(4, "big") + cut[33:]
    np.testing.assert_array_equal(decode_label(whole, "x"), label)
    with refuses("mask.png", DataError, "truncated"):
        decode_label(forged, "mask.png")


def test_sizes_that_cannot_be_are_errors_that_name_the_file() -> None:
    for kind in ("JPEG", "PNG"):
        with refuses("street.jpg", DataError, "larger", "OpenCV"):
            decode_image(impossible_size(kind), "street.jpg")
    for mode in ("L", "P"):
        data = bytearray(impossible_size("PNG"))
        data[24:26] = (8, 0 if mode == "L" else 3)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with refuses("mask.png", DataError, "larger"):
            decode_label(bytes(data), "mask.png")
    with refuses("x.png", DataError, "larger"):
        opencv_decode(impossible_size("PNG"), cv2.IMREAD_UNCHANGED, "x.png")


def test_pillows_guard_against_large_images_refuses_no_sound_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image, photo = Image.fromarray(indices()), encode(Image.fromarray(picture()), "JPEG")
    image.putpalette(bytes(range(256)) * 3)
    data = encode(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(decode_label(data, "x"), indices())
    assert decode_image(photo, "x").shape == (40, 60, 3)
    with refuses("x.jpg", DataError, "end", "too large"):
        decode_image(photo[:-20], "x.jpg")
