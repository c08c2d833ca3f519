"""Text that can be shown: what to do with characters that no terminal or encoder takes."""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper

_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u2028\u2029\ud800-\udfff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
# \frac, \theta, \neq or \rightarrow with one backslash, read as an escape of JSON. By themselves these characters are
# legal: a form feed ends a page in text from PDFs.
_COMMAND = re.compile(
    r"\f(?=rac(?![a-z])|orall|lat\b|rown\b|box\b)|\t(?=heta|imes|ext\{|frac|riangle)"
    r"|\n(?=eq\b|abla\b|otin\b)|\r(?=ightarrow|angle\b|floor\b|ceil\b|ho\b)"
)
_LETTERS = {"\f": "f", "\t": "t", "\n": "n", "\r": "r"}


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates as escapes (`\\x1b`, `\\ud83d`), so that it can be printed and
    cannot steer a terminal. Line ends and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: _escape(found[0]), text)


def shortened(text: str, limit: int) -> str:
    """`printable` text on one line, of at most `limit` characters and what says that more was there."""
    line = " ".join(printable(text[: 4 * limit]).split())
    return line if len(line) <= limit and len(text) <= 4 * limit else f"{line[:limit]}..."


def print_anything() -> None:
    """Lets standard output take any text: a character that its encoding lacks is printed as an escape."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def fault(text: str) -> str:
    """Why `text` cannot be encoded or is not what its author wrote, with the mend; "" for sound text."""
    found = _LONE_SURROGATE.search(text)
    if found:
        half = f"{_escape(found[0])} at character {found.start() + 1}, a cut character or a byte that is not UTF-8"
        return f"{half}; write the text again, as UTF-8"
    found = _CONTROL.search(text)
    if found:
        named = f"the control character {_escape(found[0])} at character {found.start() + 1}"
        return f"{named}; remove it, or write a backslash before a letter as \\\\ in JSON"
    found = _COMMAND.search(text)
    if found:
        word = re.match("[a-z]*", text[found.end() :])
        command = f"\\{_LETTERS[found[0]]}{word[0] if word else ''}"
        return f"{command} with one backslash at character {found.start() + 1}; write \\{command} in JSON"
    return ""


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"
