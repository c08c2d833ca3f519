"""What is asked of a judge, what it answers, and what that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Purpose = Literal["facts", "check", "refine", "template", "compare", "ping"]
Reason = Literal[
    "",
    "no_judge",
    "time_out",
    "rate_limited",
    "server_error",
    "connection",
    "bad_answer",
    "refused",
    "breaker_open",
    "closed",
]


@dataclass(frozen=True)
class Question:
    """One question; questions that differ only in `record` are the same one.

    `version` is the version of the prompt: another version is not answered from the cache. `images`: encoded pictures
    (PNG, JPEG, WebP, GIF), sent before the text. `schema`: JSON schema of the answer, an object. `record`: the id of
    what is asked about, for messages; it is not sent.
    """

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
    """`value` fits the question's schema; None with the reason: no_judge (none is set), time_out, rate_limited,
    server_error (5xx), connection, bad_answer (nothing that fits the schema), refused (another 4xx), breaker_open (all
    servers are left alone for now), closed. `seconds` since the question was asked.
    """

    value: dict[str, Any] | None
    reason: Reason = ""
    cached: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.value is not None


@dataclass(frozen=True)
class JudgeCounts:
    """Totals of one process since its judge was opened.

    asked = answered + failures + questions under way; `cached` and `deduplicated` (joined an identical question under
    way) are among the answered or failed. `sent`: HTTP requests with a question of the run, `retries` among them;
    `probes`: those that asked a broken server whether it is back. Tokens and money as the servers count them, 0 where
    they do not. `seconds`: sum over questions. `cache_errors`: reads and writes of the cache that did not work.
    `endpoints`: state of each server: "closed" (in the rotation), "busy" (it asked for a pause: Retry-After), "open"
    (left alone) or "half_open" (being asked whether it is back).
    """

    asked: int = 0
    sent: int = 0
    answered: int = 0
    cached: int = 0
    deduplicated: int = 0
    retries: int = 0
    probes: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0
    seconds: float = 0.0
    cache_errors: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    by_purpose: Mapping[str, int] = field(default_factory=dict)
    """Requests sent, by purpose."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
