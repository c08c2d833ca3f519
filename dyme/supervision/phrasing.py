"""Phrasing: a trace as a template with slots, and a template filled for another record.

A template is text with the slots of a derivation, `{a} {b} {x} {y} {t} {answer}`, and lists of readings,
`[each|{name} {value}|, ]` for all facts in order and `[some|...]` for the counted ones; the separator of the items
follows the last bar. The text holds no digits, so a template states no number of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dyme.supervision.derive import Derivation, name_pattern
from dyme.supervision.judge_prompts import addresses_judge
from dyme.supervision.readings import Fact, contradicted_share, list_facts
from dyme.text.normalise import plain
from dyme.text.numbers import NUMBER_WORDS

BUILT_IN = {
    "value": "[each|{name} {value}|, ]. {a} is {x}.",
    "maximum": "[each|{name} {value}|, ]. largest is {a} {x}, so {answer}.",
    "minimum": "[each|{name} {value}|, ]. smallest is {a} {x}, so {answer}.",
    "count": "[each|{name} {value}|, ]. over {t}: [some|{name} {value}|, ], so {answer}.",
    "count_below": "[each|{name} {value}|, ]. under {t}: [some|{name} {value}|, ], so {answer}.",
    "sum": "[each|{name} {value}|, ]. {x} + {y} = {answer}.",
    "difference": "[each|{name} {value}|, ]. {x} - {y} = {answer}.",
    "comparison": "[each|{name} {value}|, ]. {a} {x} is more than {b} {y}, so {answer}.",
    "comparison_below": "[each|{name} {value}|, ]. {a} {x} is less than {b} {y}, so {answer}.",
}
"""A template for each kind of derivation, used until the pool has a better one."""

_SLOTS = {"value": "ax", "maximum": "ax", "minimum": "ax", "count": "t", "count_below": "t"}
_SLOTS |= dict.fromkeys(("sum", "difference", "comparison", "comparison_below"), "abxy")
# the slot that a trace must use outside the list to lead to its answer
_RESULT = {"value": "x", "maximum": "a", "minimum": "a", "comparison": "a", "comparison_below": "a"}
_SLOT = re.compile(r"\[(each|some)\|([^|\]]*)\|([^|\]]*)\]|\{(a|b|x|y|t|answer)\}")
_NUMBER = r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?(?!\w|[.,]\d)"
_MAX_GAP, _MAX_SEPARATOR, _MAX_TEMPLATE = 12, 12, 300


@dataclass(frozen=True)
class _Mention:
    """A label (with its fact), a number or a list in a trace, and the slot it fills ("" while unknown)."""

    start: int
    end: int
    fact: Fact | None = None
    value: float = math.nan
    slot: str = ""


def fill_template(template: str, derivation: Derivation) -> str | None:
    """The trace of a derivation in the words of a template; None if the derivation lacks a slot of the template."""

    def part(slot: re.Match[str]) -> str:
        if slot[4]:
            return derivation.slots[slot[4]]
        facts = derivation.facts if slot[1] == "each" else derivation.some
        items = (slot[2].replace("{name}", fact.name).replace("{value}", fact.text) for fact in facts)
        return slot[3].join(items) or "none"

    used = {slot[4] for slot in _SLOT.finditer(template) if slot[4]}
    return _SLOT.sub(part, template) if used <= set(derivation.slots) else None


def learn_template(trace: str, derivation: Derivation) -> str | None:
    """The template that a trace follows; None if it is not one to learn from.

    The trace must be faithful, state nothing beyond the derivation, lead to the answer and repeat nothing. If two slots
    have the same value there is no template, since a number could stand for either.
    """
    trace = plain(trace)
    if derivation.kind not in _SLOTS or not _distinct(derivation) or re.search(r"[{}\[\]|]", trace):
        return None
    if addresses_judge(trace) or contradicted_share(trace, facts_text(derivation.facts)):
        return None
    mentions = _mentions(trace, derivation.facts)
    listed = _lists(trace, mentions, derivation)
    if listed is None:
        return None
    slotted = [_with_slot(mention, derivation) for mention in listed]
    if any(not mention.slot for mention in slotted):
        return None
    template, at = "", 0
    for mention in slotted:
        template += trace[at : mention.start] + mention.slot
        at = mention.end
    template = (template + trace[at:]).strip()
    return template if _is_template(template, slotted, derivation.kind) else None


def facts_text(facts: Sequence[Fact]) -> str:
    return ", ".join(f"{fact.name} {fact.text}" for fact in facts)


def supported(trace: str, derivation: Derivation) -> bool:
    """Whether every number of a trace is in the facts, the threshold or the answer, and no reading contradicts them."""
    known = {fact.value for fact in derivation.facts}
    texts = [*derivation.slots.values(), *(fact.name for fact in derivation.facts)]
    known |= {_value(hit[0]) for text in texts for hit in re.finditer(_NUMBER, text)}
    given = {_value(hit[0]) for hit in re.finditer(_NUMBER, trace)}
    return given <= known and not contradicted_share(trace, facts_text(derivation.facts))


def _value(text: str) -> float:
    return float(text.replace(",", ""))


def _distinct(derivation: Derivation) -> bool:
    """Whether no two slots could be mistaken for each other."""
    slots = derivation.slots
    parsed = list_facts(facts_text(derivation.facts))
    if [(f.label, f.value) for f in parsed] != [(f.label, f.value) for f in derivation.facts]:
        return False
    if derivation.kind in ("count", "count_below") and not derivation.some:
        return False  # "none" is a word of the record, not of the template
    wanted = [slots[name] for name in ("x", "y", "t") if name in slots]
    if derivation.kind in ("sum", "difference", "count", "count_below"):
        wanted.append(slots["answer"])
    return len(set(wanted)) == len(wanted)


def _mentions(trace: str, facts: Sequence[Fact]) -> list[_Mention]:
    by_name = {fact.name.casefold(): fact for fact in facts}
    names = [_Mention(m.start(), m.end(), by_name[m[0].casefold()]) for m in name_pattern(facts).finditer(trace)]
    taken = {at for mention in names for at in range(mention.start, mention.end)}
    numbers = [
        _Mention(m.start(), m.end(), value=_value(m[0])) for m in re.finditer(_NUMBER, trace) if m.start() not in taken
    ]
    return sorted([*names, *numbers], key=lambda mention: mention.start)


def _lists(trace: str, mentions: list[_Mention], derivation: Derivation) -> list[_Mention] | None:
    """The mentions with runs of readings ("red 4, blue 2") joined into lists; None if a list is given twice."""
    out: list[_Mention] = []
    seen: Counter[str] = Counter()
    at = 0
    while at < len(mentions):
        run = _readings_run(trace, mentions, at)
        name = _list_name([pair[0].fact for pair in run if pair[0].fact], derivation, seen)
        if name:
            seen[name] += 1
            out.append(_Mention(run[0][0].start, run[-1][1].end, slot=_list_slot(trace, name, run)))
            at += 2 * len(run)
        else:
            out.append(mentions[at])
            at += 1
    return None if max(seen.values(), default=0) > 1 else out


def _readings_run(trace: str, mentions: list[_Mention], at: int) -> list[tuple[_Mention, _Mention]]:
    """The longest list of readings from mention `at` on, alike in form and without a label twice."""
    pairs: list[tuple[_Mention, _Mention]] = []
    gap = ""
    while at + 1 < len(mentions):
        name, number = mentions[at], mentions[at + 1]
        between = trace[name.end : number.start]
        if not name.fact or number.fact or len(between) > _MAX_GAP:
            break
        if not math.isclose(number.value, name.fact.value, rel_tol=1e-6) or re.search(r"[.;]\s|\n", between):
            break
        if pairs:
            separator = trace[pairs[-1][1].end : name.start]
            if between != gap or len(separator) > _MAX_SEPARATOR or re.search(r"[.:=<>+]", separator):
                break
            if any(name.fact == other[0].fact for other in pairs):
                break
        gap = between
        pairs.append((name, number))
        at += 2
    return pairs


def _list_name(facts: list[Fact], derivation: Derivation, seen: Counter[str]) -> str:
    """The list that these readings form: "each" of all facts, "some" of the counted ones, or "" for none."""
    labels = {fact.label for fact in facts}
    if not labels:
        return ""
    if labels == {fact.label for fact in derivation.some} and (seen["each"] or len(labels) < len(derivation.facts)):
        return "some"
    return "each" if len(labels) > 1 and labels == {fact.label for fact in derivation.facts} else ""


def _list_slot(trace: str, name: str, run: list[tuple[_Mention, _Mention]]) -> str:
    gap = trace[run[0][0].end : run[0][1].start]
    separators = Counter(trace[a[1].end : b[0].start] for a, b in pairwise(run))
    separator = separators.most_common(1)[0][0] if separators else ", "
    item = "{name}" + gap + "{value}"
    return f"[{name}|{item}|{separator}]"


def _with_slot(mention: _Mention, derivation: Derivation) -> _Mention:
    if mention.slot:
        return mention
    slots = derivation.slots
    for name in _SLOTS[derivation.kind]:
        if mention.fact and name in "ab" and slots.get(name) == mention.fact.name:
            return replace(mention, slot=f"{{{name}}}")
        numeric = name in "xyt" and re.fullmatch(_NUMBER, slots.get(name, ""))
        if not mention.fact and numeric and math.isclose(_value(slots[name]), mention.value, rel_tol=1e-6):
            return replace(mention, slot=f"{{{name}}}")
    answer = slots["answer"]
    if not mention.fact and re.fullmatch(_NUMBER, answer) and _value(answer) == mention.value:
        return replace(mention, slot="{answer}")
    return mention


def _is_template(template: str, mentions: list[_Mention], kind: str) -> bool:
    words = re.findall(r"\w+", _SLOT.sub(" ", template).casefold())
    if len(template) > _MAX_TEMPLATE or any(word in NUMBER_WORDS - {"one"} or not word.isalpha() for word in words):
        return False
    used = Counter(mention.slot for mention in mentions if not mention.slot.startswith("["))
    # a step may name what it calculates with and conclude with it; more is saying it again
    if any(times > 2 for times in used.values()):
        return False
    result = _RESULT.get(kind, "answer")
    return used[f"{{{result}}}"] > 0
