"""TIFF and PNG files of more than 8 bits a channel, which PIL cannot write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.helpers.broken_files import chunk

SHORT, LONG, ASCII = 3, 4, 2
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
_SIZES = {ASCII: 1, SHORT: 2, LONG: 4}
_CODES = {ASCII: "B", SHORT: "H", LONG: "I"}


def tiff(
    pixels: np.ndarray[Any, Any],
    kind: int,
    *,
    big_endian: bool = False,
    photometric: int | None = None,
    planes: bool = False,
    deflate: bool = False,
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
) -> bytes:
    """A TIFF of one strip (one a plane) of `pixels` [height, width] or [height, width, channels]; `kind` is its sample
    format."""
    e = ">" if big_endian else "<"
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    laid = np.moveaxis(pixels.reshape(height, width, channels), 2, 0) if planes else pixels
    strips = [np.ascontiguousarray(part) for part in laid] if planes else [np.ascontiguousarray(laid)]
    data = [part.astype(part.dtype.newbyteorder(e)).tobytes() for part in strips]
    data = [zlib.compress(part) for part in data] if deflate else data
    photometric = photometric if photometric is not None else 1 if channels == 1 else 2
    entries: list[tuple[int, int, Sequence[int]]] = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [pixels.dtype.itemsize * 8] * channels),
        (259, SHORT, [8 if deflate else 1]),
        (262, SHORT, [photometric]),
        (273, LONG, [0] * len(data)),
        (277, SHORT, [channels]),
        (278, LONG, [height]),
        (279, LONG, [len(part) for part in data]),
        (284, SHORT, [2 if planes else 1]),
        (339, SHORT, [kind] * channels),
        *([(338, SHORT, [2])] if channels == 4 else []),
        *tags,
    ]
    entries.sort()
    first = 8 + 2 + 12 * len(entries) + 4
    start = first + sum(_long(size) for _, t, v in entries if (size := _SIZES[t] * len(v)) > 4)
    body, beside = b"", b""
    for tag, form, values in entries:
        if tag == 273:
            values = [start + sum(map(len, data[:k])) for k in range(len(data))]
        packed = struct.pack(f"{e}{len(values)}{_CODES[form]}", *values)
        body += struct.pack(f"{e}HHI", tag, form, len(values))
        if len(packed) > 4:
            body += struct.pack(f"{e}I", first + len(beside))
            beside += packed.ljust(_long(len(packed)), b"\0")
        else:
            body += packed.ljust(4, b"\0")
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{e}IH", 8, len(entries))
    return head + body + b"\0\0\0\0" + beside + b"".join(data)


def png16(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG of 16 bits a channel of `pixels` [height, width, 1 to 4]."""
    height, width, channels = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _long(size: int) -> int:
    return size + size % 2
