"""Decoding of picture files. It is strict, because a wrongly decoded picture would only show as poor training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from dyme.data.errors import ImageError
from dyme.data.wide import Header, colours, grey, header, is_wide, use_low_bytes

MAX_PIXELS = 64_000_000  # 192 MB in RGB; checked against the header before memory is allocated
MAX_SHOWN = 16_000_000
"""Pixels of several pictures side by side."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is opened, by content: PIL's other formats start programs (PostScript), are guessed, or hold no pixels."""
_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} megapixels by its header; scale the picture down"
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the picture with git lfs pull"),
    (b"<", "a page or drawing (HTML, XML, SVG); download the picture itself or draw it as PNG"),
    (b"%!", "PostScript; save it as PNG"),
    (b"%PDF", "a PDF; save its page as PNG"),
    (b"8BPS", "a Photoshop file; save it as PNG"),
    (b"II*\0", "a TIFF of channels or types that are not read; save it as grey or RGB of 8 or 16 bits"),
    (b"MM\0*", "a TIFF of channels or types that are not read; save it as grey or RGB of 8 or 16 bits"),
    (b"II+\0", "a BigTIFF of channels or types that are not read; save it as grey or RGB of 8 or 16 bits"),
    (b"MM\0+", "a BigTIFF of channels or types that are not read; save it as grey or RGB of 8 or 16 bits"),
    (b"\x93NUMPY", "an array of NumPy; save it as PNG"),
    (b"\x1f\x8b", "compressed by gzip; unpack it, and save a volume (NIfTI) as PNG, one a slice"),
)


def decode(path: Path) -> Image.Image:
    """The picture in RGB: EXIF orientation applied, transparency on white, wide pixels scaled to 8 bits.

    Raises `ImageError` when the file is missing, not a picture, truncated, or larger than `MAX_PIXELS`.
    """
    return _decode(path, str(path))


def decode_bytes(data: bytes, name: str) -> Image.Image:
    """`decode` for a picture in memory; messages call it `name`."""
    return _decode(data, name)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures in a row on white, each as high as the highest; a single one as it is.

    A row of more than `MAX_SHOWN` pixels, as of a very wide and a very high picture, is made lower.
    """
    if len(pictures) == 1:
        return pictures[0]
    aspect = sum(p.width / p.height for p in pictures)
    height = min(max(p.height for p in pictures), max(1, math.isqrt(int(MAX_SHOWN / aspect))))
    narrower = min(1.0, MAX_SHOWN / (aspect * height * height))  # where one line of pixels is too many already
    scaled = [p.resize((max(1, round(p.width * height / p.height * narrower)), height)) for p in pictures]
    gap = max(2, height // 50)
    row = Image.new("RGB", (sum(p.width for p in scaled) + gap * (len(scaled) - 1), height), "white")
    at = 0
    for picture in scaled:
        row.paste(picture, (at, 0))
        at += picture.width + gap
    return row


def check_header(path: Path) -> tuple[int, int]:
    """Width and height from the header alone; raises `ImageError` as `decode` does, except for truncated files."""
    with _open(path, str(path)) as image:
        return image.size


def check_header_bytes(data: bytes, name: str) -> tuple[int, int]:
    """`check_header` for a picture in memory; messages call it `name`."""
    with _open(data, name) as image:
        return image.size


def _decode(file: Path | bytes, name: str) -> Image.Image:
    with _open(file, name) as image:
        try:
            told = header(image)
            if told.planes:
                raise ImageError(f"{name}: a TIFF of 16-bit channels in planes; save it with interleaved channels")
            image.load()
            if not told.colours:
                return _to_rgb(ImageOps.exif_transpose(image), told)
            with _open(file, name) as twin:
                use_low_bytes(twin, told)
                twin.load()
                return _to_rgb(colours(image, twin, told), told)
        except ImageError:
            raise
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ... for broken files
            raise ImageError(f"{name}: picture is truncated or damaged ({error}); replace the file") from error


def _open(file: Path | bytes, name: str) -> Image.Image:
    try:
        if isinstance(file, Path) and not file.is_file():
            raise ImageError(f"{name}: no such picture; correct the path or restore the file")
        image = Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=_formats())
        # PIL would map uncompressed files: wrong for a turned TIFF, and the end of the process where the file is cut
        image.filename = ""
        width, height = image.size
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # PIL's own limit is global state and may be lower than ours.
        raise ImageError(f"{name}: {_TOO_LARGE} ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a readable picture: {_foreign(file)}") from error
    except Exception as error:
        raise ImageError(f"{name}: not a readable picture ({error}); replace the file") from error
    if not width * height:
        image.close()
        raise ImageError(f"{name}: a picture without pixels ({width} x {height}); replace the file")
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{name}: {_TOO_LARGE} ({width} x {height} pixels)")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """`FORMATS` as far as this PIL has them."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _foreign(file: Path | bytes) -> str:
    """What a file that is no picture is instead, and the mend."""
    try:
        with BytesIO(file) if isinstance(file, bytes) else file.open("rb") as opened:
            head = opened.read(256)
    except OSError:
        head = b""
    if head[128:132] == b"DICM":
        return "DICOM; save it as PNG, with the window that a reader would set"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "HEIC; save it as JPEG"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = next((what for magic, what in _FOREIGN if start.startswith(magic)), "")
    if found:
        return found
    return ("empty" if not head else "unknown content") + f"; write one of {', '.join(FORMATS)}"


def _to_rgb(image: Image.Image, told: Header) -> Image.Image:
    if is_wide(image, told):
        # PIL clips these to 255 instead of scaling, which turns medical 16-bit scans into white pages.
        return grey(image, told).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")
