"""The answer flag as it occurs in a text: case, layout, width and invisible characters do not matter."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe0e\ufe0f\ufeff"
"""Characters without a glyph (zero width, bidi marks, soft hyphens), for use inside the brackets of a pattern."""

_UNSEEN = re.compile(f"[{INVISIBLE}]+")
_FULL_WIDTH = 0xFEE0
"""From an ASCII character to its full-width form."""
_COLONS = ":：﹕︓"


@lru_cache(maxsize=64)
def flag_pattern(flag: str) -> re.Pattern[str]:
    """Finds `flag` in a text, without groups: "Answer:" also in "ANSWER：", "Answer :" and "**Answer** :".

    Raises `ValueError` for a blank flag.
    """
    flag = unicodedata.normalize("NFC", _UNSEEN.sub("", flag)).strip()
    if not flag:
        raise ValueError('the answer flag is blank: set it to some text, for example "Answer:"')
    colon = len(flag) > 1 and flag[-1] in _COLONS
    words = (flag[:-1] if colon else flag).split()
    blank = rf"(?:[^\S\n]|[{INVISIBLE}])+"
    pattern = blank.join(f"[{INVISIBLE}]*".join(map(_forms, word)) for word in words)
    # markdown may put the colon outside the emphasis: "**Answer**: 4"
    return re.compile(pattern + rf"(?:[^\S\n]|[*_`{INVISIBLE}])*[{_COLONS}]" * colon, re.IGNORECASE)


def _forms(char: str) -> str:
    """A pattern of the ways to write a character: composed or not, in full width or not."""
    plain = unicodedata.normalize("NFKC", char)
    wide = chr(ord(plain) + _FULL_WIDTH) if len(plain) == 1 and "!" <= plain <= "~" else char
    forms = dict.fromkeys((char, plain, wide, unicodedata.normalize("NFD", char)))
    if len(forms) == 1:
        return re.escape(char)
    return f"(?:{'|'.join(map(re.escape, forms))})"
