"""Yes or no in everyday words."""

from __future__ import annotations

import itertools
import re

from dyme.data.record import Record
from dyme.rewards.answer import gold_answers
from dyme.text.normalise import normalise_text

_YES_TEXT = "yes yeah yep yup yea aye true correct affirmative absolutely definitely certainly indeed"
_NO_TEXT = "no nope nah nay false incorrect untrue wrong negative"
_PLAIN_TEXT = "yes yeah yep yup true correct no nope nah false incorrect untrue wrong"
_VERB_TEXT = "is are was were has have had with shows show contains there in at be"
_YES = frozenset(_YES_TEXT.split())
_NO = frozenset(_NO_TEXT.split())
# these mean yes or no alone, but not before another word ("right side", "sure sign", "y axis")
_LONE_YES = frozenset(("y", "right", "sure", "ok", "okay", "of course", "it is", "it does", "there is", "there are"))
_LONE_NO = frozenset(("n", "not at all", "of course not", "not really"))
# these mean yes or no even in the middle of a sentence
_PLAIN = frozenset(_PLAIN_TEXT.split())
# after these "no" belongs to a noun
_VERB_BEFORE = frozenset(_VERB_TEXT.split())
_LEAD_IN = re.compile(r"(?:(?:final |correct |right )*answer (?:is )?|(?:it|this|that|statement)(?: is|s) )")
_NOT = re.compile(r"(?:isnt|is not|not) ")
_DENIED = re.compile(r"\w+ (?:isnt|is (?:not|wrong|incorrect|false|untrue))\b")


def verify_yes_no(answer: str, record: Record) -> float:
    """1.0 if the answer says yes or no as a gold answer does. Raises `ValueError` for a gold that says neither."""
    golds = {reads_yes(gold) for gold in gold_answers(record)}
    if None in golds:
        raise ValueError(
            f"record {record.id!r}: a gold answer of {record.answers} is neither yes nor no; correct the record or set "
            "reward.verifier to auto"
        )
    return float(reads_yes(answer) in golds)


def reads_yes(text: str) -> bool | None:
    """True for yes, False for no, None for neither or both ("yes or no")."""
    form = " ".join(re.findall(r"\w+", normalise_text(text)))
    lead = _LEAD_IN.match(form)
    form = form[lead.end() :] if lead else form
    negated = _NOT.match(form)
    if form in _LONE_YES | _LONE_NO:
        return form in _LONE_YES
    words = (form[negated.end() :] if negated else form).split()
    if not words or words[0] not in _YES | _NO or _DENIED.match(form):
        return None
    yes = words[0] in _YES
    if any(said != yes for said in _said_later(words)):
        return None
    return not yes if negated else yes


def _said_later(words: list[str]) -> list[bool]:
    """The verdict of the words after the first: "not wrong" is yes, and the "no" of "there is no dog" is none."""
    pairs = itertools.pairwise(words)
    told = [(before, word) for before, word in pairs if word in _PLAIN]
    return [(word in _YES) != (before == "not") for before, word in told if word != "no" or before not in _VERB_BEFORE]
