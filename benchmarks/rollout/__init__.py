"""Tokens a second of rollout engines, side by side: python -m benchmarks.rollout."""

from dyme.settings.engines import ENGINES

CACHES = {"transformers dynamic": None, "transformers static": "static"}
"""transformers generate, and its cache_implementation."""
BASELINE = "transformers dynamic"
NAMES = (*(f"dyme {name}" for name in sorted(ENGINES)), *CACHES, "vllm")
