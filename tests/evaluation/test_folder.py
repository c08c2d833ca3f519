"""The folder of an evaluation: whose it is, what a killed start leaves, and what makes it whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dyme.config import RunConfig
from dyme.data import Record
from dyme.evaluation import folder as files
from dyme.evaluation.folder import DoneItem, EvaluationError

RECORDS = [Record(f"r{i}", f"q{i}", (str(i),)) for i in range(5)]


def item(i: int) -> DoneItem:
    return DoneItem(i, {"id": f"r{i}", "text": f"line one\u2028two {i}"}, 0.5)


def config(**sections: Any) -> RunConfig:
    source = {"source": "charts", "count": 9}
    tree = {"model": {"path": "m"}, "data": {"train": source, "eval": source}, **sections}
    return RunConfig.model_validate(tree)


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(100))
    return path


def test_settings_name_what_the_items_depend_on(model):
    same = files.settings_text(config(), model, RECORDS)
    assert files.settings_text(config(optim={"lr": 0.5}, rollout={"batch_size": 3}), model, RECORDS) == same
    assert files.settings_text(config(prompt={"template": "{question}!"}), model, RECORDS) != same
    assert files.settings_text(config(run={"seed": 3}), model, RECORDS) != same
    assert files.settings_text(config(), model, RECORDS[:4]) != same
    (model / "model.safetensors").write_bytes(bytes(99) + b"x")  # as long as before
    assert files.settings_text(config(), model, RECORDS) != same


def test_a_folder_of_something_else_is_left_alone(tmp_path, model):
    out = tmp_path / "out"
    settings = files.settings_text(config(), model, RECORDS)
    files.check_owner(out, settings)  # not there yet
    out.mkdir()
    files.check_owner(out, settings)  # empty
    (out / "summary.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"holds files of something else.*choose another --out"):
        files.check_owner(out, settings)
    assert [path.name for path in out.iterdir()] == ["summary.json"]


def test_other_settings_are_named(tmp_path, model):
    out = tmp_path / "out"
    files.claim(out, files.settings_text(config(), model, RECORDS))
    files.check_owner(out, files.settings_text(config(), model, RECORDS))
    other = files.settings_text(config(evaluate={"samples": 4}, run={"seed": 1}), model, RECORDS)
    with pytest.raises(EvaluationError) as caught:
        files.check_owner(out, other)
    message = str(caught.value)
    assert "evaluate.samples, run.seed" in message and "choose another --out" in message and "\n" not in message


def test_a_cut_line_is_done_again_and_others_are_not(tmp_path):
    files.append_items(tmp_path, 0, [item(0), item(2)])
    files.append_items(tmp_path, 1, [item(1)])
    files.append_items(tmp_path, 1, [item(3)])
    cut = tmp_path / "items-1.partial.jsonl"
    cut.write_bytes(cut.read_bytes()[:-9])
    done = files.done_items(tmp_path, RECORDS)
    assert {i: d.line for i, d in done.items()} == {i: item(i).line for i in (0, 1, 2)}
    files.gather_partial(tmp_path, done)
    assert [path.name for path in tmp_path.iterdir()] == ["items-0.partial.jsonl"]
    files.append_items(tmp_path, 0, [item(3)])  # after a whole line
    assert sorted(files.done_items(tmp_path, RECORDS)) == [0, 1, 2, 3]


def test_items_are_written_in_the_order_of_the_data_and_only_when_whole(tmp_path):
    files.append_items(tmp_path, 0, [item(4), item(1), item(0), item(3)])
    with pytest.raises(EvaluationError, match="lacks 1 of 5 items"):
        files.write_items(tmp_path, files.done_items(tmp_path, RECORDS), 5)
    assert not (tmp_path / "items.jsonl").exists()
    files.append_items(tmp_path, 2, [item(2)])
    files.write_items(tmp_path, files.done_items(tmp_path, RECORDS), 5)
    assert files.read_summary(tmp_path) is None
    files.finish(tmp_path, {"n": 5, "bad": float("nan")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.jsonl", "summary.json"]
    text = (tmp_path / "items.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.strip().split("\n")] == [item(i).line for i in range(5)]
    assert files.read_summary(tmp_path) == {"n": 5, "bad": None}
