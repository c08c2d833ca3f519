"""Fonts that can write a text: Pillow's own, or one of this machine that has the script."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from io import BytesIO

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "IDEOGRAPHIC", "FULLWIDTH", "KANGXI")

_STYLED = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed")


@lru_cache(maxsize=4096)
def font_for(text: str, size: int) -> FreeTypeFont:
    """The font of `size` pixels that has most characters of `text`; Pillow's own where it has all, or as many."""
    wanted = _visible(text)
    own = _own(size)
    best, missing = own, len(wanted - _own_characters())
    if not missing:
        return own
    for path in _system_fonts():
        lacking = len(wanted - _characters(path))
        if lacking < missing and (font := _opened(path, size)) is not None:
            best, missing = font, lacking
            if not missing:
                break
    return best


def unwritable(text: str) -> set[str]:
    """The characters of `text` that no font here has."""
    left = _visible(text) - _own_characters()
    for path in _system_fonts() if left else ():
        left = left - _characters(path)
    return {chr(code) for code in left}


def package_with(character: str) -> str:
    """The Debian package whose fonts have the script of a character."""
    return "fonts-noto-cjk" if unicodedata.name(character, "").startswith(_CJK) else "fonts-noto"


def _visible(text: str) -> frozenset[int]:
    return frozenset(ord(c) for c in text if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc", "Mn"))


def _own(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont), "Pillow was built without FreeType; install its wheel"
    return font


@lru_cache(maxsize=1)
def _own_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    path = _own(12).path
    return frozenset(FT2Font(BytesIO(path.getvalue()) if isinstance(path, BytesIO) else str(path)).get_charmap())


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Plain sans-serif faces first: bold, italic and serif ones serve where they alone have a script."""
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple[int, int, str]:
        name = path.rsplit("/", 1)[-1].lower()
        styled = any(word in name for word in _STYLED)
        return styled, "sans" not in name, path

    return tuple(sorted(findSystemFonts(), key=rank))


@lru_cache(maxsize=4096)
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except Exception:  # a damaged font file, or one without outlines
        return frozenset()


@lru_cache(maxsize=64)
def _opened(path: str, size: int) -> FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:  # fonts of coloured bitmaps have a size of their own
        return None
