"""Rows of JSON files to records, one object per line or one list: bad rows are counted instead of raised."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dyme.data.cells import cell_text, plain_cell
from dyme.data.choices import Options, Readings, as_list, read_options
from dyme.data.embedded import HeldPicture, is_embedded, left_in_file, picture_or_path
from dyme.data.errors import BadRow, DataError, ImageError, RowError
from dyme.data.images import check_header
from dyme.data.json_text import check_depth, entries_of, parse
from dyme.data.record import LazyImage, Record, RecordSet
from dyme.data.renames import Kind, kind_of, missing
from dyme.data.sniff import refuse_other_formats
from dyme.data.solutions import answer_of
from dyme.text.printable import shortened

FieldName = Literal["id", "question", "answer", "answers", "choices", "hint", "facts", "image", "kind"]
Limit = Annotated[int | None, Field(ge=1)]
Row = dict[str, Any]
Convert = Callable[[Row], Row | None]
MAX_REASON = 500  # characters
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Item:
    """One row as it lies in a file: JSON text, a value that is parsed already, or a function that gives either and may
    raise anything.

    `name` and `kind` are the id and kind of a row that has none. `start` is the byte of the file at which `raw` begins.
    """

    file: Path
    line: int
    raw: object
    name: str
    kind: str = ""
    start: int | None = None


@dataclass(frozen=True)
class _Place:
    """Where a row lies; its pictures are relative to `folder`. `seen` holds the pictures of earlier rows by file and
    name, or why they are bad: each header is read once, because in many data sets several questions share a picture."""

    item: Item
    pictures: Path | None
    seen: dict[tuple[Path, str], LazyImage | str]

    @property
    def folder(self) -> Path:
        return self.pictures or self.item.file.parent


def read_rows(path: Path, limit: int | None, fields: Mapping[FieldName, str], convert: Convert) -> RecordSet:
    """The first `limit` rows of the JSONL file `path`; blank lines do not count.

    `fields` maps our names to the keys of the file. `convert` turns a renamed row into one with our keys and may raise
    `RowError`. Raises `DataError` when a mapped key occurs in no row, and when the file is of another kind.
    """
    refuse_other_formats(path)
    stem = path.parent.name if path.name == "metadata.jsonl" else path.stem
    return to_records(path, line_items(path, stem), convert, limit=limit, fields=fields)


def line_items(path: Path, stem: str) -> Iterator[Item]:
    """The lines of a file that are not blank, named `stem` and number."""
    text = path.read_bytes()
    start = 3 if text.startswith(b"\xef\xbb\xbf") else 0
    for number, raw in enumerate(text[start:].split(b"\n"), 1):
        if raw.strip():
            yield Item(path, number, raw, f"{stem}-{number}", start=start)
        start += len(raw) + 1


def list_items(path: Path) -> list[Item]:
    """The entries of a JSON list, counted from 1. Raises `DataError` when the file holds anything else."""
    data = path.read_bytes()
    # bytes that are not UTF-8 become lone surrogates, for which their rows are bad
    text = data.decode("utf-8-sig", "surrogateescape")
    try:
        entries = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        wrong = next((n for n, letter in enumerate(text) if "\udc80" <= letter <= "\udcff"), None)
        if wrong is not None:
            at = len(text[:wrong].encode()) + len(data) - len(text.encode("utf-8", "surrogateescape"))
            raise DataError(f"{path}: not UTF-8 at byte {at}; save it as UTF-8") from error
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}); write the file again") from error
    except (
        RecursionError,
        ValueError,
    ) as error:  # too deep, or a number too long: of one entry, which only it is to pay
        entries = entries_of(text)
        if entries is None:
            raise DataError(f"{path}: broken JSON ({error}); write the file again") from error
        entries = [entry.encode("utf-8", "surrogateescape") for entry in entries]
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds a JSON {type(entries).__name__}, not a list of objects; name another file")
    return [Item(path, number, entry, f"{path.stem}-{number}") for number, entry in enumerate(entries, 1)]


def to_records(
    path: Path,
    items: Iterable[Item],
    convert: Convert,
    *,
    limit: int | None = None,
    fields: Mapping[FieldName, str] | None = None,
    setting: str = "fields.{}",
    pictures: Path | None = None,
    first_index: int = 0,
) -> RecordSet:
    """Records of the first `limit` rows that `convert` keeps: rows for which it gives None do not count as rows.

    `path` names the whole in messages, `setting` the configuration key behind an entry of `fields`. Pictures are
    relative to `pictures`, or else to the folder of the file of their row. `first_index` is the number of the first
    choice where answers are given by number.
    """
    fields = fields or {}
    records: list[Record] = []
    origins: list[Item] = []
    bad: list[BadRow] = []
    seen: dict[str, Item] = {}
    keys: dict[str, Kind] = {}
    readings = Readings(first_index)
    pictures_seen: dict[tuple[Path, str], LazyImage | str] = {}
    for item in items:
        if len(records) + len(bad) == limit:
            break
        name = ""
        try:
            row = _parse(item.raw)
            keys.update((key, kind_of(value)) for key, value in row.items() if value is not None or key not in keys)
            # our names last: a mapped name hides a key of that name in the file
            converted = convert(
                {**row, **{ours: row.get(theirs) if theirs else None for ours, theirs in fields.items()}}
            )
            if converted is None:
                continue
            name = _scalar(converted, "id") or item.name
            if name in seen:
                raise RowError(f"id was used before, in line {seen[name].line}")
            record = _record(converted, name, _Place(item, pictures, pictures_seen), row, readings)
        except Exception as error:  # an edge: whatever a row makes us trip over, it costs this row only
            known = isinstance(error, RowError | ImageError)
            reason = str(error) if known else f"cannot be read ({type(error).__name__}: {error})"
            bad.append(BadRow(item.file, item.line, name, shortened(reason, MAX_REASON)))
            continue
        seen[name] = item
        records.append(record if record.kind else replace(record, kind=item.kind))
        origins.append(item)
    for ours, theirs in fields.items():
        if keys and theirs and theirs not in keys:
            raise DataError(
                f"{path}: {setting.format(ours)} names the key {theirs!r}, which occurs in no row; "
                f"the file has {shortened(', '.join(sorted(keys)), MAX_REASON)}"
            )
    lines, files = tuple(item.line for item in origins), tuple(item.file for item in origins)
    found = tuple(readings.settle(records))
    return RecordSet(found, tuple(bad), path, lines, () if set(files) <= {path} else files, keys)


def needed(row: Row, key: str) -> Any:
    """The value of a key that every row must have."""
    if row.get(key) in (None, "", []):
        raise RowError(f"no {key}; its keys are {', '.join(row)}")
    return row[key]


def _parse(raw: object) -> Row:
    raw = raw() if callable(raw) else raw
    row = parse(raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        raise RowError(f"a JSON {type(row).__name__} where an object is needed")
    if row is raw:
        row = {str(key): plain_cell(value) for key, value in row.items()}
    check_depth(row)
    return row


def _record(row: Row, name: str, place: _Place, raw: Row, readings: Readings) -> Record:
    """`raw` is the row as it is in the file; messages name its keys, because the user knows these."""
    question = _scalar(row, "question")
    if not question:
        raise RowError(missing("question", raw))
    options = read_options(row)
    solved = answer_of(row["answer"]) if isinstance(row.get("answer"), str) else None
    if solved:
        row = {**row, "answer": solved[0]}
    record = Record(
        id=name,
        question=question,
        answers=_answers(row, raw, options, readings, name),
        choices=options.texts,
        hint=_joined(row, "hint") or (solved[1] if solved else "") or None,
        facts=_joined(row, "facts") or None,
        images=_images(row, place),
        kind=_scalar(row, "kind"),
    )
    marks = question.count("<image>")
    if marks not in (0, len(record.images)):
        mend = "write as many marks as pictures, or none"
        raise RowError(f"{marks} <image> marks in the question and {len(record.images)} pictures; {mend}")
    return record


def _answers(row: Row, raw: Row, options: Options, readings: Readings, name: str) -> tuple[str, ...]:
    """Accepted answers; `answer` goes first where a row has both keys.

    A list keeps its repeats: they are the votes of several people, which the verifier vqa counts. An `answer` that is
    among them is one of the votes and adds none. With choices an answer may be the text of one, its label or index.
    """
    single, listed = row.get("answer"), as_list(row.get("answers"))
    if single is None and listed is None:
        raise RowError(missing("answer", raw))
    if isinstance(single, list):
        if listed is not single:
            mend = f"write fields: {{answers: {_key_of(single, raw)}}} for accepted answers"
            raise RowError(f"answer is a list ({single!r:.40}); {mend}")
        single = None
    if isinstance(listed, (str, int, float)):  # one answer under the name of many
        listed = [listed]
    if options.texts:
        listed = _as_options(listed, options, readings, name if single is None else "")
        single = None if single is None else readings.option(single, options, name)
    answers = _strings({"answers": _spoken(listed)}, "answers")
    if single is not None:
        first = _scalar({"answer": _spoken(single)}, "answer")
        at = answers.index(first) if first in answers else len(answers)
        answers = (first, *answers[:at], *answers[at + 1 :])
    if not answers or not all(answers):
        raise RowError("empty answer")
    return answers


def _key_of(value: object, raw: Row) -> str:
    return next((key for key, held in raw.items() if held is value), "<its key>")


def _as_options(answers: Any, options: Options, readings: Readings, name: str) -> Any:
    """The option that each of the answers means; one that means none stays as it is, unless it is the first."""
    if not isinstance(answers, list):
        return answers
    found = [readings.option(answers[0], options, name)] if answers and name else []
    for answer in answers[len(found) :]:
        try:
            found.append(readings.option(answer, options))
        except RowError:
            found.append(answer)
    return found


def _spoken(answer: Any) -> Any:
    """Booleans in words: yes and no."""
    if isinstance(answer, list):
        return [_spoken(entry) for entry in answer]
    return ("yes" if answer else "no") if isinstance(answer, bool) else answer


def _images(row: Row, place: _Place) -> tuple[LazyImage, ...]:
    """Pictures of a row, one or a list: the first of `image`, `images` and `file_name` that has one."""
    key = next((key for key in ("image", "images", "file_name") if row.get(key) not in (None, "", [])), "")
    value = row.get(key)
    if not isinstance(value, list):
        return () if value is None else (_image(value, key, place),)
    return tuple(_image(entry, f"{key}[{at}]", place) for at, entry in enumerate(value))


def _image(value: object, key: str, place: _Place) -> LazyImage:
    if isinstance(value, LazyImage):
        return value
    if not isinstance(value, str) or len(value) > _LONGEST_PATH:
        return _opened(value, key, place)
    name = (place.item.file, value)
    if name not in place.seen:
        try:
            place.seen[name] = _opened(value, key, place)
        except ImageError as error:
            place.seen[name] = str(error)
    found = place.seen[name]
    if isinstance(found, str):
        raise ImageError(found)
    return found


def _opened(value: object, key: str, place: _Place) -> LazyImage:
    if value is None or (isinstance(value, (str, int, float)) and not is_embedded(str(value))):
        value = _scalar({key: value}, key)
        if not value:
            raise RowError(f"{key} names no picture")
    found = picture_or_path(value, place.folder, key)
    if isinstance(found, LazyImage):
        return _embedded(found, value, key, place.item)
    relative = isinstance(value, str) and not value.startswith(("/", "~", "file:"))
    if relative and place.pictures is None and not os.path.exists(found):
        elsewhere = f"if names start at another folder, write files:path={place.item.file},images=<folder>"
        raise ImageError(f"{found}: no such picture; correct the path or restore the file; {elsewhere}")
    check_header(found)
    return LazyImage(path=found)


def _embedded(image: LazyImage, value: object, key: str, item: Item) -> LazyImage:
    """A picture that lies in its row: named by its place, and left there where it can be read again."""
    assert isinstance(image.draw, HeldPicture)
    image = replace(image, draw=replace(image.draw, name=f"{item.file.name}:{item.line} {key}"))
    if isinstance(value, str) and isinstance(item.raw, bytes) and item.start is not None:
        return left_in_file(image, value, item.file, item.start, item.raw)
    return image


def _scalar(row: Row, key: str) -> str:
    """A text, number or date as stripped text; "" where the key is missing or null."""
    return cell_text(row.get(key), key)


def _joined(row: Row, key: str) -> str:
    """A text, or several as A-OKVQA has them, one after the other."""
    value = row.get(key)
    return " ".join(dict.fromkeys(_strings(row, key))).strip() if isinstance(value, list) else _scalar(row, key)


def _strings(row: Row, key: str) -> tuple[str, ...]:
    values = row.get(key)
    if values is None:
        return ()
    if not isinstance(values, list):
        raise RowError(f"{key} is a {type(values).__name__} ({values!r:.40}); a list is needed")
    return tuple(_scalar({key: value}, key) for value in values)
