"""Pictures that lie in a row itself, as a data URI, as base64 or as bytes, instead of in a file that it names."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image

from dyme.data.errors import ImageError
from dyme.data.images import check_header_bytes, decode_bytes
from dyme.data.record import LazyImage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,20}):(//)?")
_DATA_URI = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
# how base64 of PNG, JPEG, GIF, WebP, BMP, TIFF and JPEG 2000 starts
_BARE_BASE64 = re.compile(r"\s*(iVBORw0KGg|/9j/|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK|AAAADGpQ)[A-Za-z0-9+/=\s_-]{50}")
_LONGEST_PATH = 4096
_BLANKS = re.compile(rb"\s+")


@dataclass(frozen=True)
class HeldPicture:
    """A picture whose file is held in memory as it is, undecoded. Messages call it `name`."""

    data: bytes
    name: str

    def __call__(self) -> Image.Image:
        """The picture in RGB. Raises `ImageError`."""
        return decode_bytes(self.data, self.name)

    def __repr__(self) -> str:
        return f"HeldPicture({len(self.data)} bytes, {self.name!r})"


@dataclass(frozen=True)
class PictureInFile:
    """A picture that is a stretch of text in a file: `length` bytes from `start`, a data URI or base64."""

    file: Path
    start: int
    length: int
    name: str

    def __call__(self) -> Image.Image:
        """The picture in RGB. Raises `ImageError`, also where the file has changed."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                text = file.read(self.length).decode("ascii")
        except (OSError, ValueError) as error:
            raise ImageError(f"{self.name}: cannot be read again ({error}); restore {self.file}") from error
        return decode_bytes(_decoded(text, self.name), self.name)


def picture_or_path(value: object, folder: Path, name: str) -> LazyImage | Path:
    """What a cell of a row holds: a picture, or the path of one, which starts at `folder` if it is relative.

    `value`: a path, a `file://` address, a data URI or base64 as text; the bytes of a picture file; or a mapping with
    one of these under `bytes`, `path` or `url`. `name` is how messages call the cell. Raises `ImageError`; the header
    of a picture in the row is checked here, a file is not opened.
    """
    if isinstance(value, dict):
        held = [value[key] for key in ("bytes", "path", "url") if value.get(key) not in (None, "", b"")]
        if not held:
            raise ImageError(f"{name}: holds none of bytes, path and url; write one of them")
        return picture_or_path(held[0], folder, name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    elif not isinstance(value, str):
        raise ImageError(
            f"{name}: is a {type(value).__name__}; write a path, a data URI or the bytes of a picture file"
        )
    elif not is_embedded(value):
        return _path(value.strip(), folder, name)
    else:
        data = _decoded(value, name)
    check_header_bytes(data, name)
    return LazyImage(draw=HeldPicture(data, name))


def is_embedded(text: str) -> bool:
    """Whether `text` is a picture itself rather than the name of one."""
    return bool(_DATA_URI.match(text) or _BARE_BASE64.match(text))


def left_in_file(image: LazyImage, text: str, file: Path, start: int, line: bytes) -> LazyImage:
    """The same picture, read from `file` again whenever it is loaded, so that a file of many pictures does not stay in
    memory. As it is if `text` does not stand literally in the `line` that begins at byte `start`."""
    at = line.find(text.encode("utf-8", "surrogatepass"))
    if at < 0 or not isinstance(image.draw, HeldPicture):
        return image
    return replace(image, draw=PictureInFile(file, start + at, len(text), image.draw.name))


def _path(text: str, folder: Path, name: str) -> Path:
    if len(text) > _LONGEST_PATH:
        raise ImageError(f"{name}: {text:.60}... is no name of a file and no data URI; write one of them")
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() == "file":
        return folder / url2pathname(urlsplit(text).path)
    if scheme and scheme[2]:
        raise ImageError(f"{name}: {text:.100} is an address, not a file; download the picture and write its path")
    try:
        return folder / (Path(text).expanduser() if text.startswith("~") else text)
    except RuntimeError:  # a user that does not exist: the name of a file that starts with ~
        return folder / text


def _decoded(text: str, name: str) -> bytes:
    """The bytes of a data URI or of base64. Blanks, missing padding and the alphabet of URLs are taken."""
    uri = _DATA_URI.match(text)
    try:
        body = text[uri.end() :].encode("ascii") if uri else text.encode("ascii")
        if uri and "%" in text:
            body = unquote_to_bytes(body)
        if uri and "base64" not in uri[1].lower():
            return body
        body = _BLANKS.sub(b"", body).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        return base64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ImageError(f"{name}: broken base64 of a picture ({error}); write the picture again") from error
