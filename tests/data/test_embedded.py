"""Pictures that lie in a row: as data URIs, base64 and bytes, and the ways to name one that lies in a file."""

from __future__ import annotations

import base64
import json
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyme.data import DatasetSource, ImageError, JsonlSource, read_records
from dyme.data.check import check
from dyme.data.embedded import PictureInFile
from dyme.data.rows import Item, to_records
from dyme.predict.questions import read_questions
from tests.helpers.broken_files import bomb


def encoded(form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    file = BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(file, form)
    return file.getvalue()


PNG = encoded()
TEXT = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{TEXT}"


def jsonl(folder: Path, *images: object, key: str = "image") -> JsonlSource:
    rows = [{"question": "q", "answer": "1", key: image} for image in images]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(path=str(folder / "rows.jsonl"))


@pytest.mark.parametrize(
    "text",
    [
        URI,
        f"DATA:image/PNG;name=a.png;BASE64,{TEXT}",
        f"data:;base64,{TEXT}",
        f"  data:image/png;base64,{TEXT}\n",
        "data:image/png;base64," + "\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
        "data:image/png;base64," + TEXT.replace("+", "-").replace("/", "_").rstrip("="),
        "data:image/png;base64," + TEXT.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        TEXT,
        base64.b64encode(encoded("JPEG")).decode(),
        base64.b64encode(encoded("WEBP")).decode(),
        {"bytes": None, "path": URI},
        {"url": URI},
        {"bytes": TEXT, "path": "a.png"},
    ],
)
def test_a_picture_as_text(tmp_path, text):
    source = jsonl(tmp_path, text, [text, text])
    one, two = read_records(source)
    assert [image.load().size for image in (*one.images, *two.images)] == [(40, 30)] * 3
    assert set(check(source).sizes) == {(40, 30)}


def test_it_stays_in_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    source = jsonl(tmp_path, [URI, "a.png"], TEXT, key="images")
    text = (tmp_path / "rows.jsonl").read_bytes()
    for start in (b"", b"\xef\xbb\xbf", b"\n\r\n"):
        (tmp_path / "rows.jsonl").write_bytes(start + text)
        records = read_records(source)
        assert all(isinstance(record.images[0].draw, PictureInFile) for record in records)
        assert len(pickle.dumps(records)) < 2000 < len(URI)
        assert [image.load().size for record in pickle.loads(pickle.dumps(records)) for image in record.images] == [
            (40, 30)
        ] * 3
    (tmp_path / "rows.jsonl").write_bytes(b" " * 50 + text)
    with pytest.raises(ImageError, match=r"rows\.jsonl:3 images\[0\]: "):
        records[0].images[0].load()
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ImageError, match="cannot be read again"):
        records[0].images[0].load()


def test_text_with_escapes_is_held_as_it_is(tmp_path):
    source = jsonl(tmp_path, URI)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace("/", "\\/"))
    (record,) = read_records(source)
    assert record.images[0].load().size == (40, 30) and PNG in pickle.dumps(record)
    assert len(repr(record)) < 500


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: {"bytes": data, "path": "x.png"}])
def test_bytes_in_a_cell(tmp_path, wrap):
    rows = [{"question": "q", "answer": "1", "image": wrap(data)} for data in (PNG, b"no picture", PNG[:60])]
    items = [Item(tmp_path / "a.parquet", n, row, f"a-{n}") for n, row in enumerate(rows, 1)]
    records = to_records(tmp_path, items, lambda row: row)
    assert records[0].images[0].load().size == (40, 30) and len(records) == 2
    assert "image: not a readable picture" in records.bad[0].reason
    with pytest.raises(ImageError, match=r"a\.parquet:3 image: picture is truncated"):
        records[1].images[0].load()


def test_columns_of_a_data_set(tmp_path):
    from datasets import ClassLabel, Dataset, Features, List, Value
    from datasets import Image as Picture

    text = Value("string")
    features = Features(
        {
            "question": text,
            "answer": Value("float64"),
            "answers": List(ClassLabel(names=["cat", "dog"])),
            "image": Value("binary"),
            "images": List(Picture()),
            "kind": Value("binary"),
            "stored": {"bytes": Value("binary"), "path": text},
        }
    )
    held = {
        "question": ["a", "b", "c", "d"],
        "answer": [float("nan"), 2.5, None, float("inf")],
        "answers": [[0, 1], None, None, None],
        "image": [PNG, None, PNG[:50], PNG],
        "images": [None, [{"bytes": PNG}, None], [], []],
        "kind": [b"easy", None, None, None],
        "stored": [{"bytes": PNG, "path": None}, None, {"bytes": None, "path": None}, {"bytes": PNG, "path": "x"}],
    }
    Dataset.from_dict(held, features=features).save_to_disk(str(tmp_path / "set"))
    source = DatasetSource(path=str(tmp_path / "set"))
    records = read_records(source)
    assert [record.answers for record in records] == [("cat", "dog")] and records[0].kind == "easy"
    assert records[0].images[0].load().size == (40, 30)
    assert [bad.line for bad in records.bad] == [2, 3, 4]
    assert [bad.reason.split(";")[0] for bad in records.bad] == [
        "images[1] names no picture",
        "no answer",
        "answer is a number beyond the range of floats",
    ]
    stored = read_records(source.model_copy(update={"fields": {"image": "stored", "answer": "question"}}))
    assert [len(record.images) for record in stored] == [1, 0, 1] and stored.bad[0].line == 2
    assert check(source).total == 4


BAD = [
    ("data:image/png;base64,", "image: not a readable picture: empty"),
    (f"data:image/png;base64,{TEXT[:90]}!{TEXT[90:]}", "image: broken base64 of a picture"),
    ("data:image/png;base64,é" + TEXT, "image: broken base64"),
    (f"data:image/png;base64,{TEXT[:41]}", "image: "),
    ("data:image/svg+xml,%3Csvg/%3E", "SVG"),
    ("data:text/plain;base64," + base64.b64encode(b"hello").decode(), "image: not a readable picture"),
    ("https://example.com/a.png", "image: https://example.com/a.png is an address, not a file; download"),
    ("s3://bucket/a.png", "is an address"),
    ("x" * 5000, "is no name of a file and no data URI"),
    ("a\0b.png", "control character \\x00"),
    ({"bytes": None, "path": None}, "holds none of bytes, path and url"),
    ({"bytes": [1, 2]}, "image: is a list; write a path"),
    ({"other": 1}, "holds none of"),
    ([[URI]], "image[0]: is a list"),
    (["a.png", None], "no such picture"),
    ([URI, None], "image[1] names no picture"),
    (True, "image is a bool"),
]


@pytest.mark.parametrize(("image", "reason"), BAD, ids=range(len(BAD)))
def test_what_is_no_picture_is_a_bad_row(tmp_path, image, reason):
    records = read_records(jsonl(tmp_path, image, URI))
    assert len(records) == 1 and reason in records.bad[0].reason and len(str(records.bad[0])) < 1000


def test_bombs_in_a_row_are_found_by_their_header(tmp_path):
    data = bomb(tmp_path / "bomb.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert "more than 64 megapixels" in read_records(jsonl(tmp_path, uri)).bad[0].reason


def test_names_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "a b.png", "~c.png", "no_ending"):
        (tmp_path / name).write_bytes(PNG)
    images = [
        "a.png",
        "./a.png",
        str(tmp_path / "a.png"),
        "~/a.png",
        f"file://{tmp_path}/a%20b.png",
        "~c.png",
        "no_ending",
    ]
    records = read_records(jsonl(tmp_path, *images, *[{"path": name} for name in images]))
    assert not records.bad and {image.load().size for r in records for image in r.images} == {(40, 30)}
    assert {image.path.parent for r in records for image in r.images if image.path} == {tmp_path}


def test_predict_does_not_copy_them_into_its_answers(tmp_path):
    jsonl(tmp_path, URI, [URI, "a.png"])
    first, second = read_questions(tmp_path / "rows.jsonl")
    assert first.record is not None and len(first.image) < 100 and first.image.startswith("data:image/png;base64,")
    assert second.record is None and second.image == [first.image, "a.png"]


def test_pixels_are_those_of_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    records = read_records(jsonl(tmp_path, "a.png", URI))
    assert np.array_equal(*(np.asarray(record.images[0].load()) for record in records))
