"""An evaluation from the command line: ranks, a bad picture, a kill, a second start; and batches in process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from dyme.config import RunConfig
from dyme.data import load_records
from dyme.evaluation import folder as files
from dyme.evaluation.driver import answer_batch, columns, evaluate_model
from dyme.evaluation.folder import DoneItem
from dyme.families import build_family
from dyme.prompts import PromptCache
from dyme.rollout.engine import FixedWeights
from dyme.rollout.registry import open_engine
from tests.helpers.launching import launch

COUNT, BAD = 7, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_spec) -> SimpleNamespace:
    """A checkpoint of a tiny model, seven records of which one has half a picture, and a configuration."""
    folder: Path = tmp_path_factory.mktemp("evaluation")
    rows = []
    for i in range(COUNT):
        Image.new("RGB", (32, 32), (30 * i, 200 - 20 * i, 90)).save(folder / f"{i}.png")
        row = {"id": f"r{i}", "question": f"what is {i}?", "answer": str(i), "facts": f"red {i}", "image": f"{i}.png"}
        rows.append(row | {"kind": "even" if i % 2 == 0 else "odd"})
    whole = (folder / f"{BAD}.png").read_bytes()
    (folder / f"{BAD}.png").write_bytes(whole[: len(whole) // 2])  # the header is fine, the pixels are not
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = {"source": "jsonl", "path": str(folder / "test.jsonl")}
    tree = {
        "model": {"path": "elsewhere"},
        "data": {"train": source, "eval": source},
        "prompt": {"template": "{question} think first."},
        "rollout": {"max_new_tokens": 8, "batch_size": 4},
        "evaluate": {"samples": 2, "pass_at": [1, 2], "direct_template": "{question}", "direct_max_new_tokens": 3},
        "run": {"dir": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    family, model = build_family("idefics3", tiny_spec, ["what is red 0123456789? think first. Answer:"] * 20)
    model.save_pretrained(folder / "model")
    family.export(folder / "model")
    return SimpleNamespace(folder=folder, cfg=RunConfig.model_validate(tree), family=family, model=model.eval())


def answers(place: SimpleNamespace, cfg: RunConfig, size: int) -> list[dict]:
    records = load_records(cfg.data.eval, 0.5)
    books = [PromptCache(place.family, column.prompt, lambda message: None) for column in columns(cfg)]
    engine = open_engine("auto", place.family, FixedWeights(place.model))
    lines = []
    for at in range(0, len(records), size):
        part, _ = answer_batch(cfg, place.family, engine, books, records[at : at + size])
        lines += part
    return lines


def test_replies_do_not_depend_on_batches(place):
    one, all_ = answers(place, place.cfg, 1), answers(place, place.cfg, COUNT)
    assert one == all_ and [line["id"] for line in one] == [f"r{i}" for i in range(COUNT)]
    assert set(one[BAD]) == {"id", "error"} and "3.png" in one[BAD]["error"]
    for line in one[:BAD] + one[BAD + 1 :]:
        assert len(line["think"]) == len(line["direct"]) == 2
        assert all(0 < reply["tokens"] <= 8 for reply in line["think"])
        assert all(0 < reply["tokens"] <= 3 for reply in line["direct"])
        assert line["think"][0]["completion"] != line["think"][1]["completion"]  # noise of their own


def test_one_sample_is_greedy(place):
    greedy = place.cfg.model_copy(update={"evaluate": place.cfg.evaluate.model_copy(update={"samples": 1})})
    first = answers(place, greedy, COUNT)
    other_seed = greedy.model_copy(update={"run": greedy.run.model_copy(update={"seed": 5})})
    assert answers(place, other_seed, COUNT) == first and len(first[0]["think"]) == 1
    assert answers(place, place.cfg.model_copy(update={"run": other_seed.run}), COUNT) != answers(
        place, place.cfg, COUNT
    )


def test_a_model_that_never_thinks_has_one_column(place):
    prompt = place.cfg.prompt.model_copy(update={"style": "direct", "template": "{question}!"})
    direct = place.cfg.model_copy(update={"prompt": prompt})
    assert [(c.name, c.prompt.template, c.max_new_tokens) for c in columns(direct)] == [("direct", "{question}!", 8)]
    line = answers(place, direct, COUNT)[0]
    assert line["think"] == [] and len(line["direct"]) == 2
    alone = place.cfg.evaluate.model_copy(update={"direct": False})
    assert [c.name for c in columns(place.cfg.model_copy(update={"evaluate": alone}))] == ["think"]


@pytest.mark.dist
def test_two_ranks_a_kill_and_one_rank_give_the_same_items(place, alone, capsys):
    common = ("--config", place.folder / "config.yaml", "--model", place.folder / "model")
    whole, parted = place.folder / "whole", place.folder / "parted"
    done = launch(*common, "--out", whole, ranks=2, launcher="evaluate.py")
    text = (whole / "items.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(COUNT)]
    assert lines == answers(place, place.cfg, COUNT)  # the launched ranks loaded the exported weights
    assert "6 records, 1 left out" in done.stdout and "pass@2" in done.stdout and "think - direct" in done.stdout
    assert done.stdout.count("6 records") == 1  # said by one rank only
    assert done.stdout.count("warning: think: no reply has a valid format, and ") == 1  # an untrained model
    summary = json.loads((whole / "summary.json").read_text())
    assert any(line.startswith("think: no reply has a valid format") for line in summary["warnings"])
    assert summary["ranks"] == 2 and summary["bad"] == 1 and set(summary["kinds"]) == {"even", "odd"}
    assert sorted(p.name for p in whole.iterdir()) == ["evaluation.yaml", "items.jsonl", "summary.json"]

    # what two ranks leave that are killed on their way: three items, one of them marked, and half a line
    parted.mkdir()
    shutil.copy(whole / "evaluation.yaml", parted)
    marked = lines[2] | {"question": "kept"}
    files.append_items(parted, 0, [DoneItem(0, lines[0], 0.1), DoneItem(2, marked, 0.1)])
    files.append_items(parted, 1, [DoneItem(1, lines[1], 0.1), DoneItem(5, lines[5], 0.1)])
    cut = parted / "items-1.partial.jsonl"
    cut.write_bytes(cut.read_bytes()[:-20])
    evaluated = evaluate_model(place.cfg, place.folder / "model", parted, "test")
    assert "3 of 7 records are done already" in capsys.readouterr().err
    again = [json.loads(line) for line in (parted / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert again[2]["question"] == "kept"  # it was not done again
    assert [*again[:2], lines[2], *again[3:]] == lines
    accuracy = evaluated["columns"]["think"]["accuracy"]
    assert accuracy["value"] == pytest.approx(summary["columns"]["think"]["accuracy"]["value"], abs=1e-5)

    # the same again does nothing, other settings are refused by all ranks at once
    before = (parted / "items.jsonl").stat().st_mtime_ns
    assert evaluate_model(place.cfg, place.folder / "model", parted, "test")["n"] == COUNT - 1
    assert "nothing to do" in capsys.readouterr().err
    other = launch(*common, "--out", parted, "run.seed=9", ranks=2, launcher="evaluate.py", check=False)
    assert other.returncode != 0 and "other settings (run.seed): choose another --out" in other.stderr
    assert "Traceback" not in other.stderr and (parted / "items.jsonl").stat().st_mtime_ns == before


def test_a_line_belongs_to_its_record(place):
    """Records that moved in the file are asked again."""
    records = load_records(place.cfg.data.eval, 0.5)
    out = place.folder / "moved"
    out.mkdir()
    files.append_items(out, 0, [DoneItem(0, {"id": "r0"}, 0.1), DoneItem(1, {"id": "r0"}, 0.1)])
    assert sorted(files.done_items(out, records)) == [0]
    renamed = [replace(record, id=f"x{record.id}") for record in records]
    assert files.done_items(out, renamed) == {}
