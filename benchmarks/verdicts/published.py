"""The published metrics, written down once more from their definitions, without any code of ours.

Each takes the answer that was read from a reply, and what the set gives: (answer, golds, choices, unit) -> score in
[0, 1]. They keep the oddities of the originals and raise nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str], Sequence[str], str], float]

# --- VQA, https://visualqa.org/evaluation.html --------------------------------------------------

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_WORDS = {w: str(i) for i, w in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"])}
_WORDS |= {"nine": "9", "ten": "10", "none": "0"}
_SHORT = {"dont": "don't", "cant": "can't", "isnt": "isn't", "wont": "won't", "doesnt": "doesn't", "arent": "aren't"}


def vqa(answer: str, golds: Sequence[str], choices: Sequence[str] = (), unit: str = "") -> float:
    """Ten people; min(1, matches / 3) against the other nine, the mean over the ten. Where all ten say the same,
    nothing is put in the normal form."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    golds = list(golds)
    if len(set(golds)) > 1:
        golds = [_vqa_marks(gold) for gold in golds]
        answer = _vqa_words(_vqa_marks(answer))
    scores = []
    for left_out in range(len(golds)):
        others = [gold for i, gold in enumerate(golds) if i != left_out]
        scores.append(min(1.0, others.count(answer) / 3))
    return sum(scores) / len(scores)


def _vqa_marks(text: str) -> str:
    out = text
    for mark in _MARKS:
        apart = mark + " " in text or " " + mark in text or re.search(r"\d,\d", text)
        out = out.replace(mark, "" if apart else " ")
    return re.sub(r"(?!<=\d)\.(?!\d)", "", out)


def _vqa_words(text: str) -> str:
    words = [_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(_SHORT.get(word, word) for word in words if word not in ("a", "an", "the"))


# --- ChartQA, https://arxiv.org/abs/2203.10244, as computed by pix2struct ------------------------


def relaxed(answer: str, golds: Sequence[str], choices: Sequence[str] = (), unit: str = "") -> float:
    """Within 5 % of a gold number other than 0, else the same text but for case."""
    [gold] = set(golds)
    ours, theirs = _chart_number(answer), _chart_number(gold)
    if ours is not None and theirs:
        return float(abs(ours - theirs) / abs(theirs) <= 0.05)
    return float(answer.lower() == gold.lower())


def _chart_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


# --- GSM8K, https://arxiv.org/abs/2110.14168 ----------------------------------------------------


def gsm8k(answer: str, golds: Sequence[str], choices: Sequence[str] = (), unit: str = "") -> float:
    """The characters after "#### " that a number is written with, without commas, are those of the gold answer."""
    found = re.search(r"#### (-?[0-9.,]+)", f"#### {answer}")
    return float(found is not None and found[1].strip().replace(",", "") == golds[0])


# --- MathVista, https://arxiv.org/abs/2310.02255 ------------------------------------------------


def mathvista(answer: str, golds: Sequence[str], choices: Sequence[str] = (), unit: str = "") -> float:
    """Options by letter or nearest text, whole numbers cut off, others rounded to the decimals of the gold answer."""
    gold = golds[0]
    if choices:
        letters = re.findall(r"\(([a-zA-Z])\)", answer.strip())
        said = letters[0].upper() if letters else answer.strip()
        names = [chr(65 + i) for i in range(len(choices))]
        if said in names:
            return float(choices[names.index(said)] == gold)
        return float(min(choices, key=lambda choice: _levenshtein(said, choice)) == gold)
    try:
        if re.fullmatch(r"-?\d+", gold):
            return float(str(int(float(answer))) == gold)
        if re.fullmatch(r"-?\d*\.\d+", gold):
            return float(str(round(float(answer), len(gold.split(".")[1]))) == gold)
    except (ValueError, OverflowError):
        return 0.0
    return float(answer == gold)


def _levenshtein(a: str, b: str) -> int:
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table[len(a)][len(b)]


# --- TabMWP, https://arxiv.org/abs/2209.14610 ---------------------------------------------------


def tabmwp(answer: str, golds: Sequence[str], choices: Sequence[str] = (), unit: str = "") -> float:
    """Equal in the authors' normal form; options by letter, else by the words they share with the answer."""
    said = re.sub(r"(?<![AP]\.M)\.$", "", answer).replace("\N{MINUS SIGN}", "-")
    if choices:
        said = _tab_option(said, choices)
    return float(_tab_form(said, unit).lower() == _tab_form(golds[0], unit).lower())


def _tab_option(said: str, choices: Sequence[str]) -> str:
    for pattern in (r"^\(([A-Za-z])\)$", r"^([A-Za-z])$", r"^([A-Za-z]). ", r"^\(([A-Za-z])\) [\s\S]+$"):
        found = re.findall(pattern, said)
        if found and (at := ord(found[0].upper()) - 65) < len(choices):
            return choices[at]
    return max(choices, key=lambda choice: _tab_likeness(choice, said))


def _tab_likeness(a: str, b: str) -> float:
    if a == b:
        return 2.0
    if " " not in a + b:
        return 0.0
    return len(set(a.split(" ")) & set(b.split(" "))) / max(len(a.split(" ")), len(b.split(" ")))


def _tab_form(text: str, unit: str) -> str:
    text = re.sub(r"[,./]$", "", re.sub(r"^\$", "", text))
    if not re.match(r"^[-+]?[\d,./]+$", text):
        return text.replace(unit, "").strip() if unit else text
    text = text.replace(",", "")
    try:
        if re.match(r"[-+]?\d+$", text):
            return str(int(text))
        top, _, bottom = text.partition("/")
        return re.sub(r"\.0+$", "", str(round(float(top) / float(bottom or 1), 3)))
    except (ValueError, ZeroDivisionError):
        return text


METRICS: dict[str, Metric] = {
    "vqa": vqa,
    "relaxed": relaxed,
    "numeric": gsm8k,
    "mathvista": mathvista,
    "tabmwp": tabmwp,
}
"""Our verifier -> the published metric that it stands for."""
