"""Records whose own answer, written as a reply and read back, is not right: what is said, and where they are found."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.config import RunConfig
from dyme.data import ChartsSource, DataError, JsonlSource, MixtureSource, Record, load_records, read_records
from dyme.data.__main__ import main
from dyme.evaluation.driver import evaluate_model
from dyme.opening import open_run
from dyme.preflight.facts import gather_facts
from dyme.rewards.answer import write_reply
from dyme.rewards.compose import check
from dyme.rewards.round_trip import round_trip
from dyme.settings.prompt import PromptConfig
from dyme.settings.rewards import RewardConfig

VERIFIERS = ("auto", "exact", "numeric", "relaxed", "vqa", "math", "multi", "mathvista", "tabmwp")


def reason(*answers, verifier="auto", choices=(), flag="Answer:", **reward):
    usable = round_trip(RewardConfig(verifier=verifier, **reward), PromptConfig(answer_flag=flag))
    return usable(Record("r7", "q", answers, choices=tuple(choices)))


@pytest.mark.parametrize(
    ("answers", "settings", "said"),
    [
        (["blue"], {"verifier": "yes_no"}, "is neither yes nor no; correct the record or set reward.verifier to auto"),
        (["blue"], {"verifier": "choice", "choices": ["red", "green"]}, "correct the record or set reward.verifier"),
        (["cat", "dog"], {"verifier": "vqa"}, "the best of its 2 answers, 'cat', scores 0.5, and only a score above"),
        (
            list("bcdefghijk"),
            {"verifier": "vqa"},
            "scores 0.3, and only a score above 0.5 counts as right; drop the",
        ),
        (["the"], {"verifier": "vqa"}, "scores 0, "),
        (["So Answer: 5"], {}, "holds the answer flag 'Answer:', which may occur only once in a reply; reword"),
        (["so ANSWER： 5"], {}, "holds the answer flag"),
        (["a => b"], {"flag": "=>"}, "holds the answer flag '=>'"),
        ([r"\boxed{3} or \boxed{4}"], {}, "would be a guess: LaTeX boxes that differ"),
        ([r"\boxed{3"], {}, "one that is not closed"),
        (["**"], {}, "is empty without markup, quotes and full stops; write it in words"),
        (["..."], {}, "is empty without markup"),
    ],
)
def test_reasons(answers, settings, said):
    told = reason(*answers, **settings)
    assert told and said in told and "\n" not in told and "record ''" not in told


@pytest.mark.parametrize(
    ("answers", "settings"),
    [
        (["red"], {}),
        (["red", "**"], {}),  # later answers may fail
        (["red"], {"min_thinking_chars": 50}),
        (["cat", "dog", "dog", "dog"], {"verifier": "vqa"}),
        (["cat", "cat", *"abcdefgh"], {"verifier": "vqa"}),
        (["wolf", "The cat", "a cat!", "cat"], {"verifier": "vqa"}),
        (["Yes. The man is wearing a hat."], {}),
        (["first line\nsecond line"], {"verifier": "multi"}),
        (["a => b"], {}),
        (["False"], {"verifier": "yes_no"}),
        (["15"], {"choices": ["7", "15"]}),
    ],
)
def test_records_of_use(answers, settings):
    assert reason(*answers, **settings) is None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(min_size=1, max_size=30) | st.from_regex(r"[-+$]?\d{1,6}(\.\d{1,3})?( ?%| cm)?", fullmatch=True))
def test_the_reason_is_that_of_the_replies(gold):
    for name in VERIFIERS:
        record, config = Record("r", "q", (gold,)), RewardConfig(verifier=name)
        right = []
        for style in ("think", "direct"):
            reply = write_reply(gold, "Answer:", "I see it", style=style)
            parts = check([reply], [record], truncated=[False], config=config, flag="Answer:", style=style).parts
            right.append(parts[0, 0] == parts[0, 2] == 1.0)
        assert all(right) == (reason(gold, verifier=name) is None), name


ROWS = [{"id": f"r{i}", "question": "is it?", "answer": "yes"} for i in range(4)]
ROWS.insert(2, {"id": "odd", "question": "is it?", "answer": "So Answer: no"})


@pytest.fixture
def place(tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = {"source": "jsonl", "path": str(tmp_path / "mine.jsonl")}
    tree = {
        "model": {"path": str(tmp_path)},
        "data": {"train": source, "eval": source},
        "reward": {"verifier": "yes_no"},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def test_bad_rows_are_counted_with_file_and_line(place):
    usable = round_trip(RewardConfig(), PromptConfig())
    source = JsonlSource(path=str(place / "mine.jsonl"))
    records = load_records(source, 0.5, usable)
    assert [(r.id, records.origin(i)[1]) for i, r in enumerate(records)] == [("r0", 1), ("r1", 2), ("r2", 4), ("r3", 5)]
    [bad] = records.bad
    assert (bad.file.name, bad.line, bad.record_id) == ("mine.jsonl", 3, "odd") and "answer flag" in bad.reason
    with pytest.raises(DataError, match=r"1 of 5 rows are bad .*\n.*mine.jsonl:3 \(odd\): its answer 'So Answer: no'"):
        load_records(source, 0.1, usable)
    assert len(load_records(source, 0.0)) == len(read_records(source)) == 5
    mixture = MixtureSource.model_validate(
        {"count": 8, "parts": [{"name": "a", "records": source}, {"name": "b", "records": ChartsSource(count=9)}]}
    )
    mixed = read_records(mixture, usable)
    assert len(mixed) == 8 and mixed.bad == (bad,)
    with pytest.raises(DataError, match="1 of 5 rows are bad"):
        load_records(mixture, 0.1, usable)


def test_check_says_it(place, capsys):
    assert main(["check", str(place / "mine.jsonl")]) == 1
    out = capsys.readouterr().out
    assert "5: 4 good, 1 bad" in out and "mine.jsonl:3 (odd): its answer 'So Answer: no' holds the answer flag" in out


def test_check_of_a_run_takes_its_reward_and_prompt(place, capsys):
    assert main(["check", str(place / "run.yaml")]) == 1
    assert capsys.readouterr().out.count("is neither yes nor no; correct the record") == 2
    tree = yaml.safe_load((place / "run.yaml").read_text())
    (place / "run.yaml").write_text(yaml.safe_dump(tree | {"reward": None, "prompt": {"answer_flag": "So:"}}))
    assert main(["check", str(place / "run.yaml")]) == 0
    (place / "run.yaml").write_text(yaml.safe_dump(tree | {"reward": {"verifier": "yes-no"}}))
    assert main(["check", str(place / "run.yaml")]) == 2
    assert "verifier" in capsys.readouterr().out


def test_training_evaluation_and_preflight_say_it(place, alone):
    cfg = RunConfig.model_validate(yaml.safe_load((place / "run.yaml").read_text()))
    (place / "config.json").write_text("{}")
    for start in (lambda: open_run(cfg), lambda: evaluate_model(cfg, place, place / "out", "")):
        with pytest.raises(DataError, match=r"1 of 5 rows are bad .*\n.*mine.jsonl:3 \(odd\): .*neither yes nor no"):
            start()
    assert "mine.jsonl:3 (odd)" in gather_facts(cfg, 0, 0).data


def test_thirty_thousand_records_take_seconds():
    records = [Record(str(i), "q", (f"{i % 12_000 / 8:.3f}" if i % 3 else f"word {i % 5_000}",)) for i in range(30_000)]
    usable = round_trip(RewardConfig(verifier="relaxed"), PromptConfig())
    start = time.process_time()
    assert not any(map(usable, records))
    assert time.process_time() - start < 4.0
