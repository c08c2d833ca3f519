"""VQA accuracy over direct answers: how many people gave the same answer.

Definition: Antol et al., VQA (2015), https://arxiv.org/abs/1505.00468; the leave-one-out mean and the normalisation of
answers are those of the evaluation described at https://visualqa.org/evaluation.html.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dyme.data.record import Record
from dyme.rewards.answer import gold_votes
from dyme.text.visible import visible

AGREEING = 3
"""An answer that so many people gave scores 1."""

_ARTICLES = frozenset(("a", "an", "the"))
_COUNT_TEXT = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(i) for i, word in enumerate(_COUNT_TEXT.split())}
_DIGITS["none"] = "0"
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_LOOSE_STOP = re.compile(r"\.(?!\d)")
# what may follow a word after an apostrophe; "well", "were", "its", "hell" and the like are separate words
_ENDINGS = {
    "t": "ain aren can couldn didn doesn don hadn hasn haven isn mightn mustn needn shouldn wasn weren won wouldn",
    "ve": "could i might must not should they we what where who would you",
    "re": "they what who you",
    "d": "he how i it she somebody someone something that there they where who why you",
    "ll": "it somebody someone something that they who you",
    "s": "he how she somebody someone something that there what where who why",
    "m": "i",
}
_NOT_SHORT = frozenset(("hed", "shed", "id"))
_PAIRS = [(stem, end) for end, stems in _ENDINGS.items() for stem in stems.split()]
_CONTRACTIONS = {stem + end: f"{stem}'{end}" for stem, end in _PAIRS if stem + end not in _NOT_SHORT}


def verify_vqa(answer: str, record: Record) -> float:
    """min(1, matches / 3) against the others' answers, averaged over leaving each person out once.

    The gold answers are those of n people, one each, repeated where people agree. With n < 4 the 3 becomes n - 1, and
    one gold answer has to be matched. Scores are thirds and their means, not only 0 and 1.
    """
    golds = [vqa_form(gold) for gold in gold_votes(record)]
    given = vqa_form(answer)
    same = golds.count(given) if given else 0
    n = len(golds)
    if n == 1 or not same:
        return float(same)
    wanted = min(AGREEING, n - 1)
    # the person left out agrees in `same` of the n cases
    return (same * min(1.0, (same - 1) / wanted) + (n - same) * min(1.0, same / wanted)) / n


@lru_cache(maxsize=16384)
def vqa_form(text: str) -> str:
    """`text` in lower case without punctuation and articles, number words as digits, contractions with apostrophe."""
    text = visible(text).replace("’", "'")
    # next to a blank or beside a number such as "1,000" a mark vanishes, elsewhere it parts two words
    joined = _DIGIT_COMMA.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        gone = joined or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if gone else " ")
    words = [_DIGITS.get(word, word) for word in _LOOSE_STOP.sub("", out).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
