"""SmolVLM2: the files of SmolVLM v1 with other class names, and settings for videos beside them."""

from __future__ import annotations

from typing import Any

from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from tests.tiny_checkpoints.common import Tiny, randomize
from tests.tiny_checkpoints.idefics3 import (
    PUBLISHED_TEXT,
    PUBLISHED_VISION,
    TEXT,
    VISION,
    fields,
    processor_files,
    tokenizer,
)


def files(side: int, longest: int, image_seq_len: int) -> dict[str, Any]:
    held = processor_files("SmolVLM", side, longest, image_seq_len)
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}
    held["preprocessor_config.json"] |= {"video_sampling": sampling}
    return held


def tiny() -> Tiny:
    tokens = tokenizer()
    config = SmolVLMConfig(  # type: ignore[call-arg]
        **fields(tokens, dict(**TEXT, vocab_size=len(tokens) + 3), VISION, scale_factor=2), tie_word_embeddings=False
    )
    return Tiny(randomize(SmolVLMForConditionalGeneration(config)), tokens, files(16, 32, 4))


def published() -> Tiny:
    """SmolVLM2-500M-Video-Instruct."""
    tokens = tokenizer()
    config = SmolVLMConfig(  # type: ignore[call-arg]
        **fields(tokens, PUBLISHED_TEXT, PUBLISHED_VISION, scale_factor=4), tie_word_embeddings=False
    )
    return Tiny(config, tokens, files(512, 2048, 64))


CHECKPOINTS = {"smolvlm2": tiny}
SHAPES = {"smolvlm2-500m": published}
