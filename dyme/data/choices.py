"""Options of a multiple-choice question as files have them, and the option that a gold answer means."""

from __future__ import annotations

import ast
import json
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import pairwise
from typing import Any

from dyme.data.cells import cell_text
from dyme.data.errors import RowError
from dyme.data.record import Record

_COLUMN = re.compile(r"(?:option|choice|opt|op)[ _]?([A-Ha-h1-8])|([A-H])")  # A, option_a, optionA, choice 1, opa
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
_PREFIX = re.compile(r"\(?([A-J])[).:]\s*(.+)", re.DOTALL)
_INDEX = re.compile(r"(\d{1,3})(?:\.0)?")
_TEXT_KEYS = ("text", "value", "content", "answer", "option", "choice")
_LABEL_KEYS = ("label", "key", "id", "letter")
YES, NO = ("yes", "true"), ("no", "false")


@dataclass(frozen=True)
class Options:
    """Texts in order, and their labels where the file has some ("A", "1"); without these, labels are A, B, C ..."""

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass
class Readings:
    """The gold answers of a file that are the text of one option and the label or index of another.

    How the other rows of the file write their answers decides for them: by label where some row can only be read so
    and none only as a text; else the text wins.
    """

    first_index: int = 0
    by_text: bool = False
    by_label: bool = False
    doubtful: dict[str, str] = field(default_factory=dict)

    def option(self, answer: object, options: Options, name: str = "") -> str:
        """The text of the option that `answer` means in the row `name`. Raises `RowError` when it means none."""
        written = _written(answer)
        whole = str(int(answer)) if isinstance(answer, float) and answer.is_integer() else written  # 12.0 of pandas
        text = next((t for t in options.texts if t in (written, whole)), None)
        labelled = _by_label(written, options, self.first_index)
        if isinstance(answer, bool):
            words = YES if answer else NO
            text = labelled = next((t for t in options.texts if t.lower() in words), None)
        if text is None and labelled is None:
            text = labelled = _after_its_letter(written, options)
        if text is None and labelled is None:
            raise RowError(_no_option(answer, options, self.first_index))
        if text is None or labelled is None:
            self.by_text, self.by_label = self.by_text or labelled is None, self.by_label or text is None
        elif text != labelled and options.labels:
            return labelled  # labels of the file's own leave no doubt
        elif text != labelled and name:
            self.doubtful[name] = labelled
        return str(labelled if text is None else text)

    def settle(self, records: Iterable[Record]) -> list[Record]:
        """The records, doubtful ones with the answer that the whole file speaks for."""
        if not self.by_label or self.by_text:
            return list(records)
        return [
            replace(r, answers=(self.doubtful[r.id], *r.answers[1:])) if r.id in self.doubtful else r for r in records
        ]


def read_options(row: dict[str, Any]) -> Options:
    """The options in `choices`: a list, a list of {label, text}, {"A": text}, {"label": [..], "text": [..]}, a list
    written as text; or in columns A, B, C ... Raises `RowError` for anything else."""
    value = as_list(row.get("choices"))
    if value is None:
        return _of_columns(row)
    if isinstance(value, dict):
        texts = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), list)), None)
        labels = next((value[key] for key in _LABEL_KEYS if isinstance(value.get(key), list)), None)
        if texts is not None and labels is None:
            return Options(tuple(_written(text) for text in texts))
        if texts is not None and labels is not None and len(texts) != len(labels):
            raise RowError(f"choices have {len(labels)} labels and {len(texts)} texts; write a label for each")
        pairs = value.items() if texts is None or labels is None else zip(labels, texts)
        return _of_pairs((label, text) for label, text in pairs if text is not None)
    if not isinstance(value, list):
        raise RowError(f"choices is a {type(value).__name__} ({value!r:.40}); a list is needed")
    if value and all(isinstance(entry, dict) for entry in value):
        held = [(_first(entry, _LABEL_KEYS), _first(entry, _TEXT_KEYS)) for entry in value]
        if all(label is not None for label, _ in held):
            return _of_pairs(held)
        value = [text for _, text in held]
    return Options(tuple(_written(entry) for entry in value))


def as_list(value: object) -> object:
    """The list or dict that a table wrote as text, as JSON or as Python does; any other value as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    text = value.strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        held = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    # numpy writes ['a' 'b'], which Python reads as ['ab']
    joined = any(first.type == second.type == tokenize.STRING for first, second in pairwise(_tokens(text)))
    return held if isinstance(held, (list, dict)) and not joined else value


def _tokens(text: str) -> list[tokenize.TokenInfo]:
    """Those of Python, without line ends."""
    found = tokenize.generate_tokens(StringIO(text).readline)
    return [token for token in found if token.type not in (tokenize.NL, tokenize.NEWLINE)]


def _of_columns(row: dict[str, Any]) -> Options:
    found = ((_COLUMN.fullmatch(key), value) for key, value in row.items() if isinstance(key, str))
    pairs = [((match[1] or match[2]).upper(), value) for match, value in found if match and value not in (None, "")]
    pairs.sort(key=lambda pair: pair[0])
    if len(pairs) < 2 or len({label for label, _ in pairs}) < len(pairs):
        return Options()
    return _of_pairs(pairs)


def _of_pairs(pairs: Iterable[tuple[object, object]]) -> Options:
    held = [(_written(label), _written(text)) for label, text in pairs]
    return Options(tuple(text for _, text in held), tuple(label for label, _ in held))


def _first(entry: dict[str, Any], keys: tuple[str, ...]) -> object:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _by_label(written: str, options: Options, first_index: int) -> str | None:
    """The option with this label, letter or index; "B. cat" where option B is "cat"."""
    texts = options.texts
    if written in options.labels:
        return texts[options.labels.index(written)]
    label, _, rest = written.partition(" ")
    letter = _LETTER.fullmatch(written) or (_LETTER.fullmatch(label) if label[-1:] in ").:" else None)
    if letter:
        labels = [name.upper() for name in options.labels] or [chr(ord("A") + k) for k in range(min(26, len(texts)))]
        at = labels.index(letter[1].upper()) if letter[1].upper() in labels else len(texts)
        return texts[at] if at < len(texts) and rest.strip() in ("", texts[at]) else None
    index = _INDEX.fullmatch(written)
    if index and not any(name.isdecimal() for name in options.labels):
        at = int(index[1]) - first_index
        return texts[at] if 0 <= at < len(texts) else None
    return None


def _after_its_letter(written: str, options: Options) -> str | None:
    """The option "B. cat" for the answer "cat", where all options begin with their letters."""
    found = [_PREFIX.fullmatch(text) for text in options.texts]
    if not all(match and match[1] == "ABCDEFGHIJ"[at : at + 1] for at, match in enumerate(found)):
        return None
    return next((match[0] for match in found if match and match[2] == written), None)


def _no_option(answer: object, options: Options, first_index: int) -> str:
    texts = options.texts
    shown = ", ".join(map(repr, texts[:8])) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
    last = len(texts) - 1 + first_index
    mend = f"write the text of one, its letter or its index, {first_index} to {last}"
    if first_index == 0 and _written(answer) == str(len(texts)):
        mend += "; where answers are counted from 1, read the file by source files with first_index: 1"
    return f"answer {answer!r} is not one of the choices {shown}; {mend}"


def _written(value: object) -> str:
    return str(value) if isinstance(value, bool) else cell_text(value, "choices or answer")
