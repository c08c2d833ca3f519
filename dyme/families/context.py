"""Context: how many tokens a model takes, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def context_of(config: Any) -> int | None:
    """Most tokens of a prompt and its reply, from the configuration of the language model; None where it has no
    `max_position_embeddings`.

    Some rope types stretch that number by a factor when the model runs (linear, dynamic, yarn), others come with the
    stretched number. The larger of both counts, so that nothing is refused which the model can take. Sliding windows do
    not bound the context.
    """
    trained = getattr(config, "max_position_embeddings", None)
    if not isinstance(trained, int) or trained <= 0:
        return None
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope for rope in found.values() if isinstance(rope, Mapping)] or [found]  # one for each kind of layer
    return max([trained, *(_stretched(rope, trained) for rope in kinds)])


def _stretched(rope: Mapping[str, Any], trained: int) -> int:
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    original = rope.get("original_max_position_embeddings") or trained
    return int(original * factor) if kind in ("linear", "dynamic", "yarn") and factor else 0
