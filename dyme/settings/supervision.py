"""SupervisionConfig: how thinking is checked and demonstrations are refined."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dyme.settings.schema import Schema

Task = Literal["chart", "natural", "medical", "geometry", "text"]


class TemplatesConfig(Schema):
    """The pool of templates, learned from the model's own best traces."""

    size: int = Field(default=8, ge=0)
    """Most templates kept for each kind of record; 0: only the built-in ones."""
    every: int = Field(default=10, ge=1)
    """Steps between two updates of the pool."""


class SupervisionConfig(Schema):
    """Visual facts, checker, refiner and templates, see docs/supervision.md."""

    facts: Literal["none", "rules", "judge"] = "rules"
    """Source of the visual facts: the record's facts or hint, read by rules, or its picture, read by the judge."""
    checker: Literal["none", "lexical", "judge", "both"] = "lexical"
    """What scores the thinking; both: the mean of lexical and judge."""
    contradiction_penalty: float = Field(default=1.0, ge=0, le=1)
    """w in t (1 - w c), where c is the share of a trace's readings that the facts contradict; 0 is off."""
    refiner: Literal["none", "rules", "judge"] = "none"
    """Who rewrites a demonstration before it is memorized; none: the record's hint is memorized as it is."""
    max_trace_chars: int = Field(default=1200, ge=40)
    """Refined traces and templates longer than this are not used."""
    task: Literal["auto", "chart", "natural", "medical", "geometry", "text"] = "auto"
    """Which prompts the judge gets; auto chooses by the record."""
    prompts: str = ""
    """A folder or file of prompts that replace the package's, see docs/supervision.md; `~` and environment variables
    are filled in."""
    templates: TemplatesConfig = TemplatesConfig()
    """The pool of templates."""

    @model_validator(mode="after")
    def _has_facts(self) -> SupervisionConfig:
        if self.refiner != "none" and self.facts == "none":
            raise ValueError(
                f"supervision.refiner={self.refiner} writes traces from facts: set supervision.facts=rules"
            )
        return self

    @property
    def asks_judge(self) -> str:
        """The first setting that needs a judge ("checker=both"), "" if none does."""
        chosen = {"facts": self.facts, "checker": self.checker, "refiner": self.refiner}
        return next((f"{name}={value}" for name, value in chosen.items() if value in ("judge", "both")), "")

    @property
    def on(self) -> bool:
        """Whether supervision does more than compare words."""
        return bool(self.asks_judge) or self.refiner != "none"
