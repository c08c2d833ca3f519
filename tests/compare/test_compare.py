"""Comparison of evaluations written by hand: numbers, notes, mismatches, and a page that holds hostile text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dyme.compare.__main__ import main
from dyme.compare.items import CompareError, read_evaluation
from dyme.compare.paired import Comparison, compare_columns, compare_runs
from dyme.data import ChartsSource, load_records
from dyme.evaluation.statistics import mcnemar, paired_interval


def reply(score: float | None, answer: str = "4", **more: Any) -> dict[str, Any]:
    return {
        "completion": f"so\nAnswer: {answer}", "thinking": "so", "answer": answer, "guessed": False,
        "correct": bool(score and score > 0.5), "score": score, "accuracy": score, "format": 1, "tokens": 5,
        "thinking_tokens": 2, "truncated": False, "faithfulness": None, "readings": 0, **more,
    }  # fmt: skip


def item(name: str, *think: dict[str, Any], kind: str = "value", **more: Any) -> dict[str, Any]:
    return {
        "id": name, "kind": kind, "question": f"what of {name}?", "gold": ["4"], "image": None, "think": list(think),
        **more,
    }  # fmt: skip


def write(folder: Path, *rows: dict[str, Any], settings: str = "") -> Path:
    """A run folder with an evaluation inside."""
    inside = folder / "evaluation"
    inside.mkdir(parents=True)
    (inside / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (inside / "summary.json").write_text("{}")
    if settings:
        (inside / "evaluation.yaml").write_text(settings)
    return folder


def compare(a: Path, b: Path) -> Comparison:
    return compare_runs(read_evaluation(a), read_evaluation(b))


class Page(HTMLParser):
    """Tags with attributes, whether every tag is closed, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(*arguments: object) -> Page:
    assert main([*map(str, arguments)]) == 0
    return Page((Path(str(arguments[-1])) / "evaluation" / "compare.html").read_text(encoding="utf-8"))


# --- numbers ----------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Ten items: 3 right in both, 1 in A only, 4 in B only, 2 in neither; two kinds."""
    scores = [(1, 1)] * 3 + [(1, 0)] + [(0, 1)] * 4 + [(0, 0)] * 2
    rows = [
        [item(f"i{n}", reply(pair[side], str(3 + pair[side])), kind="ab"[n % 2]) for n, pair in enumerate(scores)]
        for side in (0, 1)
    ]
    return write(tmp_path / "a", *rows[0]), write(tmp_path / "b", *rows[1])


def test_paired_numbers_by_hand(two: tuple[Path, Path]) -> None:
    comparison = compare(*two)
    (section,) = comparison.sections
    assert (comparison.name_a, comparison.name_b, section.title, section.n) == ("a", "b", "think", 10)
    assert (section.both, section.only_a, section.only_b, section.neither) == (3, 1, 4, 2)
    accuracy = section.accuracy
    assert accuracy and (accuracy.n, accuracy.a, accuracy.b) == (10, 0.4, 0.7)
    assert accuracy.delta == pytest.approx(0.3)
    a, b = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
    assert accuracy.interval == paired_interval(a, b)
    assert section.p_value == mcnemar(1, 4) == pytest.approx(2 * (1 + 5) / 32)
    # kind a: items 0 2 4 6 8; kind b: 1 3 5 7 9
    assert [(kind, d.n, d.a, d.b) for kind, d in section.kinds] == [("a", 5, 0.4, 0.8), ("b", 5, 0.4, 0.6)]
    flips = [(flip.answered.item.id, flip.gained) for flip in section.flips]
    assert flips == [("i3", False), ("i4", True), ("i5", True), ("i6", True), ("i7", True)]
    assert section.faithfulness is None


def test_the_text_says_all_of_it(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(two[0]), str(two[1]), "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "10 items answered in both, 0 only in A, 0 only in B",
        "     A right          3        1",
        "     A wrong          4        2",
        "exact McNemar test: 1 right in A only, 4 in B only, p = 0.3750",
        "right in A, wrong in B: 1",
        "  i3  what of i3?  gold: 4  A: 4  B: 3",
        "wrong in A, right in B: 4, 2 shown",
    ):
        assert line in lines, line
    assert any(line.startswith("accuracy      A 0.400   B 0.700   B - A +0.300 [") for line in lines)
    assert sum(line.startswith("  i") for line in lines) == 3
    assert lines[-1] == str(two[1] / "evaluation" / "compare.html")


def test_nothing_is_dropped_in_silence(tmp_path: Path) -> None:
    a = write(
        tmp_path / "a", item("x", reply(1)), item("y", reply(None)), {"id": "z", "error": "bad"}, item("w", reply(1)),
        item("v", reply(1), direct=[reply(1)]), settings="rollout: {max_new_tokens: 9}\nrun: {dir: a}\n",
    )  # fmt: skip
    b = write(
        tmp_path / "b", item("x", reply(1)), item("y", reply(1)), item("z", reply(1)), item("v", reply(1)),
        item("u", reply(1)), item("t", reply(1)), settings="rollout: {max_new_tokens: 8}\nrun: {dir: b}\n",
    )  # fmt: skip
    (b / "evaluation" / "summary.json").unlink()
    comparison = compare(a, b)
    assert comparison.notes == (
        "3 items answered in both, 1 only in A, 2 only in B",
        "1 could not be asked in A, 0 in B",
        "settings that differ: rollout.max_new_tokens",
        f"{b / 'evaluation'} has no summary.json: that evaluation may not be complete",
        "1 items have the column direct on one side only",
    )
    (section,) = comparison.sections
    assert section.n == section.both == 2 and section.unscored == 1 and section.accuracy and section.accuracy.n == 2


def test_several_samples_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", *(item(n, reply(1), reply(0), reply(0), reply(0)) for n in "xyz"))
    b = write(
        tmp_path / "b",
        item("x", reply(1), reply(1), reply(1), reply(0)),
        item("y", reply(1), reply(1), reply(0), reply(0)),
        item("z", reply(0), reply(0), reply(0), reply(0)),
    )
    (section,) = compare(a, b).sections
    assert section.accuracy and section.accuracy.a == 0.25
    assert section.accuracy.b == pytest.approx((0.75 + 0.5) / 3)
    assert (section.lower, section.higher, section.p_value) == (1, 2, mcnemar(1, 2))
    assert (section.only_b, section.neither) == (1, 2)  # half of the samples is not more than half
    page = page_of(a, b)
    assert "sign test on mean scores of 4/4 samples: 1 items lower in B, 2 higher, p = 1.0000" in page.text
    assert "1 of 4 samples right, one shown" in page.text and "3 of 4 samples right, one shown" in page.text


def test_a_sample_without_a_score_counts_on_no_side(tmp_path: Path) -> None:
    a = write(tmp_path / "a", item("x", reply(1), reply(None), reply(None)), item("y", reply(0), reply(0), reply(0)))
    b = write(tmp_path / "b", item("x", reply(0), reply(None), reply(0)), item("y", reply(0), reply(0), reply(0)))
    (section,) = compare(a, b).sections
    assert (section.only_a, section.neither, section.lower, section.higher) == (1, 1, 1, 0)
    assert section.accuracy and (section.accuracy.a, section.accuracy.b) == (0.5, 0.0)


def test_faithfulness_over_the_items_that_have_it_on_both_sides(tmp_path: Path) -> None:
    a = write(tmp_path / "a", *(item(n, reply(1, faithfulness=f)) for n, f in (("x", 0.5), ("y", 0.25), ("z", None))))
    b = write(tmp_path / "b", *(item(n, reply(1, faithfulness=f)) for n, f in (("x", 1.0), ("y", 0.5), ("z", 1.0))))
    found = compare(a, b).sections[0].faithfulness
    assert found and (found.n, found.a, found.b) == (2, 0.375, 0.75)
    assert found.interval == paired_interval([0.5, 0.25], [1.0, 0.5])


def test_the_columns_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(
        tmp_path / "run", item("x", reply(1), direct=[reply(0)]), item("y", reply(1), direct=[reply(1)]),
        item("z", reply(1)), {"id": "w", "error": "bad"},
    )  # fmt: skip
    comparison = compare_columns(read_evaluation(run))
    (section,) = comparison.sections
    assert (comparison.name_a, comparison.name_b) == ("run, direct", "run, think")
    assert comparison.notes == ("2 items have both columns", "1 have one of them only", "1 could not be asked")
    assert (section.both, section.only_a, section.only_b, section.neither) == (1, 0, 1, 0)
    assert main([str(run)]) == 0 and "direct to think, 2 items" in capsys.readouterr().out
    with pytest.raises(CompareError, match="has not both of think, direct"):
        compare_columns(read_evaluation(write(tmp_path / "one", item("x", reply(1)))))


# --- what cannot be compared ----------


def test_errors_are_one_line_with_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good", item("x", reply(1)))
    (tmp_path / "bare").mkdir()
    cases = {
        "gold": (write(tmp_path / "gold", item("x", reply(1), gold=["5"])), "item x has another gold answer in B"),
        "asks": (write(tmp_path / "asks", item("x", reply(1), question="?")), "item x has another question in B"),
        "apart": (write(tmp_path / "apart", item("q", reply(1))), "share no answered item"),
        "column": (write(tmp_path / "column", item("x", direct=[reply(1)])), "share no column"),
        "bare": (tmp_path / "bare", "make it with launchers/evaluate.py"),
        "nowhere": (tmp_path / "nowhere", "no such folder"),
        "again": (good / "evaluation", "is given twice"),
        "twice": (write(tmp_path / "twice", item("x", reply(1)), item("x", reply(1))), "the id x occurs twice"),
        "score": (write(tmp_path / "score", item("x", reply(2))), "items.jsonl:1: think of item x: score is 2, not"),
        "none": (write(tmp_path / "none", {"id": "x", "error": "bad"}), "holds no answered item"),
        "empty": (write(tmp_path / "empty", item("x")), "item x has neither think nor direct"),
        "odd": (write(tmp_path / "odd", item("x", {"a": 1})), "is no list of answers"),
        "nameless": (write(tmp_path / "nameless", {"kind": "x"}), "items.jsonl:1: has no id"),
    }
    for name, (folder, reason) in cases.items():
        assert main([str(good), str(folder), "--out", str(tmp_path / "out.html")]) == 2, name
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("compare: ") and said.err.count("\n") == 1, name
        assert reason in said.err, said.err
    assert main([str(good)] * 3) == 2 and "two at a time" in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()


# --- the page ----------

HOSTILE = '</div><script>alert("1")</script><img src=x onerror=alert(1)>\x1b[31m"\'&'


def test_hostile_text_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"completion": HOSTILE, "thinking": HOSTILE, "kind": HOSTILE}
    same = {"question": HOSTILE, "gold": [HOSTILE], "kind": HOSTILE, "image": HOSTILE}
    a = write(tmp_path / 'a<b>"', item(HOSTILE, reply(1, HOSTILE, **entry), **same), item("n", reply(1), kind="k"))
    b = write(tmp_path / "b", item(HOSTILE, reply(0, HOSTILE, **entry), **same), item("n", reply(0), kind="k"))
    page = page_of(a, b)
    assert len(page.named("script")) == 1 and not page.named("img")
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page.text.count('<script>alert("1")</script>') >= 8
    assert (page.named("article")[0]["data-kind"] or "").startswith("</div><script>")
    # the one script that may run is the one on the page
    policy = next(attrs["content"] or "" for attrs in page.named("meta") if "http-equiv" in attrs)
    text = (b / "evaluation" / "compare.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy and "default-src 'none'" in policy
    )
    assert "\x1b" not in text and "\x1b" not in capsys.readouterr().out


def test_cards_can_be_filtered_and_say_right_and_wrong_in_words(two: tuple[Path, Path]) -> None:
    page = page_of(*two)
    assert [(card["data-way"], card["data-kind"]) for card in page.named("article")] == [
        ("lost", "b"), ("gained", "a"), ("gained", "b"), ("gained", "a"), ("gained", "b"),
    ]  # fmt: skip
    assert [pick["name"] for pick in page.named("select")] == ["way", "kind"]
    assert {option["value"] for option in page.named("option")} == {"", "gained", "lost", "a", "b"}
    assert page.text.count("✓ right") == page.text.count("✗ wrong") == 5
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}


def test_pictures_come_from_files_or_from_the_data_again(tmp_path: Path) -> None:
    charts = ChartsSource(count=2, split="test", scale="tiny")
    record = load_records(charts)[0]
    Image.new("RGB", (900, 300), "red").save(tmp_path / "big.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    drawn = {"question": record.question, "gold": list(record.answers)}
    data = "data: {eval: {source: charts, count: 2, split: test, scale: tiny}}\n"
    rows = [
        [
            item(record.id, reply(side), **drawn),
            item("file", reply(side), image=str(tmp_path / "big.png")),
            item("bad", reply(side), image=str(tmp_path / "bad.png")),
            item("gone", reply(side), image="gone.png"),
            item("text", reply(side)),
        ]
        for side in (0, 1)
    ]
    a, b = write(tmp_path / "a", *rows[0], settings=data), write(tmp_path / "b", *rows[1], settings=data)
    page = page_of(a, b)
    kinds = [(img["src"] or "").split(";")[0] for img in page.named("img")]
    assert kinds == ["data:image/png", "data:image/jpeg"]  # the tiny chart without loss
    assert "bad.png: not a readable picture" in page.text and "picture missing: gone.png" in page.text
    assert page.text.count("picture missing") == 2  # a text-only item lacks nothing
    (b / "evaluation" / "evaluation.yaml").write_text("data: {eval: {source: nonsense}}")
    again = page_of(a, b)
    assert len(again.named("img")) == 1 and "cannot be read again" in again.text
    (b / "evaluation" / "evaluation.yaml").write_text(data.replace("tiny", "tiny, seed: 5"))
    assert len(page_of(a, b).named("img")) == 1  # other charts than those that were asked about


def test_no_flip_no_cards(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, item("x", reply(1))) for name in "ab")
    page = page_of(a, b)
    assert "No item flipped." in page.text and not page.named("article") and not page.named("select")
