"""Files as people have them: where `check` leads them, and what is wrong with the file said in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dyme.data import DataError, FilesSource, Record, read_records
from dyme.data.__main__ import main
from dyme.data.spec import parse_spec
from tests.data import layouts
from tests.data.layouts import cell, lines, parquet, png, rows, text


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments: str) -> tuple[int, str]:
    status = main(list(arguments))
    return status, capsys.readouterr().out


def read(name: str, *held: dict) -> tuple[list[Record], list[str]]:
    lines(name, list(held))
    found = read_records(FilesSource(path=name))
    return list(found), [bad.reason for bad in found.bad]


def said(*turns: tuple[str, object]) -> dict:
    return {"messages": [{"role": who, "content": content} for who, content in turns]}


SETS = {
    "answers=label": [{"query": "q?", "label": ["14"], "image": cell("red")}],
    "answer=correct_choice_idx,hint=rationales": [
        {"question": "q?", "choices": ["x", "y"], "correct_choice_idx": 1, "rationales": ["so", "because"]}
    ],
    "image=decoded_image": [{"question": "q?", "answer": "1", "image": "images/1.jpg", "decoded_image": cell("red")}],
    "question=problem,answer=solution": [{"problem": "q?", "solution": "<answer> 3 </answer>", "image": cell("red")}],
}


@pytest.mark.parametrize("fields", SETS)
def test_a_suggestion_that_is_followed_leads_to_good_rows(here, capsys, fields):
    parquet("a.parquet", SETS[fields])
    _, out = run(capsys, "check", "a.parquet")
    assert fields in out
    [line] = [line for line in out.splitlines() if "keys of another name?" in line]
    status, out = run(capsys, "check", "a.parquet", "--fields", line.split("--fields ")[1].split()[0])
    assert status == 0 and "1 good, 0 bad" in out and "another name" not in out


def test_no_suggestion_for_several_questions_in_a_row(here, capsys):
    lines("a.jsonl", [{"questions": ["q?", "p?"], "answers": ["1", "2"]}] * 2)
    _, out = run(capsys, "check", "a.jsonl")
    assert "'questions' is a list: write a row for each of them" in out and "another name" not in out


@pytest.mark.parametrize(
    ("reply", "answer", "hint"),
    [
        ("<answer> 3 </answer>", "3", None),
        ("<think>one\n\ntwo</think>\n<answer>3</answer>", "3", "one\n\ntwo"),
        ("<SUMMARY> s </SUMMARY>\n\n<CONCLUSION> B </CONCLUSION>", "B", "s"),
        ("So it is B.\nAnswer:B", "B", "So it is B."),
        ("Answer: B", "B", None),
        ("The sign says: answer: me", "The sign says: answer: me", None),
        ("<answer>1</answer> or <answer>2</answer>", "<answer>1</answer> or <answer>2</answer>", None),
        ("<answer></answer>", "<answer></answer>", None),
    ],
)
def test_a_solution_is_split_into_thinking_and_answer(here, reply, answer, hint):
    [found, kept], _ = read(
        "a.jsonl", said(("user", "q?"), ("assistant", reply)), {"question": "q", "answer": reply, "hint": "mine"}
    )
    assert (found.answer, found.hint) == (answer, hint) and (kept.answer, kept.hint) == (answer, "mine")


def test_a_shard_that_is_missing_is_a_bad_row(here):
    for k in (0, 2):
        parquet(f"shards/train-0000{k}-of-00003.parquet", rows())
    found = read_records(FilesSource(path="shards"))
    assert len(found.bad) == 1 and found.bad[0].file.name == "train-00001-of-00003.parquet"
    assert "shard of the split is missing" in found.bad[0].reason
    assert not read_records(FilesSource(path="shards/train-00002-of-00003.parquet")).bad


def test_hints_that_are_context_can_be_left_out(here, capsys):
    lines("a.jsonl", [{"question": "q?", "hint": "look", "A": "x", "B": "y", "answer": "B"}])
    assert "hint is taken for the thinking" in run(capsys, "check", "a.jsonl")[1]
    status, out = run(capsys, "check", "a.jsonl", "--fields", "hint=")
    assert status == 0 and "hint none" in out and "is taken" not in out


def test_pictures_elsewhere(here, capsys):
    lines("a/rows.jsonl", [{"question": "q?", "answer": "1", "image": "1.png"}])
    layouts.picture("b/1.png")
    _, out = run(capsys, "check", "a/rows.jsonl")
    assert "write files:path=a/rows.jsonl,images=<folder>" in out
    assert run(capsys, "check", "files:path=a/rows.jsonl,images=b")[0] == 0


def test_a_table_of_many_columns(here):
    names = [f"c{k}" for k in range(100_000)]
    text("a.csv", f"question,answer,{','.join(names)}\nq?,1,{','.join('0' for _ in names)}\n")
    assert len(read_records(parse_spec("a.csv")[0].source)) == 1


def test_a_picture_of_parquet_is_read_without_its_row_group(here):
    rows = [{"question": "q?", "answer": "1", "image": {"bytes": png("red") + b"0" * 100_000}} for _ in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet", use_dictionary=False, write_batch_size=4, compression=None)
    picture = read_records(FilesSource(path="a.parquet"))[3].images[0]
    pool = pa.system_memory_pool()
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        picture.load()
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 50e6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"question": "q?", "answer": "1"},\n' * 3, "remove the comma at its end"),
        ('# rows\n{"question": "q?", "answer": "1"}\n', "without comments"),
        ("{'question': 'q?', 'answer': '1'}\n" * 3, "this is Python"),
        ('{"question": "q?", "answer": "1"}' * 3, "write one object a line"),
        ('{"question": "q?", "answer": null}\n' * 3, "its answer is empty (null or NaN)"),
    ],
)
def test_broken_json_lines_come_with_the_mend(here, capsys, data, reason):
    text("a.jsonl", data)
    status, out = run(capsys, "check", "a.jsonl")
    assert status == 1 and reason in out


@pytest.mark.parametrize("fields", ["", "question=q"])
def test_a_file_without_rows(here, capsys, fields):
    for name, data in (("a.jsonl", ""), ("a.csv", "question,answer\n"), ("a.json", "[]")):
        text(name, data)
        status, out = run(capsys, "check", name, "--fields", fields)
        assert status == 2 and "no rows" in out and len(out.splitlines()) == 1


def test_what_the_system_refuses_is_one_line(here, capsys, monkeypatch):
    os.mkfifo("pipe.jsonl")
    lines("a.jsonl", rows())

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "a.jsonl")

    for spec in ("pipe.jsonl", "a.jsonl", "jsonl:path=a.jsonl"):
        if spec != "pipe.jsonl":
            monkeypatch.setattr(Path, "open", refused)
        status, out = run(capsys, "check", spec)
        assert status == 2 and len(out.splitlines()) == 1
        assert "is no regular file" in out or "a.jsonl: cannot be opened (Permission denied)" in out
    with pytest.raises(DataError, match="cannot be opened"):
        read_records(FilesSource(path="a.jsonl"))


def test_marks_without_pictures_are_bad_rows_when_loaded(here):
    layouts.picture("a.png")
    held = [{"question": f"<image>{k}?", "answer": "1"} for k in range(2)]
    found, reasons = read("a.jsonl", held[0], held[1] | {"image": "a.png"})
    assert [r.question for r in found] == ["<image>1?"]
    assert reasons == ["1 <image> marks in the question and 0 pictures; write as many marks as pictures, or none"]
