"""Templates of the pages, and pictures as they stand in a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

MAX_SIDE = 384  # pixels
TINY = 128  # pictures up to this side are enlarged as pixels and stay lossless


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, or why it is missing; both empty for a record without a picture."""

    uri: str = ""
    tiny: bool = False
    missing: str = ""


def render(template: str, **values: Any) -> str:
    """The template of this name in `templates/`. Every value is escaped; raises `UndefinedError` on a missing one."""
    return _TEMPLATES.get_template(template).render(values)


def embed(picture: Image.Image) -> Picture:
    """A copy of the picture with sides up to `MAX_SIDE`, as PNG when it is tiny and as JPEG otherwise."""
    tiny = max(picture.size) <= TINY
    small = picture.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    kind = "png" if tiny else "jpeg"
    small.save(buffer, format=kind, **({} if tiny else {"quality": 82}))
    return Picture(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", tiny)


def _printable(value: Any) -> Any:
    """Characters that no browser prints, lone surrogates among them, become U+FFFD. Rendered markup is unchanged."""
    if hasattr(value, "__html__"):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value))


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_printable,
    trim_blocks=True,
    lstrip_blocks=True,
)
