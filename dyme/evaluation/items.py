"""Items: a held-out record with its judged replies. One line of items.jsonl each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dyme.data import Record
from dyme.evaluation.files import COLUMNS
from dyme.rewards.answer import read_completion, split_completion
from dyme.rewards.compose import Style, score
from dyme.settings.rewards import RewardConfig
from dyme.supervision.readings import faithfulness
from dyme.text.json_lines import plain

_OF_THINKING = ("thinking", "guessed", "thinking_chars", "thinking_tokens", "faithfulness", "readings")
_OF_DIRECT = ("flagged",)


@dataclass(frozen=True)
class Reply:
    """One judged reply.

    `score` is accuracy * format, and `correct` whether it is above 1/2. Both and `accuracy` count a failed verifier as
    NaN, NaN and False. `tokens` includes the end of turn. `flagged` says that the answer flag occurs: in a direct
    column the model thought although it was not asked to. `faithfulness` is the share of `readings` that agree with the
    record's facts, None where there are none.
    """

    completion: str
    thinking: str
    answer: str | None
    guessed: bool
    correct: bool
    score: float
    accuracy: float
    format: float
    tokens: int
    thinking_chars: int
    thinking_tokens: int
    truncated: bool
    faithfulness: float | None
    readings: int
    flagged: bool


def judge(
    texts: Sequence[str],
    lengths: Sequence[int],
    truncated: Sequence[bool],
    records: Sequence[Record],
    *,
    reward: RewardConfig,
    flag: str,
    style: Style,
    count_tokens: Callable[[str], int],
) -> tuple[list[Reply], dict[str, int]]:
    """Reply i to record i, and the verifier's failures by kind. `lengths` are in tokens."""
    scores = score(texts, records, truncated=truncated, config=reward, flag=flag, style=style)
    replies = []
    for i, (text, record) in enumerate(zip(texts, records, strict=True)):
        parts = read_completion(text, flag, style)
        faith = faithfulness(parts.thinking, record.facts)
        replies.append(
            Reply(
                completion=text,
                thinking=parts.thinking,
                answer=parts.answer,
                guessed=parts.guessed,
                correct=bool(scores.correct[i] > 0.5),
                score=float(scores.correct[i]),
                accuracy=float(scores.accuracy[i]),
                format=float(scores.format[i]),
                tokens=lengths[i],
                thinking_chars=len(parts.thinking),
                thinking_tokens=count_tokens(parts.thinking) if parts.thinking else 0,
                truncated=bool(truncated[i]),
                faithfulness=faith.share,
                readings=faith.readings,
                flagged=split_completion(text, flag).flag_count > 0,
            )
        )
    return replies, scores.errors


def item_line(record: Record, replies: Mapping[str, Sequence[Reply]]) -> dict[str, Any]:
    """The line of a record; a column that is not configured is an empty list."""
    path = record.images[0].path if len(record.images) == 1 else None  # several pictures are read again from the data
    line = {
        "id": record.id,
        "kind": record.kind,
        "question": record.question,
        "gold": list(record.answers),
        "image": None if path is None else str(path),
    }
    return plain(line | {column: [_reply_line(r, column) for r in replies.get(column, ())] for column in COLUMNS})


def bad_line(record: Record, reason: str) -> dict[str, Any]:
    """The line of a record whose picture or prompt cannot be read."""
    return {"id": record.id, "error": reason}


def _reply_line(reply: Reply, column: str) -> dict[str, Any]:
    foreign = _OF_DIRECT if column == "think" else _OF_THINKING
    return {key: value for key, value in asdict(reply).items() if key not in foreign}


def scored(replies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The replies of a line whose verifier did not fail."""
    return [reply for reply in replies if reply["score"] is not None and not math.isnan(reply["score"])]
