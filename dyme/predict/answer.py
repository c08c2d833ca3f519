"""Answer: a reply taken apart."""

from __future__ import annotations

from dataclasses import dataclass

from dyme.rewards.answer import format_score, read_completion
from dyme.settings.prompt import PromptConfig


@dataclass(frozen=True)
class Answer:
    """A reply in its parts. `answer` is "" where none was found; `format` says that it is valid, as in training.

    `guessed`: the text does not say plainly what the answer is. `truncated`: cut at max_new_tokens.
    """

    thinking: str
    answer: str
    format: bool
    guessed: bool
    truncated: bool
    completion: str


def parse_reply(text: str, prompt: PromptConfig, *, truncated: bool) -> Answer:
    """A completion taken apart as training does it; a truncated one has no valid format."""
    parts = read_completion(text, prompt.answer_flag, prompt.style)
    valid = bool(format_score(parts)) and not truncated
    return Answer(parts.thinking, parts.answer or "", valid, parts.guessed, truncated, text)
