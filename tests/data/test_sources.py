"""Sources: what each format turns into, and what becomes of rows that cannot be used."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from dyme.data import (
    ChartsSource,
    DataError,
    Gsm8kSource,
    ImageFolderSource,
    JsonlSource,
    SourceConfig,
    load_records,
    read_records,
)
from tests.helpers.broken_files import bomb

GOOD = {"question": "how many?", "answer": "3"}


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)
    return path


def test_jsonl_reads_every_key(tmp_path):
    picture(tmp_path / "images" / "a.png")
    row = {
        "id": 7,
        "question": " which? ",
        "answers": ["red", "crimson"],
        "choices": ["blue", "red"],
        "hint": "look",
        "facts": "red box",
        "image": "images/a.png",
        "kind": "colour",
    }
    [record] = load_records(JsonlSource(path=str(write(tmp_path / "a.jsonl", [row]))))
    assert (record.id, record.question, record.answers) == ("7", "which?", ("red", "crimson"))
    assert (record.choices, record.hint, record.facts, record.kind) == (("blue", "red"), "look", "red box", "colour")
    assert record.answer == "red"
    assert record.image is not None and record.image.load().size == (8, 6)


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answers": ["no", "yes", "yes"]}, ("no", "yes", "yes")),
        ({"answer": "yes", "answers": ["no", "yes", "yes"]}, ("yes", "no", "yes")),  # one of the votes, not one more
        ({"answer": "maybe", "answers": ["no", "no"]}, ("maybe", "no", "no")),
        ({"answer": "2", "answers": [2, 2]}, ("2", "2")),
    ],
)
def test_lists_of_answers_keep_their_votes(tmp_path, row, answers):
    [record] = load_records(JsonlSource(path=str(write(tmp_path / "a.jsonl", [{"question": "?", **row}]))))
    assert record.answers == answers


def test_jsonl_without_options_is_text_only_and_named_by_line(tmp_path):
    path = write(tmp_path / "words.jsonl", [GOOD, "", {"question": "x?", "answer": 2.5}])
    records = load_records(JsonlSource(path=str(path)))
    assert [r.id for r in records] == ["words-1", "words-3"]
    assert records[1].answer == "2.5" and records[0].image is None and records[0].hint is None
    assert records.lines == (1, 3) and records.file == path


def test_fields_map_other_keys(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "q?", "label": "yes", "answer": "unused", "pic": "p.png"}])
    picture(tmp_path / "p.png")
    fields = {"question": "text", "answer": "label", "image": "pic"}
    [record] = load_records(JsonlSource(path=str(path), fields=fields))
    assert (record.question, record.answer) == ("q?", "yes") and record.image is not None


def test_field_that_no_row_has_names_the_keys_there_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(DataError, match=r"fields\.answer names the key 'label'.*answer, question") as error:
        load_records(JsonlSource(path=str(path), fields={"answer": "label"}))
    assert str(path) in str(error.value)


def test_unknown_key_in_settings_is_an_error():
    adapter = TypeAdapter(SourceConfig)
    with pytest.raises(ValidationError, match="pth"):
        adapter.validate_python({"source": "jsonl", "path": "a", "pth": "b"})
    with pytest.raises(ValidationError, match="label"):
        JsonlSource(path="a", fields={"label": "x"})  # type: ignore[dict-item]
    assert isinstance(adapter.validate_python({"source": "charts", "count": 3}), ChartsSource)


def test_limit_takes_the_first_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**GOOD, "id": str(i)} for i in range(9)])
    assert [r.id for r in load_records(JsonlSource(path=str(path), limit=4))] == ["0", "1", "2", "3"]


BAD_ROWS = [
    ("{not json", "broken JSON"),
    ("[1, 2]", "a JSON list where an object"),
    ({"answer": "3"}, "no question"),
    ({"question": "", "answer": "3"}, "no question"),
    ({"question": "q?"}, "no answer"),
    ({"question": "q?", "answer": "  "}, "empty answer"),
    ({"question": "q?", "answers": []}, "empty answer"),
    ({"question": "q?", "answers": ["a", ""]}, "empty answer"),
    ('{"question": "q?", "answer": NaN}', "no answer"),
    ({"question": "q?", "answer": ["a"]}, "answer is a list"),
    ({"question": "q?", "answer": "c", "choices": ["a", "b"]}, "'c' is not one of the choices 'a', 'b'"),
    ({"question": "q?", "answer": "c", "choices": "abc"}, "choices is a str"),
    ({**GOOD, "id": "twice"}, "id was used before, in line 1"),
    ({**GOOD, "image": "nowhere.png"}, "no such picture"),
    ({**GOOD, "image": "text.png"}, "not a readable picture"),
    ({**GOOD, "image": "bomb.png"}, "more than 64 megapixels by its header; scale the picture down"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason[:25] for _, reason in BAD_ROWS])
def test_bad_row_is_left_out_with_its_reason(tmp_path, row, reason):
    (tmp_path / "text.png").write_text("this is no picture")
    bomb(tmp_path / "bomb.png")
    path = write(tmp_path / "a.jsonl", [{**GOOD, "id": "twice"}, row, GOOD])
    records = load_records(JsonlSource(path=str(path)), max_bad_fraction=0.5)
    assert len(records) == 2 and len(records.bad) == 1
    bad = records.bad[0]
    assert (bad.file, bad.line) == (path, 2) and reason in bad.reason
    assert str(bad).startswith(f"{path}:2")


def test_bytes_that_are_no_utf8_are_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b'\r\n{"question": "\xff"}\r\n')
    records = read_records(JsonlSource(path=str(path)))
    assert len(records) == 1 and "not UTF-8 at byte 14" in records.bad[0].reason


def test_truncated_picture_passes_the_header_check(tmp_path):
    image = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 90).save(image)
    image.write_bytes(image.read_bytes()[:400])
    path = write(tmp_path / "a.jsonl", [{**GOOD, "image": "cut.png"}])
    assert len(load_records(JsonlSource(path=str(path)))) == 1  # decoding every picture would make loading take minutes


def rows_with_bad(n: int, bad: int) -> list:
    return ["{"] * bad + [GOOD] * (n - bad)


@pytest.mark.parametrize(("n", "bad"), [(100, 1), (300, 3), (700, 7), (99, 0)])
def test_exactly_the_allowed_fraction_passes(tmp_path, n, bad):
    records = load_records(JsonlSource(path=str(write(tmp_path / "a.jsonl", rows_with_bad(n, bad)))))
    assert (len(records), len(records.bad)) == (n - bad, bad)


def test_above_the_fraction_stops_and_names_ten(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_with_bad(1000, 12))
    with pytest.raises(DataError) as error:
        load_records(JsonlSource(path=str(path)))
    text = str(error.value)
    assert "12 of 1000 rows are bad (1.20%, allowed 1.00%)" in text and "and 2 more" in text
    assert all(f"{path}:{line}: broken JSON" in text for line in range(1, 11)) and f"{path}:11" not in text


def test_one_bad_row_too_many_stops(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_with_bad(99, 1))
    with pytest.raises(DataError, match="1 of 99 rows"):
        load_records(JsonlSource(path=str(path)))
    assert len(load_records(JsonlSource(path=str(path)), max_bad_fraction=0.02)) == 98


def test_no_rows_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no rows") as error:
        load_records(JsonlSource(path=str(write(tmp_path / "a.jsonl", []))))
    with pytest.raises(DataError, match="1 of 1 rows"):
        load_records(JsonlSource(path=str(write(tmp_path / "b.jsonl", ["{"]))), max_bad_fraction=1.0)
    assert isinstance(error.value, ValueError)


def test_missing_paths_name_path_and_mend(tmp_path):
    for source in (JsonlSource(path=str(tmp_path / "no")), Gsm8kSource(path=str(tmp_path / "no"))):
        with pytest.raises(DataError, match=r"no: no such file .*correct data path"):
            load_records(source)
    with pytest.raises(DataError, match="no such folder"):
        load_records(ImageFolderSource(path=str(tmp_path / "no")))
    with pytest.raises(DataError, match="is a folder") as error:
        load_records(JsonlSource(path=str(tmp_path)))
    assert "imagefolder" in str(error.value)


def test_environment_variables_and_relative_paths(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", [GOOD])
    monkeypatch.setenv("DYME_TEST_DIR", str(tmp_path))
    assert len(load_records(JsonlSource(path="${DYME_TEST_DIR}/a.jsonl"))) == 1
    monkeypatch.chdir(tmp_path)
    assert len(load_records(JsonlSource(path="a.jsonl"))) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_records(JsonlSource(path="~/a.jsonl"))) == 1
    monkeypatch.delenv("DYME_TEST_DIR")
    with pytest.raises(DataError, match="DYME_TEST_DIR is not set"):
        load_records(JsonlSource(path="${DYME_TEST_DIR}/a.jsonl"))


def test_imagefolder_goes_through_lines(tmp_path):
    picture(tmp_path / "train" / "images" / "a.png")
    rows = [{**GOOD, "id": str(i), "file_name": "images/a.png"} for i in range(3)]
    write(tmp_path / "train" / "metadata.jsonl", [*rows, GOOD])
    records = read_records(ImageFolderSource(path=str(tmp_path), split="train"))
    assert len(records) == 3 and len({r.image for r in records}) == 1
    assert "no file_name" in records.bad[0].reason
    with pytest.raises(DataError, match="set split to one of: train"):
        load_records(ImageFolderSource(path=str(tmp_path)))


def test_gsm8k_as_published_and_already_split(tmp_path):
    answer = "He ate 2*600=<<2*600=1200>>1200 eggs.\nSo 1,200.\n#### 1,200"
    path = write(
        tmp_path / "train.jsonl",
        [
            {"question": "eggs?", "answer": answer},
            {"question": "x?", "answer": "72", "hint": "48+24 = 72"},
            {"question": "x?", "answer": "72"},
            {"question": "x?", "answer": "so\n#### many"},
        ],
    )
    records = read_records(Gsm8kSource(path=str(path)))
    assert records[0].answers == ("1200",) and records[0].hint == "He ate 2*600=1200 eggs.\nSo 1,200."
    assert records[1].answers == ("72",) and records[1].hint == "48+24 = 72"
    assert "no '####'" in records.bad[0].reason and "'many' is not a number" in records.bad[1].reason


def test_record_set_is_a_sequence_that_pickles(tmp_path):
    path = write(tmp_path / "a.jsonl", [{**GOOD, "id": str(i)} for i in range(5)] + ["{"])
    records = read_records(JsonlSource(path=str(path)))
    assert [r.id for r in records] == [records[i].id for i in range(5)]
    assert [r.id for r in records[1:3]] == ["1", "2"] and records[-1].id == "4"
    assert pickle.loads(pickle.dumps(records)) == records
