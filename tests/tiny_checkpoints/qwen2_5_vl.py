"""Qwen2.5-VL: windows of 16 x 16 pixels around one block of full attention, a head of its own (as the 7B has it)."""

from __future__ import annotations

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

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
    config = Qwen2_5_VLConfig(  # type: ignore[call-arg]
        **token_ids(tokens),
        tie_word_embeddings=False,
        text_config=dict(
            **TEXT,
            **text_ids(tokens),
            vocab_size=len(tokens) + 3,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3]),
        ),
        vision_config=dict(
            depth=3,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            out_hidden_size=64,
            patch_size=4,
            spatial_merge_size=2,
            window_size=16,
            fullatt_block_indexes=[1],
            tokens_per_second=2,
        ),
    )
    image = {"min_pixels": 256, "max_pixels": 1536, **CLIP}
    model = randomize(Qwen2_5_VLForConditionalGeneration(config))
    held = files(tokens, "Qwen2_5_VL", SYSTEM + TURNS, 4, image, "Qwen2VLImageProcessor")
    return Tiny(model, tokens, {**held, "config.json": published_config(model.config, "qwen2_5_vl", flat=True)})


def shape_3b() -> Tiny:
    tokens = tokenizer()
    config = Qwen2_5_VLConfig(  # type: ignore[call-arg]
        **token_ids(tokens),
        tie_word_embeddings=True,
        text_config=dict(
            **text_ids(tokens),
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            max_position_embeddings=128000,
            rms_norm_eps=1e-6,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
        ),
        vision_config=dict(
            depth=32,
            hidden_size=1280,
            intermediate_size=3420,
            num_heads=16,
            out_hidden_size=2048,
            patch_size=14,
            window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
            tokens_per_second=2,
        ),
    )
    image = {"min_pixels": 3136, "max_pixels": 12845056, **CLIP}
    return Tiny(config, tokens, files(tokens, "Qwen2_5_VL", SYSTEM + TURNS, 14, image, "Qwen2VLImageProcessor"))


CHECKPOINTS = {"qwen2.5-vl": tiny}
SHAPES = {"qwen2.5-vl-3b": shape_3b}
