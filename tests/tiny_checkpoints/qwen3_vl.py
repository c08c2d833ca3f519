"""Qwen3-VL: learnt positions of an 8 x 8 grid, two of three vision layers into the decoder (DeepStack), a tied head."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.tiny_checkpoints.common import Tiny, randomize
from tests.tiny_checkpoints.qwen_vl import HALF, TEXT, TURNS, files, published_config, text_ids, token_ids, tokenizer


def _tokenizer() -> Any:
    return tokenizer("<tool_response>", "</tool_response>", "<think>", "</think>")


def _files(tokens: Any, patch_size: int, shortest: int, longest: int) -> dict[str, Any]:
    image = {"size": {"shortest_edge": shortest, "longest_edge": longest}, **HALF}
    held = files(tokens, "Qwen3VL", TURNS, patch_size, image, "Qwen2VLImageProcessorFast")
    picture = held["preprocessor_config.json"]
    video = {key: value for key, value in picture.items() if key != "image_processor_type"}
    return {
        **held,
        "video_preprocessor_config.json": {
            **video,
            "size": {"shortest_edge": 4 * patch_size**2, "longest_edge": 98304 * patch_size**2},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    }


def tiny() -> Tiny:
    tokens = _tokenizer()
    config = Qwen3VLConfig(  # type: ignore[call-arg]
        **token_ids(tokens),
        tie_word_embeddings=True,
        text_config=dict(
            **{**TEXT, "hidden_size": 48},  # heads wider than the hidden size, as in the 4B
            **text_ids(tokens),
            head_dim=16,
            vocab_size=len(tokens) + 3,
            rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[3, 3, 2], mrope_interleaved=True),
        ),
        vision_config=dict(
            depth=3,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            out_hidden_size=48,
            patch_size=4,
            spatial_merge_size=2,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
    )
    model = randomize(Qwen3VLForConditionalGeneration(config))
    held = _files(tokens, 4, 256, 1536)
    return Tiny(model, tokens, {**held, "config.json": published_config(model.config, "qwen3_vl", flat=False)})


def shape_2b() -> Tiny:
    tokens = _tokenizer()
    config = Qwen3VLConfig(  # type: ignore[call-arg]
        **token_ids(tokens),
        tie_word_embeddings=True,
        text_config=dict(
            **text_ids(tokens),
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
            rms_norm_eps=1e-6,
            rope_parameters=dict(
                rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20], mrope_interleaved=True
            ),
        ),
        vision_config=dict(
            depth=24,
            hidden_size=1024,
            intermediate_size=4096,
            num_heads=16,
            out_hidden_size=2048,
            patch_size=16,
            num_position_embeddings=2304,
            deepstack_visual_indexes=[5, 11, 17],
        ),
    )
    return Tiny(config, tokens, _files(tokens, 16, 65536, 16777216))


CHECKPOINTS = {"qwen3-vl": tiny}
SHAPES = {"qwen3-vl-2b": shape_2b}
