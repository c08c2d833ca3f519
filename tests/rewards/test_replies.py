"""Replies as models write them, read and verified: the reported ones, and more of each kind."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dyme.data.record import Record
from dyme.rewards.answer import direct_completion, format_score, split_completion, write_reply
from dyme.rewards.compose import check
from dyme.settings.rewards import RewardConfig
from dyme.text.json_lines import read_jsonl

REPORTED = list(read_jsonl(Path(__file__).parent / "replies.jsonl"))


def verdict(reply, gold, choices=(), *, verifier="auto", flag="Answer:", style="think"):
    """Accuracy and format of a reply."""
    record = Record("r", "q", (gold,) if isinstance(gold, str) else gold, choices=tuple(choices))
    checked = check(
        [reply], [record], truncated=[False], config=RewardConfig(verifier=verifier), flag=flag, style=style
    )
    assert not checked.errors
    return checked.parts[0, 2], checked.parts[0, 0]


@pytest.mark.parametrize("row", REPORTED, ids=lambda row: row["reply"][-24:])
def test_reported(row):
    assert verdict(row["reply"], row["gold"], row["choices"]) == (row["want_accuracy"], row["want_format"])


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        # a sentence follows
        ("2:35 P.M. The train leaves then.", "2:35 P.M"),
        ("7 a.m. It is the first stop.", "7 a.m"),
        ("U.S. The flag shows it.", "U.S"),
        ("Washington D.C. This is the capital of it.", "Washington D.C"),
        ("Apple Inc. The table says so.", "Apple Inc"),
        ("145°. The angles add up to 180°.", "145°"),
        ("145°. Angles add up to 180°.", "145°"),
        ("5 cm². The square has that area.", "5 cm²"),
        ("5 m. The ladder is that long.", "5 m"),
        ("5 m. Ladders are that long.", "5 m"),
        (r"\(x\). The other side is zero.", "x"),
        (r"$x$. The other side is zero.", "x"),
        ("(3, 4). The point lies there.", "(3, 4)"),
        ("x². The derivative is 2x then.", "x²"),
        ("20 €. The price is in the table.", "20 €"),
        ("x. The other side is zero.", "x"),
        ("π. The circle has radius one.", "π"),
        ("5!. The product is that large.", "5!"),
        ("sí. Él lleva un sombrero.", "sí"),
        ("да. Он носит шляпу.", "да"),
        ("نعم. الرجل يرتدي قبعة.", "نعم"),
        ("是。图中有一个男人。", "是"),
        ("“Yes.” The man is wearing it.", "Yes"),
        # labels, initials, titles, ellipses and names go on
        ("B. The dog is there", "B. The dog is there"),
        ("(b. The dog is there", "(b. The dog is there"),
        ("J. R. R. Tolkien wrote it", "J. R. R. Tolkien wrote it"),
        ("George W. Bush was president", "George W. Bush was president"),
        ("U.S. Army has three men", "U.S. Army has three men"),
        ("Dr. The Who is it", "Dr. The Who is it"),
        ("Mr. Smith is the man", "Mr. Smith is the man"),
        ("St. Louis is it", "St. Louis is it"),
        ("Well... The dog is there", "Well... The dog is there"),
        ("no. yes it is it", "no. yes it is it"),
        ("yes. no", "yes. no"),
        ("是。否", "是。否"),
        # lead-ins
        ("The answer is yes.", "yes"),
        ("the final answer is: **B**", "B"),
        ("So, the correct answer is 4. The red bar shows it.", "4"),
        ("The correct option is (B).", "(B)"),
        ("The answer is:\n\n5", "5"),
        ("The answer is", "The answer is"),
        ("The answer is C. The dog is there", "C. The dog is there"),
        ("It's 5", "It's 5"),
        ("The answer isn't 5", "The answer isn't 5"),
        (r"The answer is \boxed{5}.", "5"),
        # nobody sees these
        ("\u200b\n5", "5"),
        ("\ufeff5\u200f.", "5"),
        ("\u200e\n\n**5**\u200b", "5"),
    ],
)
def test_answer_of_a_line(written, answer):
    parts = split_completion("so\nAnswer: " + written)
    assert (parts.answer, format_score(parts)) == (answer, 1.0)
    assert direct_completion(written).answer == answer


@pytest.mark.parametrize(
    ("written", "guessed"),
    [
        (r"\boxed{Black or African American alone}", False),
        (r"\boxed{either}", False),
        (r"**\boxed{\text{red or blue}}**", False),
        (r"\boxed{A or B} or \boxed{A or B}", True),
        (r"\boxed{A} or B", True),
        (r"either A or \boxed{B}", True),
        (r"\boxed{A or \boxed{B}}", True),
        (r"\boxed{A} \boxed{A or B}", True),
        (r"\boxed{A or B", True),
    ],
)
def test_an_or_beside_a_box_is_a_guess(written, guessed):
    parts = split_completion("so Answer: " + written)
    assert parts.guessed == guessed
    assert format_score(parts) == (not guessed)


FLAGS = ["Answer:", "Final answer:", "答案：", "Réponse :", "=>", "####", "The answer is", "<answer>"]


def ways(flag):
    """Ways to write a flag that mean the same."""
    yield from (flag, flag.upper(), flag.casefold(), unicodedata.normalize("NFD", flag), f"\u200f{flag}\u200b")
    yield "\u200b".join(flag)
    yield flag[:2] + "\ufeff\u00ad" + flag[2:]
    yield "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in flag)
    yield flag.replace(" ", "\u00a0 ")
    if flag[-1] in ":：":
        words = flag[:-1].rstrip()
        yield from (words + tail for tail in (":", " :", "：", " ：", "\u00a0:", "\u200b:", "﹕"))
        yield from (f"**{words}**:", f"**{words}** : ", f"__{words} :__", f"*{words}:*")


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_in_every_layout(flag):
    for way in ways(flag):
        for blank in ("", " ", "\n"):
            parts = split_completion(f"I see five\n{way}{blank}5", flag)
            assert (parts.thinking.strip("\u200f\n"), parts.answer, parts.flag_count) == ("I see five", "5", 1), (
                way,
                blank,
            )


@pytest.mark.parametrize("text", ["Answers: 5", "Answer\n: 5", "Answer 5", "Answer; 5", "An swer: 5"])
def test_no_flag(text):
    assert split_completion("so " + text).flag_count == 0


@pytest.mark.parametrize(
    ("reply", "gold", "accuracy"),
    [
        ("Yes. The man is wearing a hat.", "Yes", 1),
        ("yes. the man is WEARING a hat", "Yes. The man is wearing a hat.", 1),
        ("Yes. The man is wearing a hat. He is tall as well.", "Yes. The man is wearing a hat.", 1),
        ("Yes. The man is wearing a hat.\n\nI hope this helps.", "Yes. The man is wearing a hat.", 1),
        ("**Yes. The man is wearing a hat.**", "Yes. The man is wearing a hat.", 1),
        ('"Yes. The man is wearing a hat."', "Yes. The man is wearing a hat.", 1),
        ("Yes. The man is\u200b wearing a hat.", "Yes. The man is wearing a hat.", 1),
        ("Yes", "Yes. The man is wearing a hat.", 0),
        ("Yes. The man is wearing a coat.", "Yes. The man is wearing a hat.", 0),
        ("No. Yes. The man is wearing a hat.", "Yes. The man is wearing a hat.", 0),
        ("first line\n\n  second line\n\n", "first line\nsecond line", 1),
        ("first line", "first line\nsecond line", 0),
        ("second line\nfirst line", "first line\nsecond line", 0),
        ("The answer is blowing in the wind", "The answer is blowing in the wind", 1),
        ("yes. no.", "yes", 0),
        ("yes. no.", "no", 0),
        ("yes\nno", "no", 0),
        ("unknown\n5", "5", 0),
    ],
)
def test_gold_answers_of_several_sentences(reply, gold, accuracy):
    assert verdict("I see\nAnswer: " + reply, gold)[0] == accuracy


GOLDS = [
    "Yes. The man is wearing a hat.",
    "first line\nsecond line",
    "first line\n\n\nsecond line",
    "# 5",
    "### heading",
    "- red",
    "> 5",
    "* red",
    '"red"',
    "'tis",
    "«oui»",
    "“no”",
    "$5",
    "$x^2$",
    "$$x$$",
    r"\(x\)",
    r"\[x\]",
    r"\boxed{5}",
    "```\nx = 1\n```",
    "`x`",
    "*red*",
    "A*",
    "_x_",
    "x_",
    "The answer is blowing in the wind",
    "U.S. The flag",
    "2:35 P.M.",
    "red or blue",
    "A. The first. The second one is",
    "- red\n- green\n- blue",
    "Well... The dog is there",
    "\u200bred",
    "red\u200f",
    "是。图中有一个男人。",
    "No.",
    "...and then",
]


@pytest.mark.parametrize("style", ["think", "direct"])
@pytest.mark.parametrize("verifier", ["auto", "exact"])
@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_answer_is_read_back(gold, verifier, style):
    for flag in FLAGS:
        if flag in gold:  # refused at loading
            continue
        reply = write_reply(gold, flag, "I see it", style=style)
        for tail in ("", "\n", " \n\n"):
            assert verdict(reply + tail, gold, verifier=verifier, flag=flag, style=style) == (1.0, 1.0), (flag, tail)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(max_size=40))
@example("\\boxed{" * 9)
def test_any_text_is_read(text):
    for flag in ("Answer:", "答案："):
        for style in ("think", "direct"):
            accuracy, valid = verdict(write_reply(text, flag, text, style=style), "5", flag=flag, style=style)
            assert accuracy in (0.0, 1.0) and valid in (0.0, 1.0)
