"""Rows that nobody expects: each is a bad row with its reason, whatever it is, and never more than that."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dyme.data import (
    DataError,
    Geometry3KSource,
    ImageError,
    JsonlSource,
    LazyImage,
    Record,
    load_records,
    read_records,
)
from dyme.data.__main__ import main
from dyme.data.cells import MAX_TEXT
from dyme.data.check import check
from dyme.data.images import decode_bytes
from dyme.data.json_text import entries_of
from dyme.data.rows import Item, list_items, to_records
from dyme.predict.outfile import answer_row
from dyme.predict.questions import read_questions
from dyme.text.printable import printable, shortened

GOOD = '{"question": "q", "answer": "1"}'
DEEP = "[" * 100_000 + "]" * 100_000
FIELDS = ("id", "question", "answer", "answers", "choices", "hint", "facts", "kind", "image")


def source(folder: Path, *lines: str | bytes) -> JsonlSource:
    data = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (folder / "rows.jsonl").write_bytes(b"\n".join(data))
    return JsonlSource(path=str(folder / "rows.jsonl"))


def row(**values: str) -> str:
    """A line whose values are written as JSON already."""
    held = {"question": '"q"', "answer": '"1"'} | values
    return "{" + ", ".join(f'"{key}": {value}' for key, value in held.items()) + "}"


CONTROL = ("\\u0000", "\\u0007", "\\u001b[2J", "\\beta", "\\u007f")
COMMANDS = (
    "\\frac{1}{2}",
    "\\frac12",
    "\\forall",
    "\\theta",
    "\\times",
    "\\text{cm}",
    "\\neq",
    "\\rightarrow",
    "\\rho",
)
BAD = [
    *((key, '"\\ud83d x"', f"{key} has \\ud83d at character 1, a cut character") for key in FIELDS[:3]),
    *((key, '"x \\udc00"', f"{key} has \\udc00 at character 3") for key in ("hint", "facts", "kind")),
    ("answers", '["1", "\\ud83d"]', "answers has \\ud83d"),
    ("image", '"\\ud83d.png"', "image has \\ud83d"),
    *(("hint", f'"x{text}"', "the control character \\x") for text in CONTROL),
    *(("hint", f'"x {text}"', "with one backslash at character 3; write \\\\") for text in COMMANDS),
    *((key, '"\\theta"', f"{key} has \\theta with one backslash at character 1") for key in ("question", "answer")),
    ("answer", "9" * 5000, "a number of more than 4300 digits; write it as text"),
    ("other", "-" + "9" * 5000, "a number of more than 4300 digits"),
    ("answer", "1e999", "answer is a number beyond the range of floats"),
    ("answer", DEEP, "lists or objects more than 100 deep"),
    ("other", DEEP, "lists or objects more than 100 deep"),
    ("other", "[" * 101 + "]" * 101, "lists or objects more than 100 deep"),
    ("other", '{"a":' * 150 + "1" + "}" * 150, "lists or objects more than 100 deep"),
    ("question", '"' + "x" * (MAX_TEXT + 1) + '"', f"question has {MAX_TEXT + 1} characters, the limit is {MAX_TEXT}"),
    ("id", '"' + "x" * 1001 + '"', "id has 1001 characters, the limit is 1000"),
    ("hint", "true", "hint is a bool"),
    ("question", '{"a": 1}', "question is a dict"),
]


@pytest.mark.parametrize(("key", "value", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_row_costs_itself(tmp_path, capsys, key, value, reason):
    rows = source(tmp_path, GOOD, row(**{key: value}), GOOD)
    records = read_records(rows)
    assert len(records) == 2 and [bad.line for bad in records.bad] == [2]
    assert reason in records.bad[0].reason and len(records.bad[0].reason) < 600
    assert main(["check", rows.path]) == 1
    assert "2 good, 1 bad" in capsys.readouterr().out
    questions = read_questions(tmp_path / "rows.jsonl")
    # what predict does not read (the hint, the answer) it copies
    assert [q.record is None for q in questions] == [
        False,
        key not in ("hint", "facts", "kind", "answer", "answers")
        or records.bad[0].reason.startswith(("a number of", "lists or")),
        False,
    ]
    assert json.loads(json.dumps(answer_row(questions[1], questions[1].error)))["id"]


def test_what_is_legal_stays_good(tmp_path):
    texts = [
        "tab\\tnew\\nline",
        "\\ud83d\\ude00",
        "page\\f\\nnext",
        "a page\\frace of a PDF",
        "a\\text\\nequal\\rhow",
        "\\u0085 \\u00a0 \\u200b",
        "²³ ٣",
        "a" * 100_000,
    ]
    lines = [row(hint=f'"{text}"') for text in texts]
    lines += [row(other="[" * 99 + "]" * 99), row(answer="9" * 4000), row(answer="-0.0"), row(other="1e999")]
    records = read_records(source(tmp_path, *lines))
    assert not records.bad and records[1].hint == "\U0001f600"


def test_any_error_is_counted(tmp_path):
    def convert(row):
        raise {"a": KeyError("x"), "b": ZeroDivisionError(), "c": RecursionError("deep\nly")}[row["question"]]

    def unreadable():
        raise PermissionError(13, "not yours")

    items = [Item(tmp_path / "f", n, {"question": q}, "x") for n, q in enumerate("abc", 1)]
    records = to_records(tmp_path, [*items, Item(tmp_path / "f", 4, unreadable, "x")], convert)
    assert [bad.reason for bad in records.bad] == [
        "cannot be read (KeyError: 'x')",
        "cannot be read (ZeroDivisionError: )",
        "cannot be read (RecursionError: deep ly)",
        "cannot be read (PermissionError: [Errno 13] not yours)",
    ]
    with pytest.raises(ImageError, match=r"cannot be drawn \(ZeroDivisionError"):
        LazyImage(draw=lambda: 1 / 0).load()


def test_a_problem_file_that_is_a_folder(tmp_path):
    (tmp_path / "train" / "1" / "data.json").mkdir(parents=True)
    assert "IsADirectoryError" in read_records(Geometry3KSource(path=str(tmp_path))).bad[0].reason


@pytest.mark.parametrize("entry", [row(other=DEEP), row(other="9" * 5000), row(hint='"\\ud83d ]},\\"["'), b'"\xff"'])
def test_an_entry_of_a_list_costs_itself(tmp_path, entry):
    entry = entry if isinstance(entry, bytes) else entry.encode()
    path = tmp_path / "list.json"
    path.write_bytes(b"\xef\xbb\xbf [\n" + GOOD.encode() + b",\n" + entry + b" , " + GOOD.encode() + b"]\n")
    records = to_records(path, list_items(path), lambda row: row)
    assert len(records) == 2 and [bad.line for bad in records.bad] == [2]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"broken JSON|not UTF-8 at byte 41"):
        list_items(path)


def test_a_list_that_is_not_utf8_at_all(tmp_path):
    (tmp_path / "a.json").write_bytes("[]".encode("utf-16"))
    with pytest.raises(DataError, match="not UTF-8 at byte 0; save it as UTF-8"):
        list_items(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (np.int64(3), "3"),
        (np.float32(0.5), "0.5"),
        (np.str_("x"), "x"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1, 12, 30), "2024-05-01 12:30:00"),
        (datetime.time(12, 30), "12:30:00"),
        (float("nan"), None),
        (np.float64("nan"), None),
        (Decimal("NaN"), None),
        (np.datetime64("NaT"), None),
        (float("inf"), None),
        (b"bytes", "bytes"),
        ("jürgen".encode(), "jürgen"),
        (b"\xff\xd8\xff", None),
        (1j, None),
        pytest.param(object(), None, id="object"),
        (np.array([1, 2]), None),
    ],
    ids=repr,
)
def test_cells_of_tables(tmp_path, cell, text):
    held = [{"question": "q", "answer": cell}, {"question": "q", "answers": (cell,)}, {"question": "q", "answer": "1"}]
    items = [Item(tmp_path / "t.parquet", n, each, f"t-{n}") for n, each in enumerate(held, 1)]
    records = to_records(tmp_path, items, lambda row: row)
    assert len(records) + len(records.bad) == 3
    assert [record.answer for record in records] == ([text, text, "1"] if text else ["1"])


def test_printing_bad_rows(tmp_path, capsys):
    lines = [
        row(id='"twice"'),
        row(id='"twice"'),
        row(id='"\\ud83d"'),
        row(**{"\\ud83d\\u001b": "1", "answer": "null"}),
    ]
    path = tmp_path / "rows\x1b[1m\udcff.jsonl"
    path.write_text("\n".join(lines))
    assert main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "\x1b[1m" not in out and "rows\\x1b[1m\\udcff.jsonl:2 (twice): id was used before" in out
    assert "no answer; its keys are question, answer, \\ud83d\\x1b" in out
    assert main(["check", f"jsonl:path={path}x"]) == 2


def test_printable():
    assert printable("a\tb\nc \x1b[1m\ud83d\x9b\u2028é😀") == "a\tb\nc \\x1b[1m\\ud83d\\x9b\\u2028é😀"
    assert shortened("a\n b" * 1000, 20) == "a ba ba ba ba ba ba ..." and shortened("a\n b", 20) == "a b"


# --- whatever comes ----------

fuzz = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["\ud83d", "\0", "data:image/png;base64,", "a.png", "../"]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
shapes = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
cells = (
    shapes | st.binary(max_size=20) | st.dates() | st.decimals() | st.sampled_from([np.int8(1), np.array([["a"]]), 1j])
)
rows_of_any_shape = st.fixed_dictionaries(
    {}, optional={key: shapes | st.just("1") for key in (*FIELDS, "images", "file_name", "x")}
)


def sound(records) -> None:
    """Every field of every record can be encoded and written."""
    for record in records:
        assert isinstance(record, Record)
        texts = [record.id, record.question, *record.answers, *record.choices, record.hint, record.facts, record.kind]
        assert all(isinstance(text or "", str) for text in texts)
        json.dumps(texts, ensure_ascii=False).encode()
    for bad in records.bad:
        str(bad).encode()


@fuzz
@given(st.lists(st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")), max_size=5))
def test_any_bytes_are_counted(tmp_path, lines):
    rows = source(tmp_path, GOOD, *lines)
    records = read_records(rows)
    assert len(records) + len(records.bad) == 1 + sum(bool(line.strip()) for line in lines)
    sound(records)
    read_questions(tmp_path / "rows.jsonl")


@fuzz
@given(st.lists(rows_of_any_shape, min_size=1, max_size=5))
def test_any_shape_is_counted(tmp_path, rows):
    held = source(tmp_path, *map(json.dumps, rows))
    report = check(held)
    assert report.good + len(report.bad) == report.total == len(rows)
    sound(read_records(held))
    for question in read_questions(tmp_path / "rows.jsonl"):
        json.dumps(answer_row(question, question.error))
    try:
        load_records(held)
    except DataError as error:
        str(error).encode()


@fuzz
@given(st.lists(st.dictionaries(st.sampled_from((*FIELDS, "images")), cells), min_size=1, max_size=5))
def test_any_cell_is_counted(tmp_path, rows):
    items = [Item(tmp_path / "t.parquet", n, {"question": "q", **row}, f"t-{n}") for n, row in enumerate(rows, 1)]
    records = to_records(tmp_path, items, lambda row: row)
    assert len(records) + len(records.bad) == len(rows)
    sound(records)


@fuzz
@given(st.lists(shapes, max_size=4).map(json.dumps))
def test_entries_of_a_list_are_found_by_their_brackets(text):
    found = entries_of(text)
    assert found is not None and list(map(json.dumps, map(json.loads, found))) == list(
        map(json.dumps, json.loads(text))
    )


def pictures() -> list[bytes]:
    held = []
    for form in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM"):
        for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "F", "CMYK"):
            file = BytesIO()
            try:
                Image.effect_noise((9, 7), 90).convert(mode).save(file, form)
            except (OSError, ValueError):
                continue
            held.append(file.getvalue())
    return held


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of broken TIFFs
@settings(fuzz, max_examples=200)
@given(st.sampled_from(pictures()), st.integers(0, 400), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
def test_a_picture_is_rgb_or_an_image_error(data, cut, changes):
    broken = bytearray(data[: max(1, len(data) - cut)] if cut < 200 else data)
    for at, value in changes:
        broken[at % len(broken)] = value
    try:
        assert decode_bytes(bytes(broken), "x").mode == "RGB"
    except ImageError as error:
        assert str(error).startswith("x: ")
