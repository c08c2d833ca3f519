"""Questions to answer, without gold answers: rows of a JSONL file, or one question for every picture of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dyme.data import DataError, Record
from dyme.data.choices import read_options
from dyme.data.embedded import is_embedded
from dyme.data.errors import RowError
from dyme.data.rows import Item, Row, line_items, to_records
from dyme.data.sniff import refuse_other_formats
from dyme.predict.settings import PredictError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PICTURE_KEYS = ("image", "images", "file_name")
READ = ("id", "question", *PICTURE_KEYS)
SHOWN = 40  # characters of a picture in a row
NO_ANSWER = "-"  # a record needs a gold answer; nothing here uses it


@dataclass(frozen=True)
class Question:
    """One question. `record` is None for a bad row, and `error` says why.

    `image` is the picture's name in the input, or a list of several; of a picture in the row itself, the start of its
    text. `carried` are the other keys of the row, copied to the output.
    """

    id: str
    text: str
    image: str | list[str] | None
    record: Record | None
    error: str = ""
    carried: Row = field(default_factory=dict)


def single_question(text: str, images: Sequence[Path] = (), choices: Iterable[str] = ()) -> Question:
    """A question from the command line."""
    pictures = [str(image.resolve()) for image in images]
    row = {"id": "question", "question": text, "choices": list(choices), "images": pictures}
    question = _question(Item(Path("command line"), 1, row, "question"))
    if question.error:
        raise PredictError(question.error)
    return question


def read_questions(path: Path) -> list[Question]:
    """The rows of a JSONL file, bad ones included; pictures are relative to its folder. Blank lines do not count.

    Raises `PredictError` when there is no row, and when the file is of another kind.
    """
    try:
        refuse_other_formats(path)
    except DataError as error:
        raise PredictError(f"{error}; predict reads JSON lines") from error
    seen: set[str] = set()
    questions = []
    for question in map(_question, line_items(path, path.stem)):
        if question.record is not None and question.id in seen:  # their answers could not be told apart
            question = replace(question, record=None, error="id was used before")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise PredictError(f"{path}: no rows; write one JSON object a line, with question and image")
    return questions


def folder_questions(folder: Path, text: str) -> list[Question]:
    """One question for every picture directly in a folder, by name. Raises `PredictError` when it holds none."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    if not names:
        raise PredictError(f"{folder}: no pictures in it ({' '.join(PICTURES)}); name another folder or a .jsonl file")
    rows = [{"id": name, "question": text, "image": name} for name in names]
    return [_question(Item(folder, 1, row, row["id"]), folder) for row in rows]


def _question(item: Item, pictures: Path | None = None) -> Question:
    seen: Row = {}

    def convert(row: Row) -> Row:
        seen.update(row)
        asked = {key: row[key] for key in (*READ, "choices") if key in row}
        return {**asked, "answer": _some_choice(row.get("choices"))}

    rows = to_records(item.file, [item], convert, pictures=pictures)
    carried = {key: value for key, value in seen.items() if key not in READ}
    image = next((seen[key] for key in PICTURE_KEYS if seen.get(key)), None)
    image = [_name(each) for each in image] if isinstance(image, list) else _name(image)
    if len(rows):
        return Question(rows[0].id, rows[0].question, image, rows[0], carried=carried)
    bad, text = rows.bad[0], seen.get("question")
    text = text if isinstance(text, str) else ""
    return Question(bad.record_id or item.name, text, image, None, bad.reason, carried)


def _name(picture: object) -> Any:
    if isinstance(picture, dict):
        return _name(picture.get("path") or picture.get("url"))
    if not isinstance(picture, str):
        return None
    return f"{picture[:SHOWN]}... ({len(picture)} characters)" if is_embedded(picture) else picture


def _some_choice(choices: Any) -> str:
    """A record's answer has to be one of its choices."""
    try:
        texts = read_options({"choices": choices}).texts
    except RowError:
        return NO_ANSWER  # the row is reported as bad
    return next((text for text in texts if text), NO_ANSWER)
