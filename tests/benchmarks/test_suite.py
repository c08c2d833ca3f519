"""The suite: its grids, its tasks, its statistics, and the whole command at smoke size."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.suite import arithmetic, easy_vqa
from benchmarks.suite.analysis import difference, estimate, ratio
from benchmarks.suite.cell import flipped, noisy
from benchmarks.suite.cells import FAILED, Cell, digest, settings
from benchmarks.suite.grid import GRIDS, with_needs
from benchmarks.suite.measure import curve
from benchmarks.suite.methods import METHODS
from benchmarks.suite.questions import Question, questions
from benchmarks.suite.render import PLACE, answered, fill, page, summary, texts
from benchmarks.suite.results import Results, record_of, unpack_record, write_record
from benchmarks.suite.runner import ATTEMPTS, attempts, is_done, not_there, run_grid
from benchmarks.suite.tables import OUTCOMES, cells_table
from benchmarks.suite.task import Split
from benchmarks.suite.tasks import SMOKE, TASKS
from dyme.config import RunConfig
from dyme.data import Record
from dyme.scoring import Scoring
from tests.helpers.launching import ROOT

needs_data = pytest.mark.skipif("DYME_DATA" not in os.environ, reason="DYME_DATA is not set")


# --- statistics -----------------------------------------------------------------------------------


def test_an_estimate_is_the_mean_and_holds_it():
    found = estimate([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert found.value == 5 / 8 and (found.seeds, found.items) == (2, 4)
    assert found.low < 5 / 8 < found.high
    assert estimate([[1, 1, 1]]).low == estimate([[1, 1, 1]]).high == 1.0
    assert estimate([[1.0]]).low is None


def test_seeds_that_differ_widen_an_interval_and_items_all_runs_share_do_not_count_twice():
    rng = np.random.default_rng(0)
    items = (rng.random(200) < 0.5).astype(float)
    same = estimate([items.tolist()] * 3)
    alone = estimate([items.tolist()])
    # three runs with the same replies know no more than one
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.1)
    # the spread of a mean of 200 coins: 2 x 1.96 x sqrt(0.25 / 200)
    assert alone.high - alone.low == pytest.approx(0.1386, rel=0.1)
    apart = estimate([[0.0] * 200, [1.0] * 200])
    assert (apart.low, apart.high) == pytest.approx((0.0, 1.0))


def test_a_difference_is_taken_item_by_item():
    ours, theirs = [[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 1, 0], [1, 0, 1, 1]]
    found = difference(ours, theirs)
    assert found.value == pytest.approx(2 / 8)
    assert not found.excludes_zero  # one item decides it, and a resample may lack it
    steady = difference([[1, 1, 1, 1]] * 2, [[0, 0, 0, 0]] * 2)
    assert steady.excludes_zero and steady.low == steady.high == 1.0
    with pytest.raises(ValueError, match="runs come in pairs"):
        difference([[1.0]], [])
    with pytest.raises(ValueError, match="the same items"):
        estimate([[1.0], [1.0, 0.0]])


def test_a_ratio_is_of_sums():
    assert ratio([1, 0, 3], [2, 0, 4]) == pytest.approx(4 / 6)
    assert ratio([0], [0]) is None


def test_a_curve_averages_equal_parts_and_leaves_out_what_was_not_logged():
    lines = [{"step": i + 1, "mode/memorize_ratio": float(i), "accuracy": None if i < 2 else 1.0} for i in range(4)]
    assert curve(lines, 2) == [
        {"step": 2, "memorize": 0.5},
        {"step": 4, "memorize": 2.5, "accuracy": 1},
    ]
    assert len(curve(lines, 40)) == 4


def test_verdicts_are_turned_round_by_key_at_their_rate():
    keys = [(step, f"r{record}", row) for step in range(20) for record in range(20) for row in range(20)]
    share = sum(flipped(1, *key, 0.2) for key in keys) / len(keys)
    assert share == pytest.approx(0.2, abs=0.02)
    assert [flipped(1, *key, 0.2) for key in keys] == [flipped(1, *key, 0.2) for key in keys]
    assert [flipped(2, *key, 0.2) for key in keys] != [flipped(1, *key, 0.2) for key in keys]
    assert not any(flipped(1, *key, 0.0) for key in keys) and all(flipped(1, *key, 1.0) for key in keys)


def test_a_turned_verdict_is_one_minus_the_accuracy_and_nothing_else_changes(monkeypatch):
    parts = np.array([[1.0, 0.5, 1.0], [0.0, 0.25, 0.0], [1.0, 0.0, 0.25], [1.0, 0.0, math.nan]])
    part = SimpleNamespace(rows=(4, 5, 6, 7), checked=SimpleNamespace(parts=parts.copy()))
    monkeypatch.setattr(Scoring, "_score", lambda self, rows, rollouts: part)
    scoring = object.__new__(noisy(1.0))
    scoring.scorer = SimpleNamespace(cfg=SimpleNamespace(run=SimpleNamespace(seed=1)))
    scoring.batch = SimpleNamespace(step=0)
    scoring._record = lambda row: SimpleNamespace(id="r")
    turned = scoring._score((4, 5, 6, 7), []).checked.parts
    assert turned[:, :2].tolist() == parts[:, :2].tolist()
    assert turned[:3, 2].tolist() == [0.0, 1.0, 0.75] and math.isnan(turned[3, 2])


# --- tasks ----------------------------------------------------------------------------------------


def test_arithmetic_is_right_and_its_splits_are_apart():
    train = arithmetic.rows(300, "a", "train", arithmetic.SMALL, "high", 0.0)
    test = arithmetic.rows(300, "a", "test", arithmetic.SMALL, "high", 0.0)
    larger = arithmetic.rows(100, "a", "test", arithmetic.LARGE, "high", 0.0)
    for row in [*train, *test, *larger]:
        assert str(eval(row["question"].removesuffix(" = ?"))) == row["answer"]
        assert row["hint"].endswith(f"so: {row['answer']}.")
    for one, other in ((train, test), (train, larger), (test, larger)):
        assert not {row["question"] for row in one} & {row["question"] for row in other}
    assert len({row["question"] for row in test}) == len(test)


def test_arithmetic_traces_of_another_quality_come_with_the_same_problems():
    by_trace = [arithmetic.rows(50, "a", "train", arithmetic.SMALL, q, 1.0) for q in ("high", "medium", "low")]
    for high, medium, low in zip(*by_trace):
        assert high["question"] == medium["question"] == low["question"]
        for row, whole in ((high, True), (medium, True), (low, False)):
            agreed, read = arithmetic.check(row["hint"], _record(row))
            assert read and (agreed == read) == whole, row["hint"]


def test_arithmetic_ends_when_there_are_no_more_problems():
    rows = arithmetic.rows(1000, "a", "train", (1, 2), "high", 0.0)
    assert 5 < len(rows) < 1000


ASKED = [
    {"question": "what is the blue shape?", "answer": "circle", "kind": "shape"},
    {"question": "is there not a circle?", "answer": "no", "kind": "yes_no"},
    {"question": "is no red shape present?", "answer": "yes", "kind": "yes_no"},
]


def test_what_a_picture_shows_follows_from_its_questions_together():
    assert easy_vqa.read_facts(ASKED) == ("blue", "circle")
    assert easy_vqa.read_facts(ASKED[1:2]) is None  # the colour is not told
    both = [*ASKED, {"question": "is there a red shape?", "answer": "yes", "kind": "yes_no"}]
    assert easy_vqa.read_facts(both) is None  # and here two are


@pytest.mark.parametrize("row", ASKED)
def test_easy_vqa_traces_are_right_but_for_the_wrong_reading_of_a_low_one(row):
    picture = easy_vqa.Picture("0.png", "blue", "circle", tuple(ASKED))
    record = _record({"facts": picture.facts, **row})
    for quality in ("high", "medium"):
        hint = easy_vqa.write_trace(picture, row, quality, 1.0, random.Random(0))
        agreed, read = easy_vqa.check(hint, record)
        assert agreed == read >= 2 and hint.rstrip(".").endswith(row["answer"])
    seen = [easy_vqa.write_trace(picture, row, "low", 1.0, random.Random(i)) for i in range(20)]
    assert all(agreed < read for agreed, read in (easy_vqa.check(hint, record) for hint in seen))
    assert all(hint.endswith(row["answer"]) for hint in seen)


def test_easy_vqa_check_reads_what_is_denied():
    record = _record({"question": "?", "answer": "no", "facts": "color blue, shape circle"})
    assert easy_vqa.check("blue and circle and red is not there", record) == (3, 3)
    assert easy_vqa.check("i see red then circle and blue is not there", record) == (1, 3)
    assert easy_vqa.check("nothing", record) == (0, 0)


@needs_data
def test_easy_vqa_splits_are_apart_and_hold_what_they_say(tmp_path):
    splits = TASKS["easy_vqa"].held_out(tmp_path, SMOKE.sizes)
    train = Split(TASKS["easy_vqa"].train(tmp_path, 60, 1, "low", 0.3), 60).records()
    held = {name: split.records() for name, split in splits.items()}
    pictures = {name: {r.image.path for r in records} for name, records in {**held, "train": train}.items()}
    names = sorted(pictures)
    assert not any(pictures[a] & pictures[b] for i, a in enumerate(names) for b in names[i + 1 :])
    assert all("teal" not in r.facts and "triangle" not in r.facts for r in [*train, *held["test"]])
    assert all("teal" in r.facts for r in held["ood unseen colour"])
    assert all("triangle" in r.facts for r in held["ood unseen shape"])
    assert train[0].image.load().size == (64, 64)


@needs_data
@pytest.mark.parametrize(("name", "unseen"), [("nlvr", "scattered boxes"), ("puzzlevqa", "hexagons")])
def test_real_sets_are_split_by_kind_and_only_the_base_sees_all_kinds(tmp_path, name, unseen):
    task, sizes = TASKS[name], GRIDS["gpu"]().regime.sizes
    held = {split: found.records() for split, found in task.held_out(tmp_path, sizes).items()}
    first, second = (Split(task.train(tmp_path, 512, seed, "own", 0.0), 999).records() for seed in (1, 2))
    base = Split(task.base(tmp_path, 1, 1), 9999).records()
    ids = {split: {r.id for r in records} for split, records in {**held, "train": first}.items()}
    assert len(ids["train"]) == 512 and ids["train"] != {r.id for r in second}
    assert min(len(held[split]) for split in held) >= 60
    splits = sorted(ids)
    assert not any(ids[a] & ids[b] for i, a in enumerate(splits) for b in splits[i + 1 :])
    kinds = {split: {r.kind for r in records} for split, records in {**held, "train": first}.items()}
    assert not kinds["train"] & kinds[f"ood {unseen}"] and kinds["test"] == kinds["validation"] == kinds["train"]
    asked = {r.id for r in base}
    assert not asked & ids["validation"] and ids["train"] < asked
    assert {r.kind for r in base} - {""} == kinds["train"] | kinds[f"ood {unseen}"]
    assert base[0].question == "describe the picture." and base[0].answer == base[1].facts


def test_charts_out_of_distribution_hold_what_stage_2_never_sees(tmp_path):
    held = {name: split.records() for name, split in TASKS["charts"].held_out(tmp_path, SMOKE.sizes).items()}
    train = Split(TASKS["charts"].train(tmp_path, 200, 1, "low", 0.3), 200).records()
    values = {
        name: {int(word) for r in records for word in r.facts.replace(",", "").split() if word.isdigit()}
        for name, records in {**held, "train": train}.items()
    }
    assert max(values["train"]) == 5 and max(values["test"]) <= 5 and min(values["ood larger values"]) >= 6
    assert all("pink" in r.facts or "cyan" in r.facts for r in held["ood unseen colours"])
    assert not any("pink" in r.facts or "cyan" in r.facts for r in [*train, *held["test"]])


def _record(row) -> Record:
    return Record(id="r", question=row["question"], answers=(row["answer"],), facts=row["facts"])


# --- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", GRIDS)
def test_cells_have_ids_of_their_own_and_stand_behind_what_they_need(preset):
    cells = GRIDS[preset]().cells
    seen: set[str] = set()
    for cell in cells:
        assert cell.id not in seen and "/" not in cell.id
        assert {need.id for need in cell.needs} <= seen
        seen.add(cell.id)


def test_the_first_cells_of_the_cpu_grid_are_seed_1_of_the_main_table():
    cells = [cell for cell in GRIDS["cpu"]().cells if cell.needs]
    assert {(c.task, c.trace, c.method) for c in cells[:24]} == {
        (task, trace, method)
        for task in ("charts", "easy_vqa")
        for trace in ("high", "medium", "low")
        for method in ("sft", "grpo", "two_stage", "dyme")
    }
    assert all(c.seed == 1 and not c.changes for c in cells[:24])


def test_a_merge_needs_both_ends_and_these_keep_their_models():
    merge = Cell("charts", "merge", "medium", 2)
    ids = [cell.id for cell in with_needs([merge])]
    assert ids == ["charts-base-tiny", "charts-medium-sft-s2", "charts-medium-grpo-s2", "charts-medium-merge-s2"]
    grid = GRIDS["cpu"]()
    assert {"charts-base-tiny", "charts-medium-sft-s2", "charts-medium-grpo-s2"} <= grid.kept
    assert "charts-medium-dyme-s2" not in grid.kept


def test_settings_have_the_changes_and_equal_budgets(tmp_path):
    cell = Cell("charts", "dyme", "low", 3, "nano", (("K", 16), ("tau", 0.1), ("norm", "row"), ("items", 64)))
    cfg = RunConfig.model_validate(settings(cell, SMOKE, tmp_path))
    assert (cfg.rollout.group_size, cfg.selector.threshold, cfg.objective.normalization) == (16, 0.1, "row")
    assert (cfg.data.train.count, cfg.data.train.seed, cfg.run.seed, cfg.data.train.trace) == (64, 3, 3, "low")
    assert not cfg.run.export and RunConfig.model_validate(settings(cell, SMOKE, tmp_path, keep=True)).run.export
    changes = (("refiner", "rules"), ("thinking", 0.0), ("lr", 0.003), ("noise", 1.0))
    other = RunConfig.model_validate(settings(replace(cell, changes=changes), SMOKE, tmp_path))
    assert (other.supervision.refiner, other.reward.weights.thinking, other.optim.lr) == ("rules", 0.0, 0.003)
    assert (cfg.supervision.refiner, other.data.train.wrong_reading_probability) == ("none", 1.0)
    there = [
        Cell("charts", method) for method in METHODS if not not_there(Cell("charts", method), GRIDS["cpu"](), tmp_path)
    ]
    assert {"sft", "grpo", "two_stage", "dyme", "annealed", "scheduled", "mixed", "grpo_kl"} <= {
        c.method for c in there
    }
    trees = [settings(c, SMOKE, tmp_path) for c in there]
    assert len({(t["train"]["max_steps"], t["rollout"]["prompts_per_step"], t["optim"]["lr"]) for t in trees}) == 1


@needs_data
def test_every_cell_of_the_gpu_grid_is_a_configuration(tmp_path):
    grid = GRIDS["gpu"]()
    assert not [cell.id for cell in grid.cells if not_there(cell, grid, tmp_path)]
    base = RunConfig.model_validate(settings(grid.cells[0], grid.regime, tmp_path))
    assert base.model.from_scratch.image_size == 224 and base.data.train.task == "base" and not base.data.shuffle


def test_a_method_that_dyme_refuses_is_told_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "teleport", {"method": "dyme", "selector.name": "teleport"})  # type: ignore[arg-type]
    why = not_there(Cell("charts", "teleport"), GRIDS["smoke"](), tmp_path)
    assert "selector.name" in why and "\n" not in why


def test_a_digest_follows_the_settings_and_not_the_place(tmp_path):
    cell = Cell("arithmetic", "dyme", "low", 1, "nano")
    assert digest(cell, SMOKE, tmp_path / "a") == digest(cell, SMOKE, tmp_path / "b")
    assert digest(cell, SMOKE, tmp_path / "a") != digest(cell.of("sft"), SMOKE, tmp_path / "a")
    noisy = Cell("arithmetic", "dyme", "low", 1, "nano", (("flips", 0.2),))
    assert digest(cell, SMOKE, tmp_path / "a") != digest(noisy, SMOKE, tmp_path / "a")


def test_a_digest_follows_what_a_cell_starts_from(tmp_path):
    cell, other = Cell("arithmetic", "dyme", "low", 1, "nano"), replace(SMOKE, base_share=0.5)
    assert settings(cell, SMOKE, tmp_path) == settings(cell, other, tmp_path)
    assert digest(cell, SMOKE, tmp_path) != digest(cell, other, tmp_path)


def test_failures_are_counted_for_the_settings_they_were_made_with(tmp_path):
    grid, cell = GRIDS["smoke"](), GRIDS["smoke"]().cells[0]
    assert attempts(cell, grid, tmp_path) == 0
    path = tmp_path / "cells" / cell.id / FAILED
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"attempts": ATTEMPTS, "digest": digest(cell, grid.regime, tmp_path)}))
    assert attempts(cell, grid, tmp_path) == ATTEMPTS
    path.write_text(json.dumps({"attempts": ATTEMPTS, "digest": "of other settings"}))
    assert attempts(cell, grid, tmp_path) == 0


# --- page -----------------------------------------------------------------------------------------


def _found(cell: Cell, score: list[int]) -> dict:
    column = {"score": score, "format": 1, "tokens": 9, "agreed": score, "read": [2] * len(score)}
    test = {"items": "x", "majority": 0.5}
    test |= {"direct": {"score": score}} if not cell.needs else {"think": {**column, "thinking_tokens": 5}}
    return {
        **{
            "id": cell.id,
            "task": cell.task,
            "method": cell.method,
            "splits": {"test": test, "ood": test},
            "best": None,
        },
        **{"curve": [{"step": 1, "memorize": 1, "all_wrong": 0.5}], "evals": [{"step": 60, "accuracy": 0.5}]},
        **{"collapse": 0.5, "memorize": 1, "rollout_tokens": 10, "trained_tokens": 2000, "train_s": 1, "cpu_s": 6},
        **{"commit": "abc", "versions": {"device": "cpu", "torch": "2", "deepspeed": "0", "transformers": "5"}},
    }


def test_the_page_of_a_part_of_a_grid_has_its_figures_and_says_what_lacks():
    grid = GRIDS["cpu"]()
    ours = Cell("charts", "dyme", "low", 1)
    cells = [ours, ours.of("sft"), Cell("charts", "dyme", "low", 2), Cell("charts", "sft", "low", 2), *ours.needs]
    scores = [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    found = Results(grid, {c.id: _found(c, s) for c, s in zip(cells, scores)}, {})
    text = page(found, [])
    assert "| low | DyME | 2 | 1.000 [1.000, 1.000] | +0.500 [+0.000, +1.000] |" in text
    assert "| low | SFT | **+1.000 [+1.000, +1.000]** |" in text
    assert "| – | base, direct answers | 1 | 0.500 [" in text
    assert f"5 of {len(grid.cells)} cells are done" in text
    assert "## Not run" in text and "| charts | merge of SFT and GRPO | other methods | 3 |" in text
    figures = summary(found, "cpu")
    assert figures["groups"]["charts-low-sft"]["dyme_minus"]["test"]["value"] == 1.0
    assert "score" not in json.dumps(figures["cells"])
    assert found.faithful(ours) == 0.5


def test_wrong_answers_are_told_by_their_readings():
    cell = Cell("charts", "dyme", "low", 1)
    run = _found(cell, [1, 0] * 4)
    run["splits"]["test"]["think"] |= {"agreed": [2, 2, 1, 1, 2, 0, 0, 2], "read": [2, 2, 2, 2, 2, 2, 0, 2]}
    found = Results(GRIDS["cpu"](), {cell.id: run}, {})
    assert found.outcomes(cell) == (1 / 8, 2 / 8, 2 / 8)
    (row,) = cells_table(found, [("DyME", cell)], ("seeds", "test", *OUTCOMES)).splitlines()[2:]
    assert row.startswith("| DyME | 1 | 0.500 [") and row.endswith("| 12 % | 25 % | 25 % |")


def test_runs_on_other_items_are_not_compared():
    ours = Cell("charts", "dyme", "low", 1)
    found = {c.id: _found(c, [1, 0]) for c in (ours, ours.of("sft"))}
    found[ours.id]["splits"]["test"]["items"] = "y"
    with pytest.raises(ValueError, match="measured on other items"):
        Results(GRIDS["cpu"](), found, {}).versus(ours, ours.of("sft"))


def test_the_tables_of_the_results_page_are_those_of_the_record():
    grid = GRIDS["cpu"]()
    lines = gzip.decompress(record_of("cpu").read_bytes()).decode().splitlines()
    found = Results(grid, {cell["id"]: cell for cell in map(json.loads, lines)}, {})
    made = texts(found, questions(found))
    before = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert fill(before, made) == before
    assert [name for _, name, _ in PLACE.findall(before)] == [name for name, text in made.items() if text]


def test_filling_a_page_leaves_what_is_written_by_hand():
    page = "Said.\n\n<!-- table: a -->\n\n| 1 |\n\n<!-- end -->\n\nMore.\n<!-- table: b -->\n<!-- end -->\n"
    filled = fill(page, {"a": "| 2 |\n", "b": "| 3 |\n"})
    assert filled == page.replace("| 1 |", "| 2 |").replace("b -->\n", "b -->\n\n| 3 |\n\n")
    with pytest.raises(KeyError, match="b"):
        fill(page, {"a": ""})


# --- the command ----------------------------------------------------------------------------------


def suite(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.suite", "--preset", "smoke", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)


def test_a_question_is_answered_by_the_last_figure_of_a_row():
    def asked(table):
        return answered(Question("q", [], table))

    assert asked("") and asked("| K = 2 | 1 | 0.4 | 17 % |\n")
    assert not asked("| model | DyME minus SFT |\n|---|---|\n| tiny | 64 | 0.954 [0.934, 0.972] | – |\n")


def test_a_record_gives_back_the_cells_of_these_settings(tmp_path):
    grid = GRIDS["smoke"]()
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    cells = [cell for cell in grid.cells if cell.task == "charts"]
    for cell in cells:
        found = {"id": cell.id, "digest": digest(cell, grid.regime, first), "task": cell.task}
        (first / "cells" / cell.id).mkdir(parents=True)
        (first / "cells" / cell.id / "cell.json").write_text(json.dumps(found))
    kept = tmp_path / "suite.jsonl.gz"
    write_record(grid, first, kept)
    assert unpack_record(grid, second, kept) == len(cells) and unpack_record(grid, second, kept) == 0
    assert all(is_done(cell, grid, second) for cell in cells)
    before = kept.read_bytes()
    write_record(grid, first, kept)
    assert kept.read_bytes() == before
    lines = gzip.decompress(before).decode().replace(digest(cells[0], grid.regime, first), "of other settings")
    kept.write_bytes(gzip.compress(lines.encode()))
    assert unpack_record(grid, other, kept) == len(cells) - 1 and not is_done(cells[0], grid, other)
    assert unpack_record(grid, other, tmp_path / "none") == 0


def test_what_others_start_from_is_made_again_where_its_model_is_gone(tmp_path, monkeypatch):
    grid, begun = GRIDS["smoke"](), []
    base, sft = (next(c for c in grid.cells if c.id == name) for name in ("charts-base-nano", "charts-low-sft-s1"))
    (tmp_path / "cells" / base.id).mkdir(parents=True)
    (tmp_path / "cells" / base.id / "cell.json").write_text(json.dumps({"digest": digest(base, grid.regime, tmp_path)}))
    ended = SimpleNamespace(poll=lambda: 0, returncode=0)
    monkeypatch.setattr("benchmarks.suite.runner.Pool._begin", lambda self, cell, slot: begun.append(cell.id) or ended)
    monkeypatch.setattr("benchmarks.suite.runner.Pool._end", lambda self, cell, code: "")
    run_grid(grid, "smoke", tmp_path, jobs=1, minutes=None, only=f"^{sft.id}$")
    assert begun == [base.id, sft.id]
    begun.clear()
    (tmp_path / "cells" / base.id / "run" / "export").mkdir(parents=True)
    run_grid(grid, "smoke", tmp_path, jobs=1, minutes=None, only=f"^{sft.id}$")
    assert begun == [sft.id]


@pytest.mark.dist
def test_the_smoke_preset_runs_resumes_tries_again_and_renders(tmp_path):
    out = tmp_path / "suite"
    nothing = suite(out, "--render")
    assert nothing.returncode == 0 and "0 of 8 cells are done" in (out / "results.md").read_text()
    first = suite(out, "--only", "charts-low-(sft|dyme)")
    assert first.returncode == 0, first.stderr
    assert sorted(p.parent.name for p in out.glob("cells/*/cell.json")) == [
        "charts-base-nano",
        "charts-low-dyme-s1",
        "charts-low-sft-s1",
    ]
    assert not (out / "cells/charts-low-dyme-s1/run").exists() and (out / "cells/charts-base-nano/run/export").is_dir()
    cell = json.loads((out / "cells/charts-low-dyme-s1/cell.json").read_text())
    test = cell["splits"]["test"]
    assert len(test["think"]["score"]) == len(test["direct"]["score"]) == len(test["think"]["read"]) > 8
    assert {"ood larger values", "ood line charts", "ood unseen colours"} < set(cell["splits"])
    assert cell["steps"] == 3 and cell["best"]["splits"]["test"]["items"] == test["items"]
    assert all(sum(p[m] for m in ("explore", "memorize", "skip", "joint")) == pytest.approx(1) for p in cell["curve"])

    stamps = {p: p.stat().st_mtime_ns for p in out.glob("cells/*/cell.json")}
    (out / "cells/charts-low-dyme-s1/cell.json").unlink()
    base = out / "cells/charts-base-nano/run/export/config.json"
    hidden = base.rename(base.with_suffix(".hidden"))
    broken = suite(out, "--only", "charts-low-dyme")
    failure = json.loads((out / "cells/charts-low-dyme-s1/failed.json").read_text())
    assert broken.returncode == 1 and failure["attempts"] == 1 and failure["tail"], broken.stderr
    hidden.rename(base)
    again = suite(out, "--only", "charts-low-(sft|dyme)")
    assert again.returncode == 0 and "3 cells, 2 done, 0 given up, 1 to do" in again.stderr, again.stderr
    assert not (out / "cells/charts-low-dyme-s1/failed.json").exists()
    kept = [p for p, stamp in stamps.items() if p.stat().st_mtime_ns == stamp]
    assert len(kept) == 2
    once_more = json.loads((out / "cells/charts-low-dyme-s1/cell.json").read_text())
    assert once_more["splits"] == cell["splits"]  # the same cell gives the same items

    assert "3 of 8 cells are done" in (out / "results.md").read_text()
    assert (out / "collapse.png").stat().st_size > 10_000
    other = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite", "--preset", "cpu", "--out", str(out), "--render"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert other.returncode == 2 and "holds the preset smoke" in other.stderr
