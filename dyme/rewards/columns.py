"""Arguments of a user's reward function: lists with one entry for each completion, under TRL's names and ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyme.data.record import LazyImage, Record
from dyme.rewards.answer import split_completion


@dataclass(frozen=True)
class TrainerState:
    """The progress fields of TRL's `trainer_state`, both in optimizer steps."""

    global_step: int
    max_steps: int


def reward_columns(
    prompts: Sequence[str],
    texts: Sequence[str],
    records: Sequence[Record],
    *,
    completion_ids: Sequence[Sequence[int]],
    truncated: Sequence[bool],
    flag: str,
    step: int,
    max_steps: int,
) -> dict[str, Any]:
    """All arguments but the pictures. Completion i answers prompt i, the user turn of record i; `step` counts finished
    steps."""
    parts = [split_completion(text, flag) for text in texts]
    return {
        "prompts": list(prompts),
        "completions": list(texts),
        "completion_ids": [list(ids) for ids in completion_ids],
        "truncated": list(truncated),
        "thinking": [part.thinking for part in parts],
        "extracted_answer": [part.answer for part in parts],
        "id": [record.id for record in records],
        "question": [record.question for record in records],
        "answer": [record.answer for record in records],
        "answers": [list(record.answers) for record in records],
        "choices": [list(record.choices) for record in records],
        "hint": [record.hint for record in records],
        "facts": [record.facts for record in records],
        "kind": [record.kind for record in records],
        "step": step,
        "trainer_state": TrainerState(step, max_steps),
    }


def pictures(records: Sequence[Record]) -> list[list[Any]]:
    """The pictures of each record in RGB; a picture that several rows share is decoded once.

    Raises `ImageError` for one that cannot be decoded.
    """
    decoded: dict[LazyImage, Any] = {}
    for record in records:
        for image in record.images:
            if image not in decoded:
                decoded[image] = image.load()
    return [[decoded[image] for image in record.images] for record in records]
