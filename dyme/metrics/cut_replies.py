"""Cut replies: a warning where a model never comes to an answer, because few models write an answer flag unasked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dyme.config import RunConfig
from dyme.settings.prompt import PromptConfig

STEPS = 3
"""Steps with rollouts after which a run is judged."""
MOST = 0.5
"""Share of cut replies above which a warning is due."""


def warning(
    format_rate: float | None,
    truncated: float | None,
    prompt: PromptConfig,
    max_new_tokens: int,
    key: str = "rollout.max_new_tokens",
) -> str:
    """One line with the mend where no reply has a valid format and most are cut, else "".

    format_rate, truncated: shares of replies, None or NaN without any; max_new_tokens: where they are cut, which `key`
    sets."""
    if format_rate != 0 or truncated is None or not truncated > MOST:
        return ""
    told = f"no reply has a valid format, and {truncated:.0%} are cut at {key}={max_new_tokens}"
    if prompt.style == "direct":
        return f"{told}: raise it, or warm up with method=sft"
    flag = prompt.answer_flag
    if "{flag}" in prompt.template or flag in prompt.template:
        return f"{told}: the model does not write '{flag}' though asked to. Raise it, or warm up with method=sft first"
    return (
        f"{told}: few models write '{flag}' unasked. Ask for it in prompt.template (as {{flag}}), warm up with "
        f"method=sft first, or raise {key}"
    )


@dataclass
class CutReplies:
    """Looks at the first steps with rollouts since the start of a run."""

    formats: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)

    def step(self, metrics: Mapping[str, float], cfg: RunConfig) -> str:
        """The warning where it is due after this step, which happens once at most; else ""."""
        due = min(STEPS, cfg.train.max_steps)
        if "format_rate" not in metrics or len(self.formats) >= due:
            return ""
        self.formats.append(metrics["format_rate"])
        self.cut.append(metrics["rollout/truncated"])
        if len(self.formats) < due:
            return ""
        truncated = sum(self.cut) / due
        return warning(max(self.formats), truncated, cfg.prompt, cfg.rollout.max_new_tokens)
