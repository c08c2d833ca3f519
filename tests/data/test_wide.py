"""Pictures of more than 8 bits, signed ones and floats: scaled by the rule of docs/data.md, and none is black."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from dyme.data import ImageError
from dyme.data.depth import DIM, levels
from dyme.data.images import MAX_SHOWN, decode_bytes, side_by_side
from tests.helpers.wide_files import ASCII, FLOAT, SHORT, SIGNED, UNSIGNED, png16, tiff


def grey(data: bytes) -> list[int]:
    picture = np.asarray(decode_bytes(data, "x"))
    assert (picture[..., :1] == picture).all()
    return picture[0, :, 0].tolist()


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    ("values", "dtype", "kind", "shown"),
    [
        ([0, 257, 32896, 65535], "u2", UNSIGNED, [0, 1, 128, 255]),
        ([0, 256, 2048, 4095], "u2", UNSIGNED, [0, 16, 128, 255]),  # 12 bits
        ([0, 512, 1023], "u2", UNSIGNED, [0, 128, 255]),
        ([0, 128, 256], "u2", UNSIGNED, [0, 64, 128]),
        ([0, 100, 200], "u2", UNSIGNED, [0, 100, 200]),  # 8 bits
        ([0, 1, 2], "u2", UNSIGNED, [0, 128, 255]),  # a mask
        ([-1024, 0, 3071], "i2", SIGNED, [0, 64, 255]),  # Hounsfield units
        ([-32768, -1024, 0, 3071], "i2", SIGNED, [0, 0, 64, 255]),  # with the filling of a CT scan
        ([0, 2048, 4095], "i2", SIGNED, [0, 128, 255]),
        ([-(2**31), -50, 50], "i4", SIGNED, [0, 0, 255]),
        ([0, 70000, 131071], "i4", SIGNED, [0, 136, 255]),
        ([-128, 0, 127], "i1", SIGNED, [0, 128, 255]),
        ([0, 0.25, 0.5, 1], "f4", FLOAT, [0, 64, 128, 255]),
        ([0, np.nan, np.inf, 1], "f4", FLOAT, [0, 0, 0, 255]),
        ([0.25, 0.25], "f4", FLOAT, [64, 64]),
        ([0, 0.5, 1.02], "f4", FLOAT, [0, 125, 255]),
        ([-1, 0, 1], "f4", FLOAT, [0, 128, 255]),
        ([100, 300], "f4", FLOAT, [0, 255]),
        ([0, 0.005, 0.01], "f4", FLOAT, [0, 128, 255]),
        ([700, 700], "f4", FLOAT, [255, 255]),
        ([0, 0], "f4", FLOAT, [0, 0]),
    ],
)
def test_grey_of_every_type(values, dtype, kind, shown, big_endian):
    assert grey(tiff(np.array([values], dtype), kind, big_endian=big_endian)) == shown


@pytest.mark.parametrize("values", [[np.nan, np.inf], [np.nan, np.nan]])
def test_a_picture_without_any_value_is_bad(values):
    with pytest.raises(ImageError, match="none of its pixels has a value"):
        decode_bytes(tiff(np.array([values], "f4"), FLOAT), "x")


@pytest.mark.parametrize(("dtype", "hot"), [("u2", 65535), ("i4", 2**30), ("f4", 1e30)])
def test_a_hot_pixel_leaves_the_others_visible(dtype, hot):
    values = np.arange(300, 2300, dtype=dtype).reshape(40, 50)
    values[3, 7] = hot
    shown = levels(values)
    assert shown[3, 7] == 255 and np.median(shown) > 100
    lines = np.zeros((100, 100), dtype)  # few bright pixels on black are no outliers
    lines[5, 5], lines[6, 6] = hot, hot / 2
    shown = levels(lines)
    assert 60 < shown[6, 6] < 136 and np.count_nonzero(shown) == 2


def test_unsigned_numbers_of_32_bits():
    assert grey(tiff(np.array([[0, 5, 4_000_000_000]], "u4"), UNSIGNED)) == [0, 0, 237]


def test_what_the_file_says_of_white():
    values = np.array([[0, 500, 1000]], "u2")
    assert grey(tiff(values, UNSIGNED, tags=[(281, SHORT, [1000])])) == [0, 128, 255]
    assert grey(tiff(values, UNSIGNED, tags=[(281, SHORT, [2000])])) == [0, 64, 128]
    assert grey(tiff(values, UNSIGNED, tags=[(281, SHORT, [100])])) == [0, 125, 249]  # wrong, so the bits in use decide
    assert grey(tiff(values, UNSIGNED, tags=[(281, SHORT, [65535])])) == [0, 128, 255]  # true, and would be black
    assert grey(tiff(values, UNSIGNED, photometric=0)) == [255, 130, 6]  # white is zero
    hole = np.array([[-9999, 0, 0.5, 1]], "f4")
    assert grey(tiff(hole, FLOAT, tags=[(42113, ASCII, b"-9999\0")])) == [0, 0, 128, 255]
    assert grey(b"P5 3 1 4095\n" + struct.pack(">HHH", 0, 1000, 2047)) == [0, 62, 127]
    assert grey(b"Pf\n2 1\n-1.0\n" + struct.pack("<ff", 0.25, 1)) == [64, 255]


@pytest.mark.parametrize("make", ["png", "little", "big", "deflated"])
@pytest.mark.parametrize("top", [4095, 65535])
def test_colours_keep_their_low_byte(make, top):
    pixels = np.array([[[0, top // 4, top], [top // 2, 257, 5]]], "u2")
    data = (
        png16(pixels) if make == "png" else tiff(pixels, UNSIGNED, big_endian=make == "big", deflate=make == "deflated")
    )
    expected = np.rint(pixels * (255 / top)).astype(int)
    assert np.asarray(decode_bytes(data, "x")).tolist() == expected.tolist()


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("opaque", [4095, 65535])
def test_opacity_of_16_bits(channels, opaque):
    pixels = np.full((1, 2, channels), 2048, "u2")
    pixels[0, 0, 0] = 4095
    pixels[..., -1] = [opaque, 0]
    shown = np.asarray(decode_bytes(png16(pixels), "x"))[0].tolist()
    assert shown[0][0] == 255 and shown[0][1] in (128, 255) and shown[1] == [255, 255, 255]


def test_what_cannot_be_read_says_how_to_save_it():
    rgb = np.ones((2, 2, 3))
    for data in (
        tiff(rgb.astype("f4"), FLOAT),
        tiff(np.ones((2, 2), "f8"), FLOAT),
        tiff(np.ones((2, 2, 5), "u1"), UNSIGNED),
    ):
        with pytest.raises(ImageError, match=r"x: .*TIFF of channels or types .*save it as grey or RGB"):
            decode_bytes(data, "x")
    with pytest.raises(ImageError, match="in planes; save it with interleaved"):
        decode_bytes(tiff(rgb.astype("u2"), UNSIGNED, planes=True), "x")


def test_no_picture_is_black_that_is_not():
    numbers = np.random.default_rng(0)
    for dtype in ("u2", "i2", "i4", "u4", "f4"):
        for size in (1e-6, 1e-3, 0.3, 1, 3, 20, 300, 5000, 60000):
            values = (numbers.random((9, 9)) * size).astype(dtype)
            shown = levels(values)
            assert shown.max() >= DIM or not values.any()
            order = np.argsort(values, axis=None)
            assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()  # darker never becomes lighter


@pytest.mark.parametrize("sizes", [[(3000, 1), (1, 3000)], [(1, 3000)] * 40 + [(60000, 2)], [(50000, 1), (60000, 1)]])
def test_pictures_side_by_side_stay_small(sizes):
    row = side_by_side([Image.new("RGB", size) for size in sizes])
    assert row.width * row.height <= 1.1 * MAX_SHOWN


def test_postscript_is_not_opened(tmp_path):
    with pytest.raises(ImageError, match="PostScript"):
        decode_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "x.png")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<svg/>", "SVG"),
        (b"\n<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"P6 0 4 255\n", "x: "),
    ],
)
def test_what_a_file_is_instead(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode_bytes(data, "x")
