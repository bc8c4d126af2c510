"""Images and labels are read whole and right, or not at all."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cirkd_ray.data.codec import EXTENSIONS, BeyondRange, decode_image, opencv_decode, read_image
from cirkd_ray.data.header import has_more_bits, read_header, upright
from cirkd_ray.data.masks import ColourLabels, decode_label, decode_mask
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_orientation_tag_is_not_applied_but_read(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif}
    options |= {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(picture()), kind, **options)
    plain = encode(Image.fromarray(picture()), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_image(data, "x"), decode_image(plain, "x"))
    header = read_header(data)
    assert header is not None
    assert header[:3] == ((40, 60), "RGB", orientation)
    assert header.upright_size == ((40, 60) if orientation < 5 else (60, 40))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_turns_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(encode(Image.fromarray(picture()), "PNG", exif=exif))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(upright(picture(), orientation), expected)


def coded(image: np.ndarray, suffix: str) -> bytes:
    """RGB, RGBA or gray, encoded by OpenCV."""
    bgr = image if image.ndim == 2 else image[..., [2, 1, 0, *range(3, image.shape[2])]]
    return bytes(cv2.imencode(suffix, bgr)[1].tobytes())


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_sixteen_bits_keep_the_range_that_they_use(suffix: str, bits: int, top: int) -> None:
    wide = np.rint(picture() * (top / 255)).astype(np.uint16)
    wide[0, 0, 0] = top
    expected = np.rint(wide * (255 / top)).astype(np.uint8)
    pixels, changes, highest = read_image(coded(wide, suffix), "x")
    assert highest == top
    np.testing.assert_array_equal(pixels, expected)
    assert changes == (f"16-bit values, scaled from 0..{top}",)
    np.testing.assert_array_equal(decode_image(coded(wide[..., 0], suffix), "x")[..., 2], expected[..., 0])


def test_a_declared_range_counts_and_what_it_clips_is_said() -> None:
    wide = picture().astype(np.uint16) * 16
    pixels, changes, _ = read_image(coded(wide, ".png"), "x", (0, 4095))
    assert changes == ()
    np.testing.assert_array_equal(pixels, np.rint(wide * (255 / 4095)).astype(np.uint8))
    pixels, changes, _ = read_image(coded(wide, ".png"), "x", (100, 2000))
    assert "clipped" in changes[0]
    np.testing.assert_array_equal(
        pixels, np.rint((wide.clip(100, 2000) - 100.0) * (255 / 1900)).astype(np.uint8)
    )
    signed = (picture()[..., 0].astype(np.int16) - 100).astype(np.int16)
    np.testing.assert_array_equal(
        decode_image(coded(signed, ".tiff"), "x", (-100, 155))[..., 0], picture()[..., 0]
    )


def test_what_a_measured_range_leaves_out_is_refused_and_not_clipped() -> None:
    wide = coded(picture().astype(np.uint16) * 16, ".png")
    assert read_image(wide, "x", (0, 4095), measured=True).changes == ()
    with pytest.raises(BeyondRange, match=r"x\.png: .*beyond 0\.\.1023 .*`range: \[0, 4095\]`") as error:
        read_image(wide, "x.png", (0, 1023), measured=True)
    assert error.value.top == (picture().astype(int) * 16).max()
    with pytest.raises(BeyondRange, match=r"other images of the set have 8 bits; write `range: \[0, 4095\]`"):
        read_image(wide, "x.png", None, measured=True)
    plain = encode(Image.fromarray(picture()))
    np.testing.assert_array_equal(read_image(plain, "x", (0, 4095), measured=True).pixels, picture())


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".pgm", ".bmp", ".jpg", ".webp"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_more_than_8_bits_are_told_from_the_header(suffix: str, kind: type, tmp_path: Path) -> None:
    image = (picture()[..., 0] if suffix == ".pgm" else picture()).astype(kind)
    content = coded(image, suffix)  # other formats than TIFF hold floats, and some 16 bits, as 8 bits
    wide = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED).dtype != np.uint8
    (tmp_path / "x").write_bytes(content)
    assert has_more_bits(content) == has_more_bits(tmp_path / "x") == wide
    assert has_more_bits(b"no image")  # OpenCV may know it


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_are_scaled_and_what_has_no_known_range_is_refused(top: float) -> None:
    values = (picture() * (top / 255)).astype(np.float32)
    pixels, changes, _ = read_image(coded(values, ".tiff"), "x")
    np.testing.assert_array_equal(pixels, picture())
    assert len(changes) == 1
    values[0, 0] = -3
    with pytest.raises(DataError, match=r"x\.tif: .*`range: \["):
        decode_image(coded(values, ".tiff"), "x.tif")
    values[0, 0] = np.nan
    with pytest.raises(DataError, match=r"x\.tif: .*not finite"):
        decode_image(coded(values, ".tiff"), "x.tif", (0, 1))
    signed = coded((picture()[..., 0].astype(np.int16) - 100).astype(np.int16), ".tiff")
    with pytest.raises(DataError, match=r"x\.tif: .*-99 to .*`range: \["):
        decode_image(signed, "x.tif")


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_a_fourth_band_is_dropped_and_multiplies_nothing(kind: str) -> None:
    bands = np.dstack([picture(), picture(seed=5)[..., 0]])
    bands[0, 0, 3] = 255
    image = Image.fromarray(bands)
    data = encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    pixels, changes, _ = read_image(data, "x")
    np.testing.assert_array_equal(pixels, picture())
    assert "fourth band" in changes[0]
    bands[..., 3] = 255
    assert read_image(encode(Image.fromarray(bands), kind), "x").changes == ()
    wide = np.dstack([picture(), picture(seed=5)[..., 0]]).astype(np.uint16) * 257
    np.testing.assert_array_equal(decode_image(coded(wide, ".tiff"), "x"), picture())


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "P"), ("PNG", "L"), ("PNG", "RGB"), ("GIF", "P"), ("GIF", "L")]
)
def test_a_transparent_colour_is_left_out_as_a_fourth_band_is(kind: str, mode: str) -> None:
    image = Image.fromarray(picture()).convert(mode)
    key = picture()[3, 3].tolist() if mode == "RGB" else int(np.asarray(image)[3, 3])
    expected = np.asarray(image.convert("RGB"))
    for seen in (True, False):
        absent = (1, 2, 3) if mode == "RGB" else 255
        assert seen or not (np.asarray(image) == absent).all(-1 if mode == "RGB" else 0).any()
        transparent = {"transparency": tuple(key) if mode == "RGB" else key} if seen else {}
        pixels, changes, _ = read_image(encode(image, kind, **transparent), "x")
        np.testing.assert_array_equal(pixels, expected)
        assert ["fourth band (transparency)" in text for text in changes] == [True] * seen


def test_a_transparent_value_of_a_gray_png_of_any_depth_is_said() -> None:
    for image, value in ((Image.fromarray(indices(3, 9, 9) % 4), 2), (Image.fromarray(wide_gray()), 4095)):
        found = read_image(encode(image, "PNG", transparency=value), "x")
        assert any("fourth band" in text for text in found.changes)
        without = read_image(encode(image, "PNG", transparency=4094), "x")
        assert not any("fourth band" in text for text in without.changes)
        np.testing.assert_array_equal(found.pixels, without.pixels)


def wide_gray() -> np.ndarray:
    wide = picture()[..., 0].astype(np.uint16) * 16
    wide[0, 0] = 4095
    return wide


def test_several_pictures_in_a_gif_are_refused() -> None:
    image = Image.fromarray(picture()).convert("P")
    moving = encode(image, "GIF", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])
    with refuses("x.gif", DataError, "2 pictures", "PNG"):
        read_image(moving, "x.gif")
    whole = encode(image, "GIF")
    with refuses("x.gif", DataError, "truncated"):
        read_image(whole[: len(whole) // 2], "x.gif")


@pytest.mark.parametrize("suffix", sorted(EXTENSIONS))
def test_every_extension_that_is_taken_for_an_image_is_read(suffix: str) -> None:
    kind = Image.registered_extensions()[suffix]
    mode = {".gif": "P", ".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    image = Image.fromarray(picture()).convert(mode)
    pixels = decode_image(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})), "x")
    expected = np.asarray(image.convert("RGB"))
    if kind == "JPEG":
        assert np.abs(pixels.astype(int) - expected).mean() < 8
    else:
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_tiff_labels_are_read_as_stored(mode: str) -> None:
    label = indices(1 if mode == "1" else 20)
    if mode == "1":
        label %= 2
    image = Image.fromarray(label.astype(np.uint16)) if mode == "I;16" else Image.fromarray(label)
    if mode == "P":
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    if mode == "1":
        image = Image.fromarray(label * 255).convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(decode_label(encode(image, "TIFF", tiffinfo={0x0112: 6}), "x"), label)
    with pytest.raises(DataError, match=r"x\.tif: a JPEG-compressed TIFF"):
        decode_label(encode(Image.fromarray(picture()), "TIFF", compression="jpeg"), "x.tif")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_of_colours_are_given_as_colours(kind: str, mode: str) -> None:
    data = encode(Image.fromarray(picture()).convert(mode), kind)
    np.testing.assert_array_equal(decode_mask(data, "x"), picture())
    with pytest.raises(ColourLabels, match=r"x\.png: holds RGB values"):
        decode_label(data, "x.png")


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
    for kind in ("JPEG", "WEBP", "GIF", "BMP"):
        with refuses("mask.png", DataError, "WebP" if kind == "WEBP" else kind, "PNG"):
            decode_label(encode(Image.fromarray(picture()), kind), "mask.png")


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


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_tiff_labels_of_few_bits_keep_their_numbers(bits: int) -> None:
    label = np.random.default_rng(4).integers(0, 2**bits, (6, 8), dtype=np.uint8)
    spread = ((label[..., None] >> np.arange(bits - 1, -1, -1)) & 1).reshape(len(label), -1)
    rows = np.packbits(spread.astype(np.uint8), axis=1).tobytes()
    tags = [
        (256, 8),
        (257, 6),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 6),
        (279, len(rows)),
    ]
    where = 8 + len(rows)
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    tiff = struct.pack("<2sHI", b"II", 42, where) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(decode_label(tiff, "x"), label)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_of_masks_is_not_lost_in_silence(kind: str) -> None:
    mask = np.dstack([picture(), np.full(picture().shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_mask(encode(Image.fromarray(mask), kind), "x"), picture())
    mask[0, 0, 3] = 0
    with refuses("mask", DataError, "transparent", "ignore"):
        decode_mask(encode(Image.fromarray(mask), kind), "mask")
