"""LLaVA-OneVision: SigLIP tiles of 16 x 16 and a Qwen2 language model; the real 0.5B model's dimensions."""

from __future__ import annotations

from typing import Any

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tests.tiny_checkpoints.common import Tiny, randomize, train_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ '\n' + part['text'] }}{% endgeneration %}"
    "{% else %}{{ '\n' + part['text'] }}{% endif %}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As published: no space behind the role of the generation prompt, one behind that of a finished reply."""


def tokenizer() -> Any:
    return train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"], eos="<|im_end|>", pad="<|endoftext|>"
    )


def config(tokens: Any, text: dict[str, Any], vision: dict[str, Any], grids: list[list[int]], most: int) -> Any:
    """grids: sizes (height, width) of the canvas that pictures are tiled on; most: tiles' worth of features kept."""
    return LlavaOnevisionConfig(  # type: ignore[call-arg]
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        video_token_index=tokens.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
        vision_aspect_ratio=f"anyres_max_{most}",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        text_config=dict(
            model_type="qwen2",
            bos_token_id=tokens.pad_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=None,
            tie_word_embeddings=True,
            use_sliding_window=False,
            **text,
        ),
        vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **vision),
    )


def processor_files(side: int, patch: int, grids: list[list[int]], most: int) -> dict[str, Any]:
    """side, patch: of a tile in pixels."""
    common = {
        "crop_size": None,
        "default_to_square": False,
        "do_center_crop": None,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    return {
        "preprocessor_config.json": {
            **common,
            "do_pad": True,
            "image_grid_pinpoints": grids,
            "image_processor_type": "LlavaOnevisionImageProcessor",
        },
        "video_preprocessor_config.json": {**common, "video_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config.json": {
            "image_token": "<image>",
            "num_image_tokens": (side // patch) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_aspect_ratio": f"anyres_max_{most}",
            "vision_feature_select_strategy": "full",
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
    }


def tiny() -> Tiny:
    """A square of several tiles has more features than are kept, a strip has not."""
    tokens = tokenizer()
    grids = [[16, 16], [16, 32], [16, 48], [32, 16], [32, 32], [48, 16]]
    text = dict(
        vocab_size=len(tokens) + 6,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    model = LlavaOnevisionForConditionalGeneration(config(tokens, text, vision, grids, most=2))
    return Tiny(randomize(model), tokens, processor_files(16, 4, grids, most=2))


def shape_0_5b() -> Tiny:
    tokens = tokenizer()
    grids = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    text = dict(
        vocab_size=152000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    vision = dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    return Tiny(config(tokens, text, vision, grids, most=9), tokens, processor_files(384, 14, grids, most=9))


CHECKPOINTS = {"llava-onevision": tiny}
SHAPES = {"llava-onevision-0.5b": shape_0_5b}
