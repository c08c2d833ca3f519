"""Tokens a second of rollout engines, side by side: python -m benchmarks.rollout."""

OURS = ("hf", "shared_prefix")
"""Modules of dyme.rollout with generate(family, model, rows, sampling)."""
CACHES = {"transformers dynamic": None, "transformers static": "static"}
"""transformers generate, and its cache_implementation."""
BASELINE = "transformers dynamic"
NAMES = (*(f"dyme {name}" for name in OURS), *CACHES, "vllm")
