"""Question and Answer: what goes to the judge and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Purpose = Literal["facts", "check", "refine", "template", "compare"]


@dataclass(frozen=True)
class Question:
    """One call: prompt texts, pictures (PNG or JPEG bytes as sent), JSON schema of the answer; `version` is that of the
    prompt text, `record` an id for logs only."""

    purpose: Purpose
    version: str
    system: str
    user: str
    schema: Mapping[str, Any]
    images: tuple[bytes, ...] = ()
    record: str = ""
    max_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a question: a parsed `value`, or None with a `reason`."""

    value: dict[str, Any] | None
    reason: str = ""
    cached: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.value is not None
