"""The `evaluate` section of a run configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from dyme.settings.schema import Schema


class EvaluateConfig(Schema):
    """launchers/evaluate.py: how a finished model is evaluated."""

    records: int | None = Field(default=None, gt=0)
    """Held-out records that are evaluated (the first n); by default all of data.eval."""
    samples: int = Field(default=1, gt=0, le=10_000)
    """1: one greedy reply. n: n replies a record, drawn with the temperature, top_p and top_k of `rollout`."""
    pass_at: tuple[int, ...] = (1,)
    """Each k of pass@k; at most `samples`."""
    direct: bool = True
    """Also ask for a direct answer, as a second column that shows whether thinking helps."""
    direct_template: str = "{question}\nAnswer with a single word, number or phrase."
    """User turn of the direct column; {question} is filled in."""
    direct_max_new_tokens: int = Field(default=32, gt=0, le=1_000_000)
    """Most tokens of a direct reply."""
    bootstrap: int = Field(default=10_000, gt=0, le=10_000_000)
    """Resamples behind every 95 % interval."""

    @model_validator(mode="after")
    def _possible(self) -> EvaluateConfig:
        if "{question}" not in self.direct_template:
            raise ValueError("evaluate.direct_template must contain {question}")
        if not all(1 <= k <= self.samples for k in self.pass_at):
            raise ValueError(
                f"evaluate.pass_at: each k must be 1 to evaluate.samples={self.samples}, got {list(self.pass_at)}"
            )
        return self
