"""Qwen2-VL: full attention in the vision tower, a tied head, pictures of 4 to 24 tokens."""

from __future__ import annotations

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.tiny_checkpoints.common import Tiny, randomize
from tests.tiny_checkpoints.qwen_vl import (
    CLIP,
    SYSTEM,
    TEXT,
    TURNS,
    files,
    published_config,
    text_ids,
    token_ids,
    tokenizer,
)


def tiny() -> Tiny:
    tokens = tokenizer()
    config = Qwen2VLConfig(  # type: ignore[call-arg]
        **token_ids(tokens),
        tie_word_embeddings=True,
        text_config=dict(
            **TEXT,
            **text_ids(tokens),
            vocab_size=len(tokens) + 3,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3]),
        ),
        vision_config=dict(
            depth=2, embed_dim=32, hidden_size=64, mlp_ratio=2, num_heads=2, patch_size=4, spatial_merge_size=2
        ),
    )
    image = {"min_pixels": 256, "max_pixels": 1536, **CLIP}
    model = randomize(Qwen2VLForConditionalGeneration(config))
    held = files(tokens, "Qwen2VL", SYSTEM + TURNS, 4, image, "Qwen2VLImageProcessor")
    return Tiny(model, tokens, {**held, "config.json": published_config(model.config, None, flat=True)})


def shape_2b() -> Tiny:
    tokens = tokenizer()
    config = Qwen2VLConfig(  # type: ignore[call-arg]
        **token_ids(tokens),
        tie_word_embeddings=True,
        text_config=dict(
            **text_ids(tokens),
            vocab_size=151936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
        ),
        vision_config=dict(depth=32, embed_dim=1280, hidden_size=1536, mlp_ratio=4, num_heads=16, patch_size=14),
    )
    image = {"min_pixels": 3136, "max_pixels": 12845056, **CLIP}
    return Tiny(config, tokens, files(tokens, "Qwen2VL", SYSTEM + TURNS, 14, image, "Qwen2VLImageProcessor"))


CHECKPOINTS = {"qwen2-vl": tiny}
SHAPES = {"qwen2-vl-2b": shape_2b}
