"""Wide pictures: those of more than 8 bits a channel, signed or of floats, read without the loss that PIL has."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dyme.data.depth import levels

_COLOURS = re.compile(r"(RGB|RGBX|RGBA);16([BLN])")
_WHITE_ALREADY = ("PPM", "JPEG2000")  # PIL scales these to 16 bits by the depth in their header
# tags of TIFF
_BITS, _PHOTOMETRIC, _PLANAR, _FORMAT = 258, 262, 284, 339
_HIGHEST = (341, 281)  # SMaxSampleValue, MaxSampleValue
_NODATA = 42113  # GDAL's
_SIGNED = 2


@dataclass(frozen=True)
class Header:
    """What the file says of its pixels, read before they are decoded. `raw` is PIL's name of their layout, `bits` those
    of a channel, `white` the value that is white, `nodata` the one that stands for no pixel."""

    raw: str
    bits: int
    signed: bool
    planes: bool
    inverted: bool
    white: float | None
    nodata: float | None

    @property
    def colours(self) -> bool:
        """Whether PIL would drop the low byte of each channel."""
        return self.raw == "LA;16B" or bool(_COLOURS.fullmatch(self.raw))


def header(image: Image.Image) -> Header:
    """The header of a picture that was opened and not loaded."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    raw = args if isinstance(args, str) else str(args[0]) if isinstance(args, tuple) and args else ""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = tags.get(_BITS, (0,))
    highest = next((max(_numbers(tags[tag]), default=None) for tag in _HIGHEST if tag in tags), None)
    if 8 < bits[0] < 16:
        highest = 2.0 ** bits[0] - 1
    elif image.format in _WHITE_ALREADY:
        highest = 65535.0
    return Header(
        raw=raw,
        bits=bits[0],
        signed=tags.get(_FORMAT, (1,))[0] == _SIGNED,
        planes=tags.get(_PLANAR, 1) == 2 and len(bits) > 1 and bits[0] > 8,
        inverted=tags.get(_PHOTOMETRIC, 1) == 0,
        white=highest,
        nodata=next(iter(_numbers(tags.get(_NODATA, ()))), None),
    )


def is_wide(image: Image.Image, told: Header) -> bool:
    """Whether one channel of more than 8 bits, or of signed bytes, is to be scaled."""
    return image.mode.startswith("I") or image.mode == "F" or (image.mode == "L" and told.signed and told.bits == 8)


def grey(image: Image.Image, told: Header) -> Image.Image:
    """A decoded picture of one wide channel, in L."""
    values: NDArray[Any] = np.asarray(image)
    missing = None
    if image.mode == "L":
        values = values.view(np.int8)
    elif image.mode == "I" and told.bits == 32 and not told.signed:
        values = values.view(np.uint32)
    elif told.signed and told.bits in (16, 32):
        missing = values == -(2 ** (told.bits - 1))  # what stands outside the circle of a CT scan
    if told.nodata is not None:
        outside = values == told.nodata
        missing = outside if missing is None else missing | outside
    out = levels(values, white=told.white, missing=missing)
    return Image.fromarray(255 - out if told.inverted else out)


def use_low_bytes(image: Any, told: Header) -> None:
    """Makes a picture that is not loaded yet decode the bytes of `told.colours` that PIL otherwise drops."""
    found = _COLOURS.fullmatch(told.raw)
    if found is None:
        raw = "RGBA"  # grey and opacity as four bytes
    else:
        little = found[2] == "L" or (found[2] == "N" and sys.byteorder == "little")
        raw = f"{found[1]};16{'B' if little else 'L'}"
    changed = [(*t[:3], raw if isinstance(t[3], str) else (raw, *t[3][1:])) for t in image.tile]
    image.tile = [
        type(before)(*after) if hasattr(before, "_fields") else after for before, after in zip(image.tile, changed)
    ]


def colours(high: Image.Image, low: Image.Image, told: Header) -> Image.Image:
    """RGB or RGBA of a decoded picture of 16-bit channels and the same one after `use_low_bytes`."""
    upright, other = np.asarray(ImageOps.exif_transpose(high)), np.asarray(ImageOps.exif_transpose(low))
    if told.raw == "LA;16B":
        pairs = other.astype(np.uint16)
        both = pairs[..., ::2] * 256 + pairs[..., 1::2]
        values = both[..., [0, 0, 0, 1]]
    else:
        values = upright.astype(np.uint16) * 256 + other
    shown = levels(values[..., :3], white=told.white)
    if values.shape[-1] == 3:
        return Image.fromarray(shown)
    opaque = 65535.0 if values[..., 3].max() > values[..., :3].max() else None
    return Image.fromarray(np.dstack([shown, levels(values[..., 3], white=opaque)]))


def _numbers(value: object) -> list[float]:
    """The finite numbers in a tag, which may be one, several or text."""
    found = []
    for each in value if isinstance(value, (tuple, list)) else (value,):
        try:
            found.append(float(str(each).strip("\0 ")))
        except ValueError:
            continue
    return [number for number in found if np.isfinite(number)]
