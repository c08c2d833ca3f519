"""Composition of rewards against hand-computed numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dyme.data.record import Record
from dyme.rewards import compose
from dyme.rewards.compose import score
from dyme.settings.rewards import RewardConfig
from dyme.supervision.lexical import thinking_score

CHART = Record(id="c", question="?", answers=("7",), hint="The red bar shows 7.")
BARE = Record(id="b", question="?", answers=("blue",))
BROKEN = Record(id="x", question="?", answers=("wolf",), choices=("cat", "dog"))
PERFECT = "The red bar shows 7. Answer: 7"


def rate(texts, records, truncated=None, style="think", checker=thinking_score, **settings_):
    config = RewardConfig.model_validate(settings_)
    cut = [False] * len(texts) if truncated is None else truncated
    return score(texts, records, truncated=cut, config=config, flag="Answer:", style=style, checker=checker)


def test_parts_and_sum():
    texts = [
        PERFECT,
        "The red bar shows 9. Answer: 7",  # words right, number wrong: t = (1 + 0) / 2
        "Answer: 7",
        "The red bar shows 7.",
        "The red bar shows 7. Answer: 7 Answer: 7",
        "The red bar shows 7. Answer: 8",
    ]
    got = rate(texts, [CHART] * 6)
    assert got.format.tolist() == [1, 1, 1, 0, 0, 1]
    assert got.thinking.tolist() == [1, 0.5, 0, 1, 1, 1]
    assert got.accuracy.tolist() == [1, 1, 1, 0, 1, 0]
    assert got.reward.tolist() == [3, 2.5, 2, 1, 2, 2]
    assert got.correct.tolist() == [1, 1, 1, 0, 0, 0]
    assert got.scored.all()
    assert got.errors == {}
    assert all(array.dtype == np.float64 for array in (got.format, got.thinking, got.accuracy, got.reward, got.correct))


def test_weights():
    weights = {"format": 0.5, "thinking": 0.25, "accuracy": 2.0}
    assert rate([PERFECT, "Answer: 7"], [CHART, CHART], weights=weights).reward.tolist() == [2.75, 2.5]
    got = rate([PERFECT], [CHART], weights={"format": 0.0, "thinking": 0.0})
    assert got.reward.tolist() == [1.0]


def test_records_without_reference_have_no_thinking_weight():
    got = rate(["It is blue. Answer: blue"], [BARE], weights={"thinking": 5.0})
    assert (got.thinking[0], got.reward[0], bool(got.scored[0])) == (0.0, 2.0, True)


def test_without_a_checker_thinking_is_zero():
    got = rate([PERFECT], [CHART], checker=None)
    assert (got.thinking[0], got.reward[0]) == (0.0, 2.0)


def test_require_format():
    texts = ["The red bar shows 7.", PERFECT, "Answer: 7 Answer: 7"]
    assert rate(texts, [CHART] * 3, require_format=True).reward.tolist() == [0.0, 3.0, 0.0]


def test_min_thinking_chars():
    got = rate(["Answer: 7", PERFECT], [CHART] * 2, min_thinking_chars=10)
    assert got.format.tolist() == [0, 1]
    assert got.correct.tolist() == [0, 1]


def test_truncated_is_wrong():
    got = rate([PERFECT, PERFECT], [CHART] * 2, truncated=[True, False])
    assert got.format.tolist() == [0, 1]
    assert got.accuracy.tolist() == [0, 1]
    assert got.reward.tolist() == [1, 3]
    assert got.correct.tolist() == [0, 1]
    assert got.scored.all()


def test_direct_style():
    got = rate(
        ["7", " **7.** ", "", "8", "7"],
        [CHART] * 5,
        style="direct",
        truncated=[False] * 4 + [True],
        min_thinking_chars=9,
    )
    assert got.format.tolist() == [1, 1, 0, 1, 0]
    assert got.accuracy.tolist() == [1, 1, 0, 0, 0]
    assert got.thinking.tolist() == [0] * 5
    assert got.reward.tolist() == [2, 2, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("7", 1),
        ("**7**", 1),
        ("\\boxed{7}", 1),
        ("Answer: 7", 1),
        ("**Answer:** 7", 1),
        ("7. The red bar shows it.", 1),
        ("\n## 7\nThe red bar shows 9.", 1),
        ("$7$", 1),
        ("7 or 8", 0),
        ("8. The red bar shows 7.", 0),
        ("\\boxed{7} or \\boxed{8}", 0),
        ("The red bar shows 9.\n7", 0),
    ],
)
def test_a_direct_answer_is_read_like_one_after_the_flag(text, right):
    assert rate([text], [CHART], style="direct").correct.tolist() == [right]


def test_a_direct_answer_may_be_long():
    caption = "Red 7. Then blue shows 3.\nGreen: 2"
    got = rate([caption, caption + "9"], [Record(id="r", question="?", answers=(caption,))] * 2, style="direct")
    assert got.correct.tolist() == [1, 0]


def test_repeated_gold_answers_count_for_vqa_only():
    votes = Record(id="v", question="?", answers=("7",) * 2 + ("8",) * 8)
    got = [rate(["Answer: 7"], [votes], verifier=name).accuracy[0] for name in ("vqa", "numeric", "multi", "exact")]
    assert got == pytest.approx([0.6, 1, 1, 1])


@pytest.mark.parametrize("require_format", [False, True])
def test_a_broken_record_costs_its_own_rows_only(require_format):
    texts = ["Answer: wolf", "no flag", "Answer: 7"]
    got = rate(texts, [BROKEN, BROKEN, CHART], require_format=require_format)
    assert got.scored.tolist() == [False, True, True]
    assert got.errors == {"ValueError": 1}
    for array in (got.reward, got.accuracy, got.correct):
        assert np.isnan(array).tolist() == [True, False, False]
    assert got.format.tolist() == [1, 0, 1]


def test_failing_verifiers_are_counted_by_kind(monkeypatch):
    outcomes = {"a": float("nan"), "b": 1.5, "c": -0.1, "d": 0.5}

    def moody(answer, record):
        if answer not in outcomes:
            raise TimeoutError("too slow")
        return outcomes[answer]

    monkeypatch.setattr(compose, "get_verifier", lambda name, **_: moody)
    got = rate([f"Answer: {each}" for each in "abcdef"], [BARE] * 6, weights={"accuracy": 0.0})
    assert got.scored.tolist() == [False, False, False, True, False, False]
    assert got.errors == {"nan": 1, "out_of_range": 2, "TimeoutError": 2}
    assert np.isnan(got.reward).tolist() == (~got.scored).tolist()
    assert (got.accuracy[3], got.correct[3], got.reward[3]) == (0.5, 0.5, 1.0)


def test_empty_batch_and_uneven_lengths():
    assert rate([], []).reward.shape == (0,)
    with pytest.raises(ValueError, match="2 texts, 1 records and 2 flags"):
        rate(["a", "b"], [CHART])


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"weights": {"format": 0, "thinking": 0, "accuracy": 0}}, "at least one"),
        ({"weights": {"format": -1}}, "greater than or equal to 0"),
        ({"weights": {"format": float("inf")}}, "finite"),
        ({"verifier": "fuzzy"}, "'auto', 'exact', 'numeric', 'choice', 'relaxed'"),
        ({"relative_tolerance": 1.0}, "less than 1"),
        ({"min_thinking_chars": -1}, "greater than or equal to 0"),
        ({"wieghts": {}}, "Extra inputs"),
    ],
)
def test_bad_settings(settings_, words):
    with pytest.raises(ValidationError, match=words):
        RewardConfig.model_validate(settings_)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=40), st.sampled_from(["", "Answer:", "answer: 7"]), st.booleans()), max_size=5),
    st.sampled_from(["think", "direct"]),
)
def test_never_raises_and_stays_in_range(rows, style):
    texts = [text + flag + text for text, flag, _ in rows]
    got = rate(texts, [CHART] * len(rows), truncated=[cut for *_, cut in rows], style=style)
    for array in (got.format, got.thinking, got.accuracy, got.correct):
        assert ((array >= 0) & (array <= 1)).all()
    assert got.scored.all()
    assert ((got.reward >= 0) & (got.reward <= 3)).all()


def test_a_guessed_answer_is_judged_but_makes_no_valid_format():
    got = rate(["The red bar shows \\boxed{7}.", "The red bar shows 7. Answer: \\boxed{7}"], [CHART, CHART])
    assert got.accuracy.tolist() == [1, 1]
    assert got.format.tolist() == [0, 1]
    assert got.correct.tolist() == [0, 1]
