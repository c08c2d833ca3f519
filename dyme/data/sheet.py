"""Contact sheet: records with their pictures on one page, to be looked at before a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from dyme.data.errors import ImageError
from dyme.data.record import Record

T = TypeVar("T")
_CELL = 420  # pixels
_PICTURE = 280  # height of the picture's field in pixels
_TEXT_LINES = 13
_LINE = 16  # pixels
_COLUMNS = 4


def contact_sheet(records: Sequence[Record], n: int) -> Image.Image:
    """`n` records (fewer where there are fewer), evenly spread, four to a row, in RGB."""
    picked = spread(records, n)
    columns = min(_COLUMNS, max(1, len(picked)))
    rows = -(-len(picked) // columns)
    texts = [_lines(record) for record in picked]
    height = _PICTURE + max(map(len, texts), default=0) * _LINE + 28
    sheet = Image.new("RGB", (columns * _CELL, max(1, rows) * height), "white")
    for k, (record, lines) in enumerate(zip(picked, texts)):
        left, top = k % columns * _CELL, k // columns * height
        _cell(sheet, record, lines, left, top)
        ImageDraw.Draw(sheet).rectangle((left, top, left + _CELL - 1, top + height - 1), outline=(200, 200, 200))
    return sheet


def spread(items: Sequence[T], n: int) -> list[T]:
    """`n` of the items, evenly spread; all where there are no more."""
    return [items[k * len(items) // n] for k in range(n)] if len(items) > n else list(items)


def _lines(record: Record) -> list[str]:
    lines = [record.id + (f"  [{record.kind}]" if record.kind else "")]
    lines += textwrap.wrap(f"Q: {record.question}", 58)
    if record.choices:
        lines += textwrap.wrap("options: " + " | ".join(record.choices), 58)
    lines += textwrap.wrap(f"A: {' | '.join(dict.fromkeys(record.answers))}", 58)
    lines += textwrap.wrap(f"hint: {record.hint}", 58) if record.hint else []
    return lines if len(lines) <= _TEXT_LINES else [*lines[: _TEXT_LINES - 1], "..."]


def _cell(sheet: Image.Image, record: Record, lines: list[str], left: int, top: int) -> None:
    font = ImageFont.load_default(12)
    pen = ImageDraw.Draw(sheet)
    if record.images:
        try:
            picture = _fitted(record.shown())
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + 8))
        except ImageError as error:
            pen.multiline_text((left + 10, top + 12), textwrap.fill(str(error), 58), fill="red", font=font)
    text_top = top + (_PICTURE + 12 if record.images else 12)
    pen.multiline_text((left + 10, text_top), "\n".join(lines), fill="black", font=font, spacing=3)


def _fitted(picture: Image.Image) -> Image.Image:
    """Enlarged by whole pixels, or a tiny chart turns into a blur; reduced smoothly."""
    width, height = _CELL - 20, _PICTURE - 16
    scale = min(width / picture.width, height / picture.height)
    if scale >= 1:
        whole = int(scale)
        return picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
