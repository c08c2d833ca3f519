"""Records with several pictures: from every kind of source, in checks, sheets, rewards and predictions."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dyme.data import JsonlSource, read_records
from dyme.data.check import check
from dyme.data.dataset import DatasetSource
from dyme.data.images import side_by_side
from dyme.data.sheet import contact_sheet
from dyme.predict.questions import read_questions
from dyme.rewards.user import pictures


@pytest.fixture
def folder(tmp_path):
    for name, color, size in (("a", "red", (8, 6)), ("b", "blue", (4, 3))):
        Image.new("RGB", size, color).save(tmp_path / f"{name}.png")
    return tmp_path


def rows(folder, *held: dict) -> JsonlSource:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": "q", "answer": "1", **row}) + "\n" for row in held))
    return JsonlSource(path=str(path))


@pytest.mark.parametrize("key", ["image", "images", "file_name"])
def test_a_list_of_pictures(folder, key):
    (record,) = read_records(rows(folder, {key: ["a.png", "b.png"]}))
    assert [image.load().size for image in record.images] == [(8, 6), (4, 3)]
    assert record.image == record.images[0]
    assert record.shown().size[1] == 6 and record.shown().size[0] > 8 + 8


def test_no_pictures(folder):
    for record in read_records(rows(folder, {"images": []}, {"image": None}, {})):
        assert record.images == () and record.image is None


def test_a_picture_that_is_missing_among_others(folder):
    records = read_records(rows(folder, {"images": ["a.png", "no.png"]}, {"images": ["a.png", ""]}, {"images": [3.5]}))
    reasons = [bad.reason for bad in records.bad]
    assert "no.png: no such picture" in reasons[0] and reasons[1] == "images[1] names no picture"
    assert "3.5: no such picture" in reasons[2]


def test_a_damaged_picture_among_others(folder):
    Image.effect_noise((40, 40), 90).save(folder / "b.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:700])
    report = check(rows(folder, {"images": ["a.png", "b.png"]}, {"image": "a.png"}))
    assert (report.total, report.good, report.pictures) == (2, 1, 2)
    assert "b.png" in report.bad[0].reason


def test_sheets_show_all(folder):
    sheet = contact_sheet(list(read_records(rows(folder, {"images": ["a.png", "b.png"]}))), 1)
    colors = {color for _, color in sheet.getcolors(1 << 24)}
    assert {(255, 0, 0), (0, 0, 255)} <= colors


def test_one_picture_is_shown_as_it_is():
    picture = Image.new("RGB", (3, 3))
    assert side_by_side([picture]) is picture


def test_rewards_see_all(folder):
    records = list(read_records(rows(folder, {"images": ["a.png", "b.png"]}, {"image": "a.png"}, {})))
    got = pictures(records)
    assert [len(row) for row in got] == [2, 1, 0]
    assert got[0][0] is got[1][0]  # decoded once


def test_a_hugging_face_data_set(folder):
    from datasets import Dataset, Features, Image, List, Value

    features = Features({"question": Value("string"), "answer": Value("string"), "images": List(Image())})
    held = {
        "question": ["p", "q"],
        "answer": ["1", "2"],
        "images": [[str(folder / "a.png"), str(folder / "b.png")], []],
    }
    Dataset.from_dict(held, features=features).save_to_disk(str(folder / "set"))
    first, second = read_records(DatasetSource(path=str(folder / "set")))
    assert [image.load().size for image in first.images] == [(8, 6), (4, 3)] and second.images == ()


def test_questions_for_predict(folder):
    source = rows(folder, {"images": ["a.png", "b.png"]}, {"image": "a.png"})
    several, one = read_questions(folder / "rows.jsonl")
    assert several.image == ["a.png", "b.png"] and one.image == "a.png" and source.path
    assert several.record is not None and len(several.record.images) == 2
