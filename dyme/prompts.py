"""Prompts: a record as the user turn it becomes, the reply that is memorized, and its encoding, kept for the step."""

from __future__ import annotations

import re
from collections.abc import Callable

from dyme.config import PromptConfig
from dyme.data import ImageError, Record
from dyme.families import Family, Prompt, PromptError


def prompt_text(record: Record, config: PromptConfig) -> str:
    """The user turn of a record."""
    question = record.question
    if record.choices:
        options = " ".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(record.choices))
        question += config.choices_template.replace("{choices}", options)
    return config.template.replace("{flag}", config.answer_flag).replace("{question}", question)


def reply_text(record: Record, config: PromptConfig, trace: str | None) -> str:
    """The reply that is memorized: refined trace, flag and answer; without a trace the answer alone."""
    if config.style == "direct":
        return record.answer
    final = f"{config.answer_flag} {record.answer}"
    # a trace that announces an answer of its own would teach a second flag, which is an invalid format
    thinking = re.split(re.escape(config.answer_flag), trace or "", maxsplit=1, flags=re.IGNORECASE)[0].strip()
    return f"{thinking}\n{final}" if thinking else final


def has_reference(record: Record, on_missing_trace: str, style: str) -> bool:
    """Whether the record can be memorized."""
    return on_missing_trace == "answer" or style == "direct" or bool(record.hint and record.hint.strip())


class PromptBook:
    """Encoded prompts of the records in use. A record that fails is reported once and stays None: it costs its rows
    only."""

    def __init__(self, family: Family, config: PromptConfig, report: Callable[[str], None]) -> None:
        self.family, self.config, self.report = family, config, report
        self._pages: dict[str, Prompt | None] = {}
        self.failed: dict[str, str] = {}

    def encode(self, record: Record) -> Prompt | None:
        if record.id not in self._pages:
            self._pages[record.id] = self._encode(record)
        return self._pages[record.id]

    def _encode(self, record: Record) -> Prompt | None:
        try:
            image = record.image.load() if record.image else None
            return self.family.encode(prompt_text(record, self.config), image)
        except Exception as error:  # an edge: whatever a decoder or processor trips over, it costs this record only
            reason = str(error) if isinstance(error, ImageError | PromptError) else f"{type(error).__name__}: {error}"
            if record.id not in self.failed:
                self.report(f"record {record.id} left out: {reason}")
            self.failed[record.id] = reason
            return None

    def clear(self) -> None:
        """Forgets the encodings (a step's pictures would otherwise pile up)."""
        self._pages.clear()
