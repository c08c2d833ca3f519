"""Contact sheet: records with their pictures on one page, to be looked at before a run."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

from PIL import Image, ImageDraw

from dyme.data.errors import ImageError
from dyme.data.fonts import font_for, package_with, unwritable
from dyme.data.record import Record
from dyme.text.printable import printable

T = TypeVar("T")
_CELL = 420  # pixels
_PICTURE = 280  # height of the picture's field in pixels
_TEXT_LINES = 13
_LINE = 16  # pixels
_COLUMNS = 4
_FONT = 12  # pixels
_WIDTH = 58  # Latin letters of a line


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


def unwritten(records: Sequence[Record], n: int) -> str:
    """One line that names the characters on a sheet of `n` records that no font here has, and a package of fonts that
    has them; "" where all can be written."""
    missing = unwritable("".join(line for record in spread(records, n) for line in _lines(record)))
    if not missing:
        return ""
    packages = " ".join(sorted({package_with(character) for character in missing}))
    shown = " ".join(sorted(missing)[:8]) + (" .." if len(missing) > 8 else "")
    return f"no font on this machine has {len(missing)} characters of the sheet ({shown}); install {packages}"


def _lines(record: Record) -> list[str]:
    lines = [record.id + (f"  [{record.kind}]" if record.kind else "")]
    lines += _wrapped(f"Q: {record.question}")
    if record.choices:
        lines += _wrapped("options: " + " | ".join(record.choices))
    lines += _wrapped(f"A: {' | '.join(dict.fromkeys(record.answers))}")
    lines += _wrapped(f"facts: {record.facts}") if record.facts else []
    lines += _wrapped(f"hint: {record.hint}") if record.hint else []
    lines = [printable(line) for line in lines]
    return lines if len(lines) <= _TEXT_LINES else [*lines[: _TEXT_LINES - 1], "..."]


def _wrapped(text: str) -> list[str]:
    """Lines of `_WIDTH` letters; Chinese, Japanese and Korean ones count for two and may part anywhere."""
    pieces: list[str] = []
    for line in textwrap.wrap(text, _WIDTH):
        width, start = 0, 0
        for at, character in enumerate(line):
            step = 1 + (unicodedata.east_asian_width(character) in "WF")
            if width + step > _WIDTH:
                pieces.append(line[start:at])
                width, start = 0, at
            width += step
        pieces.append(line[start:])
    return pieces


def _cell(sheet: Image.Image, record: Record, lines: list[str], left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    if record.images:
        try:
            picture = _fitted(record.shown())
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + 8))
        except ImageError as error:
            _write(pen, _wrapped(printable(str(error))), left + 10, top + 12, "red")
    _write(pen, lines, left + 10, top + (_PICTURE + 12 if record.images else 12), "black")


def _write(pen: ImageDraw.ImageDraw, lines: list[str], left: int, top: int, colour: str) -> None:
    for at, line in enumerate(lines):
        baseline = top + at * _LINE + _FONT
        pen.text((left, baseline), line, fill=colour, font=font_for(line, _FONT), anchor="ls")


def _fitted(picture: Image.Image) -> Image.Image:
    """Enlarged by whole pixels, or a tiny chart turns into a blur; reduced smoothly."""
    width, height = _CELL - 20, _PICTURE - 16
    scale = min(width / picture.width, height / picture.height)
    if scale >= 1:
        whole = int(scale)
        return picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
