"""The one way to open an image: as a person would see it, and never one that is broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from grace.data.images import MAX_PIXELS, image_size, read_image
from grace.errors import InputError

RGB = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Image.fromarray(RGB)


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(source):
    image = read_image(source, "it")
    assert image.mode == "RGB"
    assert image_size(source, "it") == image.size
    return np.asarray(image)


def test_every_kind_of_source_gives_the_same(tmp_path):
    content = saved(PICTURE)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for source in (content, path, str(path), io.BytesIO(content), PICTURE):
        assert np.array_equal(np.asarray(read_image(source, "it")), RGB)
    for source in (content, path, str(path), io.BytesIO(content), PICTURE):
        assert image_size(source, "it") == (30, 20)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(PICTURE, form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)).convert("RGB"))
    if form == "TIFF":  # PIL turns it when it is read, and keeps the tag until then
        expected = Image.open(io.BytesIO(content)).convert("RGB")
    assert np.array_equal(pixels(content), np.asarray(expected))
    assert (expected.size == (20, 30)) == (orientation >= 5)


def test_broken_exif_data_turn_nothing():
    assert np.array_equal(pixels(saved(PICTURE, exif=b"Exif\0\0MM*\0junk")), RGB)


def test_transparency_is_on_white():
    red = np.zeros((8, 8, 4), np.uint8)
    red[..., 0], red[:4, :, 3], red[4:, :, 3] = 255, 255, 128
    red[0, 0] = 0  # black, and transparent
    found = pixels(saved(Image.fromarray(red)))
    assert found[0, 0].tolist() == [255] * 3
    assert found[1, 0].tolist() == [255, 0, 0]
    assert found[5, 0] == pytest.approx([255, 127, 127], abs=1)


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB", "PA"])
def test_every_kind_of_transparency_is_on_white(mode):
    square = Image.new("LA", (10, 10), (0, 0))
    square.paste((0, 255), (2, 2, 5, 5))
    if mode == "P":
        content = saved(square.convert("RGBA").quantize(), "PNG")
    elif mode in ("LA", "PA"):
        content = square if mode == "LA" else square.convert("RGBA").convert("PA")
    else:  # one value of the image stands for transparent
        grey = Image.new("L", (10, 10), 7)
        grey.paste(0, (2, 2, 5, 5))
        content = saved(grey.convert(mode), transparency=7 if mode == "L" else (7, 7, 7))
    found = pixels(content)
    assert (found[2:5, 2:5] == 0).all()
    assert (found == 0).sum() == 27 and (found == 255).sum() == 273


def test_greys_of_16_bits_keep_their_relations():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        found = pixels(saved(Image.fromarray(ramp), form))
        assert np.array_equal(found, np.stack([expected] * 3, -1))
    dark = pixels(saved(Image.fromarray(ramp // 16)))  # stays dark: its range is that of 16 bits
    assert dark.max() == 16


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, (0, 255)), (0.0, 0.5, (0, 128)), (-3.0, 9.0, (0, 255)), (0.0, 4000.0, (0, 255))],
)
def test_float_greys_are_scaled_by_their_range(low, high, expected):
    values = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    found = pixels(saved(Image.fromarray(values), "TIFF"))
    assert (found.min(), found.max()) == expected
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all()


def test_float_greys_without_a_range():
    values = np.full((4, 4), np.nan, np.float32)
    assert (pixels(saved(Image.fromarray(values), "TIFF")) == 0).all()
    values[0] = 70000
    assert set(np.unique(pixels(saved(Image.fromarray(values), "TIFF")))) == {0, 255}


def test_palettes_and_inks_are_colours():
    palette = PICTURE.quantize(256)
    assert np.array_equal(pixels(saved(palette)), np.asarray(palette.convert("RGB")))
    inks = PICTURE.convert("CMYK")
    found = pixels(saved(inks, "TIFF"))
    assert np.array_equal(found, RGB)
    assert (
        pixels(saved(PICTURE.convert("1"))) == np.asarray(PICTURE.convert("1").convert("RGB"))
    ).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(form):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("lime", "red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (pixels(content) == (0, 255, 0)).all()


BROKEN = {
    "truncated JPEG": saved(PICTURE, "JPEG")[:-40],
    "truncated PNG": saved(PICTURE)[:-400],
    "0 bytes": b"",
    "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
}


@pytest.mark.parametrize("look", [read_image, image_size])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_image_is_refused_by_name(look, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other libraries do
    with pytest.raises(InputError, match=r"record '7' cannot be read \(.+\); mend it"):
        look(BROKEN[kind], "record '7'", "mend it")
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(InputError, match="No such file"):
        look(tmp_path / "missing.png", "it")


@pytest.mark.parametrize("look", [read_image, image_size])
def test_decompression_bombs_are_refused(look, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries do
    side = int(MAX_PIXELS**0.5) + 1
    content = bytearray(saved(PICTURE))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(InputError, match=f"{side}×{side} pixels are more than"):
        look(bytes(content), "it")
