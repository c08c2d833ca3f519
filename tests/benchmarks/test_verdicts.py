"""The published metrics as written down for the comparison, and the comparison itself."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.verdicts import published
from benchmarks.verdicts.__main__ import count, table, with_table
from benchmarks.verdicts.published import METRICS
from tests.helpers.launching import ROOT

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("verdicts-*.json"))


@pytest.mark.parametrize(
    ("metric", "answer", "golds", "choices", "score"),
    [
        ("vqa", "two", ("2",) * 3 + ("3",) * 7, (), 0.9),
        ("vqa", "The cat", ("cat",) * 9 + ("dog",), (), 1.0),
        ("vqa", "The cat", ("cat",) * 10, (), 0.0),  # all agree: nothing is put in the normal form
        ("relaxed", "105", ("100",), (), 1.0),
        ("relaxed", "94.9", ("100",), (), 0.0),
        ("relaxed", "0.12", ("12%",), (), 1.0),
        ("relaxed", "Blue", ("blue",), (), 1.0),
        ("relaxed", "0.0", ("0",), (), 0.0),
        ("numeric", "1,000", ("1000",), (), 1.0),
        ("numeric", "1000.0", ("1000",), (), 0.0),
        ("numeric", "12 apples", ("12",), (), 1.0),
        ("mathvista", "12.9", ("12",), (), 1.0),
        ("mathvista", "0.54", ("0.5",), (), 1.0),
        ("mathvista", "0.5", ("0.50",), (), 0.0),
        ("mathvista", "dgo", ("dog",), ("cat", "dog"), 1.0),
        ("mathvista", "(B)", ("dog",), ("cat", "dog"), 1.0),
        ("tabmwp", "$1,000.0", ("1000",), (), 1.0),
        ("tabmwp", "5 cm", ("5",), (), 1.0),
        ("tabmwp", "1/3", ("0.333",), (), 1.0),
        ("tabmwp", "2:25 p.m.", ("2:25 P.M.",), (), 1.0),
        ("tabmwp", "nonsense", ("cat",), ("cat", "dog"), 1.0),
    ],
)
def test_published(metric, answer, golds, choices, score):
    assert METRICS[metric](answer, golds, choices, "cm") == pytest.approx(score)


def test_levenshtein():
    assert published._levenshtein("kitten", "sitting") == 3


@pytest.mark.skipif("DYME_DATA" not in os.environ, reason="DYME_DATA is not set")
@pytest.mark.parametrize("verifier", METRICS)
def test_what_both_must_agree_on(verifier):
    found = count(verifier, per_set=12)
    assert found.total > 100
    assert "as it is" not in found.theirs, found.examples
    assert verifier == "vqa" or "other" not in found.ours, found.examples


def test_the_table_of_a_page_is_replaced():
    old, new = (table({"vqa": {"answers": n, "same": n, "ours": {}, "theirs": {"case": 1}}}) for n in (1, 2))
    assert with_table(f"# A\n\n{old}\n\nB\n\nC\n", new) == f"# A\n\n{new}\n\nB\n\nC\n"


def test_the_docs_show_the_recorded_counts():
    recorded = json.loads(RESULTS[-1].read_text(encoding="utf-8"))
    assert table(recorded["verifiers"]) in (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert RESULTS[-1].name in (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
