"""Round trip: a record is of use only if its own gold answer, written as a reply and read back, is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, direct_completion, read_completion, write_reply
from dyme.rewards.compose import Style, check
from dyme.rewards.verifiers import Verifier, get_verifier
from dyme.rewards.vqa import verify_vqa
from dyme.settings.prompt import PromptConfig
from dyme.settings.rewards import RewardConfig

RIGHT_BY_VOTES = 0.5
"""A score of `vqa` above this counts as right."""
SHOWN = 80
"""Characters of an answer that a reason quotes."""


def round_trip(reward: RewardConfig, prompt: PromptConfig) -> Callable[[Record], str | None]:
    """A check of records under the settings of a run: why no reply can be right, or None where the gold answer is.

    That answer is written as a reply in both styles and scored as a rollout is, but for its length. It is the first
    one, which is memorized; under `vqa`, which counts votes, the one with the best score, which must be above 0.5.
    """
    config = reward.model_copy(update={"min_thinking_chars": 0})
    verifier = get_verifier(reward.verifier, relative_tolerance=reward.relative_tolerance)
    known: dict[tuple[tuple[str, ...], tuple[str, ...]], str | None] = {}

    def reason(record: Record) -> str | None:
        key = record.answers, record.choices
        if key not in known:
            # many records share their answer; a record without name makes the verifier's message hold for all of them
            bare = Record("", record.question, *key)
            known[key] = None if _plainly_right(bare, verifier, prompt.answer_flag) else _reason(bare, config, prompt)
        return known[key]

    return reason


def _plainly_right(record: Record, verifier: Verifier, flag: str) -> bool:
    """Whether the first answer is read as it stands, and right: then so are its replies. This takes a third of the
    time of writing and reading these, and holds for nearly all records."""
    gold = record.answer
    parts = direct_completion(gold, flag)
    if parts.guessed or not parts.answer == parts.written == clean_answer(gold) == gold:
        return False
    try:
        return verifier(gold, record) == 1.0
    except Exception:  # an edge: `_reason` says what it was
        return False


def _reason(record: Record, config: RewardConfig, prompt: PromptConfig) -> str | None:
    flag, votes = prompt.answer_flag, config.verifier == "vqa"
    gold = max(record.answers, key=lambda answer: verify_vqa(answer, record)) if votes else record.answer
    for style in get_args(Style):
        reply = write_reply(gold, flag, style=style)
        checked = check([reply], [record], truncated=[False], config=config, flag=flag, style=style)
        valid, _, accuracy = checked.parts[0].tolist()
        if math.isnan(accuracy):
            return _failure(gold, record, config)
        if not valid:
            return _no_format(gold, reply, flag, style)
        if votes and not accuracy > RIGHT_BY_VOTES:
            return (
                f"no reply can be right by reward.verifier=vqa: the best of its {len(record.answers)} answers, "
                f"{_quoted(gold)}, scores {accuracy:.2g}, and only a score above {RIGHT_BY_VOTES} counts as right; "
                "drop the row or set reward.verifier to auto"
            )
        if not votes and accuracy < 1.0:
            return (
                f"its own answer {_quoted(gold)} scores {accuracy:.2g} by reward.verifier={config.verifier}; correct "
                "the answer or set another verifier"
            )
    return None


def _failure(gold: str, record: Record, config: RewardConfig) -> str:
    """Why the verifier cannot judge the record."""
    try:
        get_verifier(config.verifier, relative_tolerance=config.relative_tolerance)(gold, record)
    except Exception as error:  # an edge, as in scoring: one bad record must cost its row only
        message = str(error).removeprefix("record '': ")
        return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
    return f"reward.verifier={config.verifier} gives no score for its own answer {_quoted(gold)}; correct the answer"


def _no_format(gold: str, reply: str, flag: str, style: Style) -> str:
    """Why the reply that gives the gold answer is in no valid format."""
    parts = read_completion(reply, flag, style)
    if parts.flag_count > 1:
        return (
            f"its answer {_quoted(gold)} holds the answer flag {flag.strip()!r}, which may occur only once in a reply; "
            "reword the answer or set another prompt.answer_flag"
        )
    if parts.guessed:
        return (
            f"its answer {_quoted(gold)} would be a guess: LaTeX boxes that differ, one that is not closed, or one "
            "beside an 'or'; write the answer without boxes"
        )
    return f"its answer {_quoted(gold)} is empty without markup, quotes and full stops; write it in words"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
