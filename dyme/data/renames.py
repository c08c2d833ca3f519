"""Renames: keys of other data sets that look like ours under another name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

Kind = Literal["text", "list", "picture"]
"""What a key holds: a list, a picture in the row itself, or anything else."""
_ALIASES = {
    "question": "problem query prompt instruction questiontext input text q user",
    "answer": "label solution gold response target output groundtruth gt answerkey correctanswer correct "
    "finalanswer goldanswer referenceanswer multiplechoiceanswer correctoption cop answeridx answerindex "
    "labels correctchoiceidx correctchoice correctindex completion a assistant",
    "choices": "options candidates multiplechoices alternatives answerchoices mcoptions endings",
    "image": "img imagepath imgpath picture imagefile imgname imagename imagefilename filename filepath photo "
    "decodedimage pictures imagepaths imageurls imageurl imgs",
    "hint": "rationale rationales cot reasoning explanation thinking thought thoughts solution lecture trace",
    "facts": "caption description imagedescription captions",
    "id": "questionid qid uid pid idx index sampleid",
    "kind": "category type questiontype task subject topic",
}
_SINGLE = ("question", "id", "kind")
_OURS = {"answer": ("answer", "answers"), "image": ("image", "images", "file_name")}


def kind_of(value: object) -> Kind:
    if isinstance(value, list):
        return "list"
    return "picture" if hasattr(value, "load") else "text"


def suggested(keys: Iterable[str] | Mapping[str, Kind], wanted: Collection[str]) -> dict[str, str]:
    """For each of our names in `wanted` that `keys` lack, the key that looks like it.

    A key is suggested once, for the first name it fits, in the order question, answer, choices, image, hint ...
    Where `keys` say what they hold, a list is no question, id or kind, several answers are `answers`, and `image` that
    is the name of a picture gives way to a key that holds one.
    """
    kinds: Mapping[str, Kind] = keys if isinstance(keys, Mapping) else {}
    held = [key for key in keys if isinstance(key, str)]
    ours_held = {ours for ours in _ALIASES if set(_OURS.get(ours, (ours,))) & set(held)}
    taken = {name for ours in ours_held for name in _OURS.get(ours, (ours,))}
    free = {_plain(key): key for key in reversed(held) if key not in taken}
    if not {"q", "a"} <= set(free):  # alone, a letter says nothing
        free = {plain: key for plain, key in free.items() if len(plain) > 1}
    found: dict[str, str] = {}
    for ours, aliases in _ALIASES.items():
        better = ours == "image" and kinds.get("image") == "text" and "picture" in kinds.values()
        if ours not in wanted or (ours in ours_held and not better):
            continue
        for name in (ours, f"{ours}s", *aliases.split()):
            kind = kinds.get(free.get(name, ""), "picture" if better else "")
            if name not in free or (better and kind != "picture") or (kind == "list" and ours in _SINGLE):
                continue
            found["answers" if ours == "answer" and kind == "list" else ours] = free.pop(name)
            break
    return found


def written(fields: dict[str, str]) -> str:
    """`--fields question=problem,answer=label`."""
    return "--fields " + ",".join(f"{ours}={theirs}" for ours, theirs in fields.items())


def missing(name: str, row: Mapping[str, object]) -> str:
    """Why a row without the field `name` is bad, with the rename that its keys suggest."""
    shown = ", ".join(map(str, row))
    renames = suggested({key: kind_of(value) for key, value in row.items()}, ("question", "answer"))
    ours = next((ours for ours in (name, f"{name}s") if ours in renames), "")
    also = f"; if {renames[ours]!r} is the {name}, write fields: {{{ours}: {renames[ours]}}}" if ours else ""
    if name in row:
        also = f"; its {name} is empty (null or NaN)"
    elif not ours and isinstance(row.get("questions"), list):
        also = "; 'questions' is a list: write a row for each of them"
    elif not ours and any(_plain(key) in ("questionid", "qid") for key in row):
        also = f"; if another file has it, write the {name} of each row here"
    return f"no {name}; its keys are {shown}{also}"


def _plain(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()
