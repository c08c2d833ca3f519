"""Sections `train` and `run`: the length of a run, its folder, evaluation, checkpoints and logs."""

from __future__ import annotations

from typing import Literal

from dyme.settings.numbers import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    UpToMillion,
)
from dyme.settings.paths import UserPath
from dyme.settings.schema import Schema


class TrainConfig(Schema):
    """The length of a run and the size of its micro-batches."""

    max_steps: PositiveInt = 1000
    """Steps: one rollout and `epochs_per_rollout` optimizer updates each."""
    epochs_per_rollout: PositiveInt = 1
    """Optimizer updates per rollout, each over all sequences that train. Old log-probabilities are those of the
    first."""
    token_budget: PositiveInt = 8192
    """Tokens per micro-batch and rank, padded ones unless packed_attention joins groups; a group over it is split."""
    logits_budget_mb: UpToMillion = 256
    """Memory of the logits buffer in the loss head (MiB)."""
    switch_fraction: Fraction = 0.5
    """method two_stage: share of the steps spent on SFT before GRPO."""
    component_norms_every: NonNegativeInt = 0
    """Every n steps log the gradient norms of explored and memorized rows and their cosine; 0 is off."""


class RunSettings(Schema):
    """The run folder, evaluation, checkpoints and logging."""

    dir: UserPath = ""
    """Run folder; default runs/<name of the YAML>. It must be new, empty, or that of a run."""
    seed: Seed = 0
    """Seed of weights, data order and sampling noise."""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue from the newest usable checkpoint; never: refuse a folder that holds a run."""
    allow_changed_data: bool = False
    """Continue where the records are not those that the run was trained on; otherwise it is refused."""
    save_every: NonNegativeInt = 0
    """Steps between checkpoints; with 0 `save_every_minutes` alone decides."""
    save_every_minutes: NonNegativeFloat = 10.0
    """Minutes between checkpoints, whatever the steps; 0 is off."""
    keep_last: PositiveInt = 2
    """Checkpoints kept, besides the best."""
    eval_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the start and the end only."""
    eval_records: PositiveInt = 256
    """Held-out records per evaluation (the first n)."""
    samples: NonNegativeInt = 12
    """Held-out records whose completions go to samples.jsonl and into the report."""
    max_minutes: PositiveFloat | None = None
    """Stop (with evaluation, checkpoint and export) after this much training time."""
    max_skipped_updates: PositiveInt = 20
    """Consecutive updates with a non-finite loss or gradient before the run stops."""
    hang_timeout_s: PositiveFloat = 1800.0
    """A rank without progress for this long ends the job; more than the longest phase of a step takes."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    wandb: str | None = None
    """Project name for Weights & Biases; off by default."""
    export: bool = True
    """Write the final weights as a Hugging Face folder."""
    modes: bool = False
    """Write modes.jsonl, the mode of every group, for `selector.name: replay`."""
    report: bool = True
    """Write report.png and report.html at the end."""
    profile: bool = False
    """Write profile.json (a Chrome trace) and profile.png, the phases of every step; costs some speed on a GPU."""
