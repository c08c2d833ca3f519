"""The figures of an evaluation from hand-made items, and the table of them."""

from __future__ import annotations

from typing import Any

import pytest

from dyme.config import load_config
from dyme.evaluation.statistics import mcnemar
from dyme.evaluation.summary import summarize
from dyme.evaluation.table import render
from dyme.settings.errors import ConfigError
from tests.helpers.launching import ROOT


def think(score: float | None, faithfulness: float | None = None, tokens: int = 10) -> dict[str, Any]:
    return {
        "correct": score is not None and score > 0.5, "score": score, "accuracy": score, "format": 1.0,
        "truncated": False, "tokens": tokens, "guessed": False, "thinking_tokens": tokens - 4, "thinking_chars": 30,
        "readings": 0 if faithfulness is None else 2, "faithfulness": faithfulness,
    }  # fmt: skip


def direct(score: float | None) -> dict[str, Any]:
    return {
        "correct": score == 1.0, "score": score, "accuracy": score, "format": 1.0, "truncated": False, "tokens": 2,
        "flagged": False,
    }  # fmt: skip


def line(i: int, kind: str, thinks: list[dict[str, Any]], directs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": str(i), "kind": kind, "think": thinks, "direct": directs}


GREEDY = [
    line(0, "a", [think(1.0, 1.0)], [direct(1.0)]),
    line(1, "a", [think(1.0, 0.5)], [direct(0.0)]),
    line(2, "a", [think(1.0, None)], [direct(0.0)]),
    line(3, "b", [think(0.0, 0.0, tokens=20)], [direct(1.0)]),
    line(4, "a", [think(None, None)], [direct(0.0)]),
    {"id": "5", "error": "broken picture"},
]


def test_greedy_items():
    out = summarize(GREEDY, resamples=2000)
    assert (out["records"], out["n"], out["bad"], out["bad_records"]) == (6, 5, 1, {"5": "broken picture"})
    column = out["columns"]["think"]
    assert (column["accuracy"]["value"], column["accuracy"]["n"], column["unscored"]) == (0.75, 4, 1)
    assert (column["faithfulness"]["value"], column["faithfulness"]["n"]) == (0.5, 3)
    assert (column["tokens"], column["thinking_tokens"]) == (12.0, 8.0)
    assert out["columns"]["direct"]["accuracy"]["value"] == pytest.approx(0.4)
    low, high = column["accuracy"]["interval"]
    assert 0.0 <= low < 0.75 < high <= 1.0
    # items 0 to 3 are scored in both columns
    difference = out["difference"]
    assert (difference["value"], difference["n"]) == (0.25, 4)
    assert (difference["only_think"], difference["only_direct"]) == (2, 1)
    assert difference["p_value"] == mcnemar(1, 2)


def test_each_kind_is_summed_up_alone():
    kinds = summarize(GREEDY, resamples=500)["kinds"]
    assert list(kinds) == ["a", "b"]
    assert kinds["a"]["columns"]["think"]["accuracy"]["value"] == 1.0
    assert (kinds["a"]["n"], kinds["a"]["columns"]["think"]["accuracy"]["n"]) == (4, 3)
    assert kinds["a"]["columns"]["think"]["faithfulness"]["value"] == 0.75
    single = kinds["b"]["columns"]["think"]["accuracy"]
    assert single == {"value": 0.0, "interval": None, "n": 1}  # one item has no interval
    assert kinds["b"]["difference"]["value"] == -1.0 and kinds["b"]["difference"]["interval"] is None


def test_samples_make_pass_at_k_and_a_mean_per_item():
    lines = [
        line(0, "", [think(s) for s in (1.0, 0.0, 0.0, 0.0)], []),
        line(1, "", [think(s) for s in (1.0, 1.0, None, 0.0)], []),
        line(2, "", [think(None)] * 4, []),
    ]
    out = summarize(lines, pass_at=(1, 2, 4), resamples=500)
    column = out["columns"]["think"]
    assert list(out["columns"]) == ["think"] and "difference" not in out
    assert column["accuracy"]["value"] == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert column["accuracy"]["n"] == 2 and column["unscored"] == 5
    assert column["pass_at"]["1"]["value"] == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert column["pass_at"]["2"]["value"] == pytest.approx((1 / 2 + 1.0) / 2)  # 3 of 6 pairs hold a right one
    assert column["pass_at"]["4"] == {"value": 1.0, "interval": None, "n": 1}  # item 1 has only three scored replies


def test_nothing_to_average():
    out = summarize([{"id": "0", "error": "broken"}])
    assert (out["n"], out["columns"], out["kinds"]) == (0, {}, {})


RUN = {"model": "runs/a/export", "ranks": 2, "seconds": 12.3, "tokens_per_s": 500.0, "samples": 1}


def test_the_table():
    rates = {"eval_majority_rate": 0.25, "eval_majority_rate_by_kind": 0.5}
    text = render(summarize(GREEDY, resamples=500) | RUN | rates)
    lines = [" ".join(row.split()) for row in text.splitlines()]
    assert lines[0] == "runs/a/export: 5 records, 1 left out"
    assert lines[2] == "think direct think - direct"
    accuracy = next(row for row in lines if row.startswith("accuracy"))
    assert accuracy.startswith("accuracy 0.750 [") and " 0.400 [" in accuracy and " +0.250 [" in accuracy
    assert accuracy.endswith("p=1")
    assert any(row.startswith("faithfulness 0.500 [") and row.endswith("n=3 -") for row in lines)
    assert any(row.startswith("unscored replies 1 0") for row in lines)
    assert any(row.startswith("b 1 0.000 1.000 -1.000 0.000") for row in lines)
    assert "commonest answer 0.250, commonest answer of each kind 0.500" in lines
    assert lines[-1] == "12 s on 2 ranks, 500 tokens/s"
    assert "pass@" not in text


def test_the_table_of_samples_and_of_nothing():
    lines = [line(0, "", [think(1.0), think(0.0)], [])]
    text = render(summarize(lines, pass_at=(2,)) | RUN | {"samples": 2})
    assert "pass@2" in text and "think - direct" not in text
    assert "0 records, 1 left out" in render(summarize([{"id": "0", "error": "broken"}]) | RUN)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.pass_at=[1, 4]", "evaluate.pass_at: each k must be 1 to evaluate.samples=1, got [1, 4]"),
        ("evaluate.direct_template=short?", "evaluate.direct_template must contain {question}"),
        ("evaluate.sample=4", "unknown key 'evaluate.sample'"),
    ],
)
def test_mistakes_in_the_section(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs" / "quickstart.yaml", [override])
    assert message in str(caught.value)
