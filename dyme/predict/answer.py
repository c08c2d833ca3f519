"""Answer: a reply split into its parts."""

from __future__ import annotations

from dataclasses import dataclass

from dyme.rewards.answer import format_score, read_completion
from dyme.settings.prompt import PromptConfig


@dataclass(frozen=True)
class Answer:
    """A reply split into its parts. `answer` is "" where none was found; `format` is validity as in training.

    `guessed`: the text does not state the answer plainly. `truncated`: cut at max_new_tokens.
    """

    thinking: str
    answer: str
    format: bool
    guessed: bool
    truncated: bool
    completion: str


def parse_reply(text: str, prompt: PromptConfig, *, truncated: bool) -> Answer:
    """A completion split as in training; a truncated one has no valid format."""
    parts = read_completion(text, prompt.answer_flag, prompt.style)
    valid = bool(format_score(parts)) and not truncated
    return Answer(parts.thinking, parts.answer or "", valid, parts.guessed, truncated, text)
