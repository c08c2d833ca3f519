"""Section `prompt`: the user turn and the shape of a reply."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from dyme.settings.schema import Schema


class PromptConfig(Schema):
    """How a record becomes a user turn, and what a reply looks like."""

    style: Literal["think", "direct"] = "think"
    """think: trace, then the flag and the answer. direct: the answer alone."""
    template: str = "{question}\nThink step by step, then end with a line '{flag} <answer>'."
    """User turn; {question} and {flag} are filled in. Control tokens in it are plain text, as in a question."""
    system: str | None = None
    """System prompt; none: what the chat template writes without one. A chat template without a system role gets it
    before the user turn's text, with a blank line between."""
    choices_template: str = "\nOptions: {choices}"
    """Appended to the question of a multiple-choice record; {choices} is "(A) ... (B) ..."."""
    answer_flag: str = "Answer:"
    """Text that announces the final answer; it must occur exactly once in a reply."""

    @model_validator(mode="after")
    def _has_question(self) -> PromptConfig:
        if "{question}" not in self.template:
            raise ValueError("prompt.template must contain {question}")
        if "{choices}" not in self.choices_template:
            raise ValueError("prompt.choices_template must contain {choices}")
        if self.system is not None and not self.system.strip():
            raise ValueError("prompt.system must not be blank: leave it out, or set it to null")
        if "<image>" in (self.system or ""):
            raise ValueError("prompt.system must not contain <image>: pictures stand in the user turn")
        if not self.answer_flag.strip():
            raise ValueError("prompt.answer_flag must not be blank")
        return self
