"""A judged reply as it goes to items.jsonl."""

from __future__ import annotations

import json

import pytest

from dyme.data import LazyImage, Record
from dyme.evaluation.items import bad_line, item_line, judge, scored
from dyme.settings.rewards import RewardConfig

RECORD = Record("r1", "which is largest?", ("red",), facts="red 4, blue 2", kind="maximum")
KEYS = {
    "completion", "thinking", "answer", "guessed", "correct", "score", "accuracy", "format", "tokens",
    "thinking_chars", "thinking_tokens", "truncated", "faithfulness", "readings",
}  # fmt: skip


def judged(*texts: str, record: Record = RECORD, style: str = "think", truncated: bool = False):
    n = len(texts)
    lengths = [len(text.split()) for text in texts]
    return judge(
        texts, lengths, [truncated] * n, [record] * n, reward=RewardConfig(), flag="Answer:", style=style,
        count_tokens=lambda text: len(text.split()),
    )  # fmt: skip


def test_a_thinking_reply():
    [reply], errors = judged("red 4 maybe blue 3\nAnswer: red")
    assert not errors
    assert (reply.thinking, reply.answer) == ("red 4 maybe blue 3", "red")
    assert (reply.correct, reply.score, reply.accuracy, reply.format) == (True, 1.0, 1.0, 1.0)
    assert (reply.tokens, reply.thinking_tokens, reply.thinking_chars) == (7, 5, 18)
    assert (reply.faithfulness, reply.readings) == (0.5, 2)


@pytest.mark.parametrize(
    ("text", "accuracy", "valid", "guessed"),
    [
        ("red 4\nAnswer: blue", 0.0, 1.0, False),
        ("red 4, so \\boxed{red}", 1.0, 0.0, True),
        ("Answer: blue\nAnswer: red", 1.0, 0.0, False),
        ("red 4", 0.0, 0.0, False),
    ],
)
def test_a_right_answer_in_an_invalid_format_is_not_correct(text, accuracy, valid, guessed):
    [reply], _ = judged(text)
    assert (reply.accuracy, reply.format, reply.guessed) == (accuracy, valid, guessed)
    assert reply.score == accuracy * valid and not reply.correct


def test_a_cut_off_reply_is_wrong():
    [reply], _ = judged("red 4\nAnswer: red", truncated=True)
    assert reply.truncated and not reply.correct and reply.score == 0.0


def test_a_failing_verifier_leaves_the_reply_unscored():
    broken = Record("r2", "?", ("purple",), choices=("red", "blue"))  # its answer is none of its choices
    replies, errors = judged("red 4\nAnswer: red", record=broken)
    assert sum(errors.values()) == 1
    line = item_line(broken, {"think": replies})
    assert line["think"][0]["score"] is None and line["think"][0]["accuracy"] is None
    assert line["think"][0]["correct"] is False and scored(line["think"]) == []
    assert "NaN" not in json.dumps(line)


def test_a_direct_reply_needs_no_flag_and_one_that_has_it_is_flagged():
    replies, _ = judged("Red.", "red 4\nAnswer: red", "red 4", style="direct")
    assert [reply.correct for reply in replies] == [True, True, False]
    assert [reply.flagged for reply in replies] == [False, True, False]


def test_the_keys_of_a_line(tmp_path):
    record = Record("r1", "q", ("a", "b"), images=(LazyImage(path=tmp_path / "x.png"),), kind="k")
    think, _ = judged("red 4\nAnswer: red", "no", record=record)
    direct, _ = judged("a", record=record, style="direct")
    line = item_line(record, {"think": think, "direct": direct})
    assert set(line) == {"id", "kind", "question", "gold", "image", "think", "direct"}
    assert line["gold"] == ["a", "b"] and line["image"] == str(tmp_path / "x.png") and line["kind"] == "k"
    assert [set(reply) for reply in line["think"]] == [KEYS, KEYS]
    assert set(line["direct"][0]) <= KEYS | {"flagged"} and line["direct"][0]["correct"] is True
    assert "faithfulness" not in line["direct"][0] and "thinking" not in line["direct"][0]
    alone = item_line(RECORD, {"direct": direct})
    assert alone["think"] == [] and alone["image"] is None
    assert bad_line(RECORD, "broken picture") == {"id": "r1", "error": "broken picture"}
