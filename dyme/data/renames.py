"""Renames: keys of other data sets that look like ours under another name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_ALIASES = {
    "question": "problem query prompt instruction questiontext input text q user",
    "answer": "label solution gold response target output groundtruth gt answerkey correctanswer correct "
    "finalanswer goldanswer referenceanswer multiplechoiceanswer correctoption cop answeridx answerindex "
    "labels completion a assistant",
    "choices": "options candidates multiplechoices alternatives answerchoices mcoptions endings",
    "image": "img imagepath imgpath picture imagefile imgname imagename imagefilename filename filepath photo "
    "decodedimage pictures imagepaths imgs",
    "hint": "rationale rationales cot reasoning explanation thinking thought thoughts solution lecture trace",
    "facts": "caption description imagedescription captions context",
    "id": "questionid qid uid pid idx index sampleid",
    "kind": "category type questiontype task subject topic",
}
_OURS = {"answer": ("answer", "answers"), "image": ("image", "images", "file_name")}


def suggested(keys: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """For each of our names in `wanted` that `keys` lack, the key that looks like it.

    A key is suggested once, for the first name it fits, in the order question, answer, choices, image, hint ...
    """
    held = [key for key in keys if isinstance(key, str)]
    ours_held = {ours for ours in _ALIASES if set(_OURS.get(ours, (ours,))) & set(held)}
    taken = {name for ours in ours_held for name in _OURS.get(ours, (ours,))}
    free = {_plain(key): key for key in reversed(held) if key not in taken}
    if not {"q", "a"} <= set(free):  # alone, a letter says nothing
        free = {plain: key for plain, key in free.items() if len(plain) > 1}
    found: dict[str, str] = {}
    for ours, aliases in _ALIASES.items():
        if ours in wanted and ours not in ours_held:
            fits = next((name for name in (ours, f"{ours}s", *aliases.split()) if name in free), None)
            if fits is not None:
                found[ours] = free.pop(fits)
    return found


def written(fields: dict[str, str]) -> str:
    """`--fields question=problem,answer=label`."""
    return "--fields " + ",".join(f"{ours}={theirs}" for ours, theirs in fields.items())


def missing(name: str, keys: Collection[str]) -> str:
    """Why a row without the field `name` is bad, with the rename that its keys suggest."""
    shown = ", ".join(map(str, keys))
    renames = suggested(keys, ("question", "answer"))
    also = f"; if {renames[name]!r} is the {name}, write fields: {{{name}: {renames[name]}}}" if name in renames else ""
    return f"no {name}; its keys are {shown}{also}"


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()
