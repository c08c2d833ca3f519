"""Decoding: every mode comes out as RGB, every broken file as an ImageError that names it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFile

from dyme.data import ImageError, LazyImage
from dyme.data.images import MAX_PIXELS, check_header, decode
from tests.helpers.broken_files import bomb


def test_palette_and_grey_become_rgb(tmp_path):
    for mode in ("P", "L", "1", "CMYK"):
        path = tmp_path / (f"{mode}.tif" if mode == "CMYK" else f"{mode}.png")
        Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
        image = decode(path)
        assert image.mode == "RGB" and image.size == (5, 4) and image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(tmp_path, mode):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)


def test_transparent_palette_entry_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    image.save(tmp_path / "a.png", transparency=0)
    assert decode(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_is_blended(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "a.png")
    red, green, blue = decode(tmp_path / "a.png").getpixel((0, 0))
    assert red == 255 and green == blue and 126 <= green <= 128


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, name):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / name)
    assert np.asarray(decode(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (6, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    image.save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").size == (4, 6)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB"])
def test_a_turned_tiff_is_not_garbled(tmp_path, mode):
    values = np.zeros((30, 40), np.uint16)
    values[:10, :20] = 255
    picture = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "a.tif", exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / "a.tif"))[..., 0], np.rot90(values, -1))


def test_a_file_that_is_cut_while_it_is_read(tmp_path, monkeypatch):
    # a mapped file would end the process by SIGBUS
    path = tmp_path / "a.bmp"
    Image.new("L", (400, 300)).save(path)
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (path.write_bytes(b""), load(image))[1])
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_file_names_file_and_mend(tmp_path, name):
    path = tmp_path / name
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert check_header(path) == (64, 64)
    with pytest.raises(ImageError, match=f"{name}: picture is truncated or damaged .*replace the file"):
        LazyImage(path=path).load()


@pytest.mark.parametrize(("width", "height"), [(60_000, 50_000), (8_001, 8_000)])
def test_bomb_is_refused_by_its_header(tmp_path, monkeypatch, width, height):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**12 if width < 10_000 else 10**8)  # PIL's limit must not matter
    path = bomb(tmp_path / "bomb.png", width, height)
    with pytest.raises(ImageError, match=r"bomb.png: more than 64 megapixels by its header; scale the picture down"):
        decode(path)
    assert width * height > MAX_PIXELS and path.stat().st_size < 100


def test_missing_and_foreign_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    for name, reason in (("a.png", "not a readable picture"), ("b.png", "no such picture")):
        with pytest.raises(ImageError, match=reason):
            decode(tmp_path / name)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError) as error:
        check_header(tmp_path / "empty.png")
    assert "empty.png" in str(error.value)
