"""Layouts of data sets: each row of the table in docs/data.md on a small set, and the rules that the page states."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from dyme.data import DataError, FilesSource, JsonlSource, Record, SourceConfig, load_records, read_records
from dyme.data.__main__ import main
from dyme.data.choices import as_list
from dyme.data.errors import RowError
from dyme.data.layouts import with_our_keys
from dyme.data.parquet import ParquetPicture
from dyme.data.renames import suggested
from dyme.data.spec import parse_spec
from tests.data import layouts
from tests.data.layouts import BUILDERS, cell, document, lines, parquet, rows, text

SOURCE: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
PAGE = Path(__file__).parents[2] / "docs" / "data.md"
COMMANDS = re.findall(r"^\| .* \| `python -m dyme\.data (check [^`]*)` \|$", PAGE.read_text(encoding="utf-8"), re.M)

FIRST = {
    "by_id.json": ("17", "what is 0?", ("0",), (), 0),
    "columns.json": ("columns-1", "p", ("1",), (), 0),
    "table.csv": ("1", 'one,\n"two"?', ("3",), (), 0),
    "table.tsv": ("table-2", 'a "b", c?', ("1",), (), 0),
    "llava.json": ("7", "What colour?", ("Red.",), (), 1),
    "chat.jsonl": ("chat-1", "What colour?", ("Red.",), (), 1),
    "cauldron.parquet": ("cauldron-1", "What colour?", ("Red.",), (), 1),
    "renamed.jsonl": ("renamed-1", "q?", ("1",), (), 0),
    "options.jsonl": ("index", "q?", ("no",), ("yes", "no"), 0),
    "from_one.jsonl": ("from_one-1", "q?", ("y",), ("x", "y"), 0),
    "arc.jsonl": ("arc-1", "q?", ("y",), ("x", "y"), 0),
    "mmbench.tsv": ("241", "Which?", ("y",), ("x", "y", "z", "w"), 1),
    "scienceqa.parquet": ("scienceqa-1", "Which?", ("y",), ("x", "y"), 1),
    "mathvista.parquet": ("1", "How much?", ("1.2",), (), 1),
    "chartqa.parquet": ("chartqa-1", "How many?", ("3",), (), 1),
    "chartqa": ("train_human-1", "How many?", ("3",), (), 1),
    "vqav2.parquet": ("9", "Where?", ("a", "a", "net"), (), 1),
    "textvqa.parquet": ("3", "q?", ("a", "b"), (), 1),
    "ai2d.parquet": ("ai2d-1", "q?", ("y",), ("x", "y"), 1),
    "mmmu.parquet": ("v_1", "q?", ("y's",), ("x", "y's"), 2),
}
"""Id, question, answers, choices and number of pictures of the first record, where a layout is more than a format."""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str]:
    status = main(list(arguments))
    return status, capsys.readouterr().out


def named_in(command: str) -> str:
    return re.sub(r"^files:path=|,.*$", "", shlex.split(command)[1])


def first_of(record: Record) -> tuple:
    return record.id, record.question, record.answers, record.choices, len(record.images)


def read(path: str, *held: object, **values: object) -> tuple[list[Record], list[str]]:
    """Records and reasons of bad rows of a file of JSON lines."""
    lines(path, list(held))
    found = read_records(FilesSource(path=path, **values))
    return list(found), [row.reason for row in found.bad]


def test_every_row_of_the_table_has_a_builder():
    assert sorted(map(named_in, COMMANDS)) == sorted(BUILDERS)


@pytest.mark.parametrize("command", COMMANDS, ids=[named_in(command) for command in COMMANDS])
def test_the_command_of_the_table_reads_it(here, capsys, command):
    name = named_in(command)
    BUILDERS[name]()
    status, out = run(capsys, *shlex.split(command))
    assert status == 0 and " 0 bad" in out and "Traceback" not in out, out
    section = yaml.safe_load(out[out.index("\ndata:\n") :])["data"]
    assert section["train"]["path"] == name
    for values in section.values():  # what check prints for a configuration reads the same records
        found = [pickle.loads(pickle.dumps(record)) for record in load_records(SOURCE.validate_python(values))]
        assert found and all(image.load().size == (8, 6) for record in found for image in record.images)
    if name in FIRST:
        assert first_of(load_records(SOURCE.validate_python(section["train"]))[0]) == FIRST[name]


def test_splits_and_parts_of_folders(here):
    BUILDERS["snapshot"]()
    BUILDERS["chartqa"]()
    assert [named.source.split for named in parse_spec("snapshot")] == ["train", "test"]
    assert [(n.source.split, n.source.part) for n in parse_spec("chartqa")] == [("train", "both"), ("val", "augmented")]
    records = load_records(FilesSource(path="snapshot", split="train"))
    assert [r.id for r in records][::3] == ["train-00000-of-00002-1", "train-00001-of-00002-1"]
    assert records.origin(4) == (here / "snapshot/data/train-00001-of-00002.parquet", 2)
    with pytest.raises(DataError, match="set split to one of: train, test"):
        read_records(FilesSource(path="snapshot"))
    BUILDERS["several"]()
    with pytest.raises(DataError, match="set config to one of: easy, hard"):
        parse_spec("several")
    text("snapshot/README.md", "---\nconfigs: [\n---\n")
    with pytest.raises(DataError, match="no data files found"):
        read_records(FilesSource(path="snapshot"))


def test_the_folder_of_a_hub_cache(here):
    layouts.shards("cache/snapshots/0123abc/data")
    assert [named.source.split for named in parse_spec("cache")] == ["train", "test"]


def test_more_than_the_first_options(here):
    BUILDERS["options.jsonl"]()
    assert {r.answer for r in read_records(FilesSource(path="options.jsonl"))} == {"no"}
    BUILDERS["mmbench.tsv"]()
    second = read_records(FilesSource(path="mmbench.tsv"))[1]
    assert (second.question, second.answer, second.choices, second.hint) == ("Is it\nso?", "x", ("x", "y"), "look")


def asked(answer: object, choices: object, **more: object) -> dict:
    return {"question": "q?", "answer": answer, "choices": choices, **more}


@pytest.mark.parametrize(
    ("answer", "choices", "wanted"),
    [
        (1, ["x", "y"], "y"),
        (1.0, ["x", "y"], "y"),
        ("1", ["x", "y"], "y"),
        ("b", ["x", "y"], "y"),
        ("(B)", ["x", "y"], "y"),
        ("B.", ["x", "y"], "y"),
        ("B. y", ["x", "y"], "y"),
        ("y", ["A. x", "B. y"], "B. y"),
        ("B", ["A. x", "B. y"], "B. y"),
        (12, [9, 12], "12"),
        (12.0, ["9", "12"], "12"),
        (True, ["No", "Yes"], "Yes"),
        (False, ["true", "false"], "false"),
        ("B", {"A": "x", "B": "y", "C": None}, "y"),
        ("B", [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "y"),
        ("2", {"label": ["1", "2"], "text": ["2", "3"]}, "3"),  # labels of the file's own
        ("y", '["x", "y"]', "y"),
        ("y", "['x', 'y']", "y"),
        ("x", ["x", "x", "y"], "x"),
    ],
)
def test_an_answer_means_an_option(here, answer, choices, wanted):
    found, reasons = read("a.jsonl", asked(answer, choices))
    assert [r.answer for r in found] == [wanted], reasons
    assert wanted in found[0].choices


@pytest.mark.parametrize(
    ("answer", "choices", "reason"),
    [
        (2, ["x", "y"], "0 to 1; where answers are counted from 1, read the file by source files with first_index: 1"),
        (-1, ["x", "y"], "write the text of one, its letter or its index, 0 to 1"),
        (0.5, ["x", "y"], "is not one of"),
        ("C", ["x", "y"], "is not one of"),
        ("B. x", ["x", "y"], "is not one of"),
        ("Y", ["x", "y"], "is not one of"),
        (True, ["x", "y"], "answer True is not one of"),
        ("ab", "['a' 'b']", "choices is a str"),
        ("x", 7, "choices is a int"),
        ("x", {"label": ["A"], "text": ["x", "y"]}, "1 labels and 2 texts"),
        ([0], ["x", "y"], "answer is a list"),
    ],
)
def test_an_answer_that_means_none_is_a_bad_row_with_the_mend(here, answer, choices, reason):
    found, reasons = read("a.jsonl", asked(answer, choices))
    assert not found and reason in reasons[0]


def test_booleans_without_choices(here):
    found, _ = read("a.jsonl", {"question": "q?", "answer": True}, {"question": "q?", "answers": [False, "none"]})
    assert [r.answers for r in found] == [("yes",), ("no", "none")]


def test_other_rows_decide_what_a_number_among_numbers_means(here):
    doubtful = asked(1, ["3", "0", "1"])
    assert [r.answer for r in read("text.jsonl", doubtful, asked("red", ["red", "blue"]))[0]] == ["1", "red"]
    assert [r.answer for r in read("index.jsonl", doubtful, asked(1, ["red", "blue"]))[0]] == ["0", "blue"]
    assert [r.answer for r in read("alone.jsonl", doubtful)[0]] == ["1"]
    both = (doubtful, asked(1, ["red", "blue"]), asked("red", ["red", "blue"]))
    assert [r.answer for r in read("both.jsonl", *both)[0]] == ["1", "blue", "red"]


def test_options_in_columns(here):
    for names in ("AB", ("option_a", "option_b"), ("optionA", "optionB"), ("choice 1", "choice 2"), ("opa", "opb")):
        [found], _ = read("a.jsonl", {"question": "q?", "answer": "y", **dict(zip(names, "xy"))})
        assert found.choices == ("x", "y")
    [found], _ = read("a.jsonl", {"question": "q?", "answer": "2", "option1": "x", "option2": "y"})
    assert found.answer == "y"
    [found], _ = read("a.jsonl", {"question": "q?", "answer": "y", "A": "only one"})
    assert found.choices == ()


def said(*turns: tuple[str, object], **more: object) -> dict:
    return {"messages": [{"role": who, "content": content} for who, content in turns], **more}


def test_conversations(here):
    for name in ("a", "b"):
        layouts.picture(f"{name}.png")
    part = {"type": "image_url", "image_url": {"url": "b.png"}}
    found, reasons = read(
        "a.jsonl",
        said(("user", "q?"), ("assistant", "1"), ("user", "more?"), ("assistant", "2")),
        said(("user", "<image> or <image>?"), ("assistant", "1"), images=["a.png", "b.png"]),
        said(("user", "<image><image>\nq?"), ("assistant", "1"), images=["a.png", "b.png"]),
        said(
            ("user", "q?<image>"),
            ("assistant", "1"),
            ("user", "<image>?"),
            ("assistant", "2"),
            image=["a.png", "b.png"],
        ),
        said(("user", [{"type": "text", "text": "q?"}, part]), ("assistant", "1")),
        said(("user", "q?"), ("assistant", "1"), ("tool", None), ("user", [{"type": "video"}])),
        said(("user", "q?"), answer="gold"),
        said(("assistant", "hello"), ("user", "q?"), ("assistant", "1")),
        said(("user", "<image>q?"), ("assistant", "1")),
        said(("user", "q?")),
        said(("system", "q?"), ("assistant", "1")),
        said(("user", [{"type": "video", "video": "a.mp4"}]), ("assistant", "1")),
    )
    assert [(r.question, r.answer, [i.path.name for i in r.images]) for r in found] == [
        ("q?", "1", []),
        ("<image> or <image>?", "1", ["a.png", "b.png"]),
        ("q?", "1", ["a.png", "b.png"]),
        ("q?", "1", ["a.png"]),
        ("q?", "1", ["b.png"]),
        ("q?", "1", []),
        ("q?", "gold", []),
        ("q?", "1", []),
    ]
    wanted = ("1 <image> marks in the question and 0 pictures", "no reply after", "no turn of a user", "'video'")
    assert [part in reason for part, reason in zip(wanted, reasons, strict=True)] == [True] * 4


def test_pictures_of_parquet_stay_in_the_file(here, monkeypatch):
    held = [{"question": f"{k}?", "answer": "1", "image": cell("red" if k % 2 else "blue")} for k in range(5)]
    parquet("a.parquet", held)
    images = [r.images[0] for r in read_records(FilesSource(path="a.parquet"))]
    assert [image.load().getpixel((0, 0)) for image in images] == [(0, 0, 255), (255, 0, 0)] * 2 + [(0, 0, 255)]
    draw = images[3].draw
    assert isinstance(draw, ParquetPicture) and (draw.group, draw.row) == (1, 1)
    assert len(pickle.dumps(images)) < 1000
    monkeypatch.setattr("dyme.data.parquet._KEPT", 0)  # as where a row group is too large to keep
    assert images[3].load().getpixel((0, 0)) == (255, 0, 0)
    Path("a.parquet").write_bytes(Path("a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_records(FilesSource(path="a.parquet"))


def test_rows_without_pictures_among_those_with(here):
    empty = {"bytes": None, "path": None}
    for name, value in (("struct", empty), ("null", None)):
        parquet(
            f"{name}.parquet", [{"question": "q?", "answer": "1", "image": image} for image in (cell("red"), value)]
        )
        assert [len(r.images) for r in read_records(FilesSource(path=f"{name}.parquet"))] == [1, 0]
    several = [[cell("red"), cell("blue")], [], None, [cell("red"), empty]]
    parquet("list.parquet", [{"question": "q?", "answer": "1", "images": images} for images in several])
    found = read_records(FilesSource(path="list.parquet"))
    assert [len(r.images) for r in found] == [2, 0, 0] and "images[1]" in found.bad[0].reason
    plain = [{"question": "q?", "answer": b"1", "image": image} for image in (layouts.png("red"), None)]
    parquet("bytes.parquet", plain)
    found = read_records(FilesSource(path="bytes.parquet"))
    assert [(r.answer, len(r.images)) for r in found] == [("1", 1), ("1", 0)] and found[0].images[0].load().size == (
        8,
        6,
    )


def test_class_labels_of_parquet_are_names(here):
    from datasets import ClassLabel, Dataset, Features, List, Value

    label = ClassLabel(names=["cat", "dog"])
    features = Features({"question": Value("string"), "answer": label, "answers": List(label)})
    held = {"question": ["p", "q"], "answer": [1, None], "answers": [[1, 0], [0]]}
    Dataset.from_dict(held, features=features).to_parquet("a.parquet")
    assert [r.answers for r in read_records(FilesSource(path="a.parquet"))] == [("dog", "cat"), ("cat",)]


def test_a_broken_row_of_a_table_costs_itself(here):
    good = "".join(f"{k},q{k}?,{k}\n" for k in range(50))
    text("a.csv", 'id,question,answer\n"open,q?,1\n' + good + 'wide,q?,1,2\n"x",q?,3\nlast,"q?,1\n')
    found = read_records(FilesSource(path="a.csv"))
    assert [r.id for r in found] == [*map(str, range(50)), "x"]
    assert [(row.line, row.reason.split(";")[0]) for row in found.bad] == [
        (2, "a quote that is not closed"),
        (53, "4 cells where the header has 3"),
        (55, "a quote that is not closed"),
    ]
    Path("a.csv").write_bytes(b"question,answer\n\xff?,1\nq?,1\n" + '图?,"x y"\n'.encode())
    found = read_records(FilesSource(path="a.csv"))
    assert [r.answer for r in found] == ["1", "x y"] and "not UTF-8" in found.bad[0].reason
    Path("a.csv").write_bytes("question;answer\nq?;1\n".encode("utf-16"))
    assert len(read_records(FilesSource(path="a.csv"))) == 1
    text("a.csv", "sep=;\r\nquestion;answer\r\na, b;1\r\n")
    assert first_of(read_records(FilesSource(path="a.csv"))[0])[:3] == ("a-3", "a, b", ("1",))
    text("a.csv", "question,question\n1,2\n")
    with pytest.raises(DataError, match="'question' twice"):
        read_records(FilesSource(path="a.csv"))


def test_a_bad_entry_of_an_object_costs_itself(here):
    good = json.dumps(rows()[0])
    text(
        "a.json",
        f'{{"a": {good},\n"deep": {{"x": {"[" * 5000}{"]" * 5000}}},\n"long": {{"x": {"9" * 5000}}}, "b": {good}}}',
    )
    found = read_records(FilesSource(path="a.json"))
    assert [r.id for r in found] == ["a", "b"] and len(found.bad) == 2


MAGIC = [
    (b"\x1f\x8b\x08rest", "unpack it by gunzip"),
    (b"PK\x03\x04rest", "save the sheet as csv"),
    (b"\x89PNG\r\n\x1a\n", "is a picture"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"\x00\x01\x02", "binary file of an unknown kind"),
    (b"just a sentence\n", "jsonl:path=a.jsonl, if it is a table write files:path=a.jsonl,format=csv"),
    (b'{\n "question": "q",\n "answer": 1\n}\n{\n "question": "q"\n}\n', "write one to a line, or a list"),
    (b'{"train": [{"question": "q?"}], "test": [{"question": "q?"}]}', "several lists of rows (train, test)"),
    (b'[{"question": "q?"}\n', "a.jsonl:2: broken JSON"),
]


@pytest.mark.parametrize(("data", "reason"), MAGIC, ids=[reason[:12] for _, reason in MAGIC])
def test_a_file_of_another_kind_is_one_line(here, capsys, data, reason):
    Path("a.jsonl").write_bytes(data)
    for spec in ("a.jsonl", "files:path=a.jsonl"):
        status, out = run(capsys, "check", spec)
        assert status == 2 and len(out.splitlines()) == 1 and reason in out, out


def test_a_named_source_refuses_a_file_of_another_kind(here):
    parquet("a.jsonl", rows())
    with pytest.raises(DataError, match="is a parquet file, not JSON lines; source files reads it as data"):
        read_records(JsonlSource(path="a.jsonl"))
    assert [named.source.source for named in parse_spec("a.jsonl")] == ["files"]


def test_names_decide_nothing(here):
    lines("gsm8k_project/table.csv", rows())
    assert [named.source.source for named in parse_spec("gsm8k_project/table.csv")] == ["jsonl"]
    lines("b.json", rows())
    assert [named.source.source for named in parse_spec("b.json")] == ["jsonl"]
    document("c.jsonl", rows())
    assert [named.source.source for named in parse_spec("c.jsonl")] == ["files"]


def test_a_bad_first_row_does_not_decide(here):
    document("a.json", [{"x": 1}, 3, *rows()])
    assert len(read_records(parse_spec("a.json")[0].source)) == 3
    lines(
        "b.jsonl", [{"question": "q?", "answer": "3"}, *({"question": "q?", "answer": "so #### 3"} for _ in range(7))]
    )
    assert parse_spec("b.jsonl")[0].source.source == "gsm8k"
    for broken in (b"\xff\xff\xff\xff", b"\x1f\x8b", b"[[[[", b"{", b"PAR2", b'"', b"a,b"):
        Path("c.jsonl").write_bytes(broken + b"\n" + b'{"question": "q?", "answer": "1"}\n' * 3)
        found = read_records(parse_spec("c.jsonl")[0].source)
        assert (len(found), len(found.bad)) == (3, 1)


def test_of_two_likely_guesses_both_are_named(here):
    lines("a.jsonl", [{"question": "q?", "answer": "so #### 3"}, {"question": "q?", "answer": "3"}])
    with pytest.raises(DataError, match=r"write gsm8k:path=a.jsonl, if not write jsonl:path=a.jsonl"):
        parse_spec("a.jsonl")
    lines("two/metadata.jsonl", rows())
    text("two/state.json", "{}")
    with pytest.raises(DataError, match="imagefolder:path=two or dataset:path=two"):
        parse_spec("two")
    lines("mixed/a.jsonl", rows())
    text("mixed/b.csv", "question,answer\nq?,1\n")
    with pytest.raises(DataError, match=r"files:path=.*a.jsonl or files:path=.*b.csv"):
        parse_spec("mixed")


def test_fields_of_the_command_line_and_of_a_written_source(here, capsys):
    lines("a.jsonl", [{"problem": "q?", "gold": "1", "opts": ["1", "2"]}])
    fields = "question=problem,answer=gold,choices=opts"
    written = parse_spec("jsonl:path=a.jsonl,fields.question=problem,fields.answer=gold,fields.choices=opts")
    assert parse_spec("a.jsonl", fields)[0].source == written[0].source
    status, _ = run(capsys, "show", "a.jsonl", "--fields", fields, "--out", "sheet.png")
    assert status == 0 and Path("sheet.png").is_file()
    for wrong, reason in (("quest=a", "fields.quest"), ("question", "not key=value"), ("question=no", "in no row")):
        status, out = run(capsys, "check", "a.jsonl", "--fields", wrong)
        assert status == 2 and reason in out, out
    status, out = run(capsys, "check", "charts:count=3", "--fields", fields)
    assert status == 2 and "charts takes no fields" in out
    # a set of a known layout is read by a source that takes fields
    document("b.json", [{"question_wo_prompt": "q?", "question": "p", "answer": "1"}])
    assert parse_spec("b.json", "question=question_wo_prompt")[0].source.source == "files"


def test_keys_of_another_name_are_suggested(here, capsys):
    lines("a.jsonl", [{"problem": "q?", "solution": "1", "options": ["1", "2"], "img": "a.png"}])
    status, out = run(capsys, "check", "a.jsonl")
    assert status == 1 and "if 'problem' is the question, write fields: {question: problem}" in out
    assert "--fields question=problem,answer=solution,choices=options,image=img" in out
    assert "fields: {question: problem, answer: solution, choices: options, image: img}" in out
    assert "choices none, hint none" in out  # not "all" of no row


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        (["Problem", "Ground-Truth"], {"question": "Problem", "answer": "Ground-Truth"}),
        (["question", "response", "cot"], {"answer": "response", "hint": "cot"}),
        (["question", "answer", "solution"], {"hint": "solution"}),
        (["q", "a"], {"question": "q", "answer": "a"}),
        (["a", "b"], {}),
        (["question", "answers", "label", "file_name", "image_path"], {}),
    ],
)
def test_suggestions(keys, wanted):
    assert suggested(keys, ("question", "answer", "choices", "image", "hint")) == wanted


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system"]) | VALUES,
            "from": st.sampled_from(["human", "gpt"]),
            "content": st.lists(st.fixed_dictionaries({"type": VALUES, "text": VALUES})) | VALUES,
            "value": st.text(max_size=4) | st.just("<image>\nq"),
        },
    ),
    max_size=4,
)
KEYS = ("id", "question", "answer", "answers", "choices", "image", "images", "A", "B", "image_1")


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES) | st.fixed_dictionaries({"messages": TURNS, "image": VALUES}))
def test_any_row_is_converted_or_a_row_error(row):
    try:
        assert isinstance(with_our_keys(row), dict)
    except RowError as error:
        assert "\n" not in str(error)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=4))
def test_lists_that_tables_write_as_text_come_back(value):
    assert as_list(repr(value)) == value and as_list(json.dumps(value)) == value


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet='ab",\n\r \t;', max_size=6), min_size=3, max_size=3), st.binary(max_size=30))
def test_a_table_of_anything_keeps_its_good_rows(tmp_path_factory, cells, tail):
    import csv

    path = tmp_path_factory.mktemp("table") / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "question", "answer", "hint"], ["1", "q?", "3", ""], ["2", *cells]])
    whole = path.read_bytes()
    found = read_records(FilesSource(path=str(path), delimiter=","))
    assert len(found) + len(found.bad) == 2 and found[0].answer == "3"
    path.write_bytes(whole + tail)
    assert read_records(FilesSource(path=str(path), delimiter=","))[0].answer == "3"


def test_many_bad_rows_alike_are_one_line(here, capsys):
    good = {"question": "q?", "answer": "1"}
    lines("a.jsonl", [good, *({"question": "q?", "id": f"id {k}"} for k in range(300)), {"answer": 1}, good])
    status, out = run(capsys, "check", "a.jsonl")
    assert status == 1 and "303: 2 good, 301 bad" in out
    assert out.count("no answer; its keys are question, id") == 3
    assert "bad 297 more like it up to a.jsonl:301; 300 in all" in out and "a.jsonl:302 (a-302): no question" in out


def test_the_sheet_names_what_no_font_can_write(here, capsys, monkeypatch):
    monkeypatch.setattr("dyme.data.fonts._system_fonts", lambda: ())
    lines("a.jsonl", [{"question": "图像?", "answer": "1", "facts": "蓝 2"}, {"question": "q", "answer": "1"}])
    status, out = run(capsys, "show", "a.jsonl", "--out", "sheet.png")
    assert status == 0 and "install fonts-noto-cjk" in out and "图" in out, out
    lines("a.jsonl", rows(facts="blue 2"))
    assert "install" not in run(capsys, "show", "a.jsonl", "--out", "sheet.png")[1]


def test_a_font_of_the_machine_is_taken_where_it_has_the_script():
    import matplotlib

    from dyme.data import fonts

    ours = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "_system_fonts", lambda: (str(ours),))
        fonts.font_for.cache_clear()
        assert Path(fonts.font_for("цвет ᚠ ⠿", 12).path) == ours and fonts.unwritable("цвет ⠿ 图") == {"图"}
        assert not isinstance(fonts.font_for("colour", 12).path, str)
    fonts.font_for.cache_clear()
    assert fonts.package_with("图") == fonts.package_with("あ") == "fonts-noto-cjk"
    assert fonts.package_with("ᚠ") == "fonts-noto"


def test_facts_are_on_the_sheet():
    from dyme.data.sheet import _lines, contact_sheet

    record = Record("a", "q?", ("1",), facts="blue 2")
    assert "facts: blue 2" in _lines(record)
    assert isinstance(contact_sheet([record], 1), Image.Image)
