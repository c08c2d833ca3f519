"""Methods: which part of a run a step belongs to. Pure functions of the configuration and the step, so that every rank
and every resumed run agrees."""

from __future__ import annotations

from typing import Literal

Method = Literal["dyme", "grpo", "sft", "two_stage", "interleaved", "progressive", "mixed"]


def memorizes_only(method: str, step: int, max_steps: int, switch_fraction: float) -> bool:
    """Whether step `step` (0-based) of a run is plain SFT, without rollouts.

        sft          always
        two_stage    step < switch_fraction * max_steps
        interleaved  steps 0, 2, 4 ...
        progressive  the share of SFT falls along a line from 1 to 0: with S(t) = t - t^2 / (2 max_steps), the integral
                     of 1 - t / max_steps, step t is SFT where round(S(t + 1)) > round(S(t)); a half
                     rounds down, so no run of several steps ends on SFT
        the others   never

    two_stage, interleaved and progressive are strategies of "The Synergy Dilemma". Left open there, as far as seen: how
    long a phase of `interleaved` lasts (one step here) and how the share of `progressive` falls (a line here).
    """
    if method == "two_stage":
        return step < switch_fraction * max_steps
    if method == "interleaved":
        return step % 2 == 0
    if method == "progressive":
        return _sft_steps(step + 1, max_steps) > _sft_steps(step, max_steps)
    return method == "sft"


def _sft_steps(step: int, max_steps: int) -> int:
    """S(step) rounded, in whole numbers: exact for any length."""
    return (2 * step * max_steps - step * step + max_steps - 1) // (2 * max_steps)
