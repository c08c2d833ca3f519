"""TabMWP's accuracy: equal after its authors' normal form of numbers, options by letter or shared words.

Definition: Lu et al., Dynamic Prompt Learning via Policy Gradient (2023), https://arxiv.org/abs/2209.14610, and the
evaluation published with it (PromptPG). Numbers are rounded to three decimals, a dollar sign, the unit of the question
and commas are dropped, fractions are divided.
"""

from __future__ import annotations

import re

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.rewards.options import most_like

DECIMALS = 3
MAX_DIGITS = 40
"""A longer run of digits is compared as text."""

_UNIT = re.compile(r"\(Unit: ([^()]+)\)", re.IGNORECASE)
_FRACTION = re.compile(r"\$?\\d?frac\{([\d.,-]+)\}\{([\d.,]+)\}\$?")
_NUMBER = re.compile(r"(?P<top>[-+]?(?:\d+\.?\d*|\.\d+))(?:/(?P<bottom>\d+\.?\d*|\.\d+))?")


def verify_tabmwp(answer: str, record: Record) -> float:
    """1.0 if the answer equals a gold answer in `tabmwp_form`, or picks a gold option. The unit is the one that the
    authors' prompt writes into the question: "... (Unit: kg)"."""
    golds = gold_answers(record)
    if record.choices:
        return float(most_like(answer, record.choices, shared_words) in golds)
    named = _UNIT.search(record.question)
    unit = named[1].strip() if named else ""
    form = tabmwp_form(answer, unit)
    return float(any(answer == gold or (form and form == tabmwp_form(gold, unit)) for gold in golds))


def tabmwp_form(text: str, unit: str = "") -> str:
    """`text` as it is compared: a number with three decimals, or lower-case text."""
    text = _FRACTION.sub(r"\1/\2", clean_answer(text).replace("\N{MINUS SIGN}", "-"))
    if unit and text != unit:
        text = text.replace(unit, "").strip()
    text = re.sub(r"[.,/]$", "", text.removeprefix("$")).strip()
    number = _NUMBER.fullmatch(text.replace(",", ""))
    if number is None or len(text) > MAX_DIGITS:
        return text.casefold()
    top, bottom = float(number["top"]), float(number["bottom"] or 1)
    return f"{round(top / bottom, DECIMALS) + 0.0:.{DECIMALS}f}" if bottom else text.casefold()


def shared_words(answer: str, choice: str) -> float:
    """The share of words that two texts have in common, of the longer one; above 1 where they are equal in
    `tabmwp_form`, so texts of a single word are equal or not."""
    if tabmwp_form(answer) == tabmwp_form(choice):
        return 2.0
    ours, theirs = answer.casefold().split(" "), choice.casefold().split(" ")
    return len(set(ours) & set(theirs)) / max(len(ours), len(theirs))
