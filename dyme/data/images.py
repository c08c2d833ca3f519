"""Decoding of picture files. It is strict, because a wrongly decoded picture would only show as poor training."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dyme.data.errors import ImageError

MAX_PIXELS = 64_000_000  # 192 MB in RGB; checked against the header before memory is allocated
_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} megapixels by its header; scale the picture down"


def decode(path: Path) -> Image.Image:
    """The picture in RGB: EXIF orientation applied, transparency on white, 16-bit greys scaled to 8.

    Raises `ImageError` when the file is missing, not a picture, truncated, or larger than `MAX_PIXELS`.
    """
    with _open_file(path) as image:
        return _upright(image, str(path))


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """`decode` for a picture in memory; messages call it `name`."""
    with _open(BytesIO(data), name) as image:
        return _upright(image, name)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures in a row on white, each as high as the highest; a single one as it is."""
    if len(pictures) == 1:
        return pictures[0]
    height = max(p.height for p in pictures)
    scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    gap = max(2, height // 50)
    row = Image.new("RGB", (sum(p.width for p in scaled) + gap * (len(scaled) - 1), height), "white")
    at = 0
    for picture in scaled:
        row.paste(picture, (at, 0))
        at += picture.width + gap
    return row


def check_header(path: Path) -> tuple[int, int]:
    """Width and height from the header alone; raises `ImageError` as `decode` does, except for truncated files."""
    with _open_file(path) as image:
        return image.size


def _open_file(path: Path) -> Image.Image:
    if not path.is_file():
        raise ImageError(f"{path}: no such picture; correct the path or restore the file")
    return _open(path, str(path))


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... for broken files
        raise ImageError(f"{name}: picture is truncated or damaged ({error}); replace the file") from error
    return _to_rgb(upright)


def _open(file: Path | BytesIO, name: str) -> Image.Image:
    try:
        image = Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # PIL's own limit is global state and may be lower than ours.
        raise ImageError(f"{name}: {_TOO_LARGE} ({error})") from error
    except Exception as error:
        raise ImageError(f"{name}: not a readable picture ({error}); replace the file") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{name}: {_TOO_LARGE} ({width} x {height} pixels)")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # PIL clips these to 255 instead of scaling, which turns medical 16-bit scans into white pages.
        grey = np.asarray(image, dtype=np.float64)
        scale = 255.0 / 65535.0 if grey.max(initial=0.0) > 255.0 else 1.0
        return Image.fromarray(np.clip(np.rint(grey * scale), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")
