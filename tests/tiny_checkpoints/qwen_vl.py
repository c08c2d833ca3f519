"""What the Qwen-VL checkpoints share: tokenizer, ChatML with vision tags, processor files."""

from __future__ import annotations

from typing import Any

from tests.tiny_checkpoints.common import train_tokenizer

SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
"""The turn that Qwen2-VL and Qwen2.5-VL put before a conversation without one; Qwen3-VL has none."""
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
)


def tokenizer(*plain: str) -> Any:
    """plain: added tokens that are not special, besides those of all three."""
    return train_tokenizer(
        [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<|object_ref_start|>",
            "<|object_ref_end|>",
            "<|box_start|>",
            "<|box_end|>",
            "<|quad_start|>",
            "<|quad_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ],
        plain=["<tool_call>", "</tool_call>", *plain],
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )


def token_ids(tokens: Any) -> dict[str, int]:
    """The ids that config.json names, from the tokenizer."""
    return {name: tokens.convert_tokens_to_ids(token) for name, token in VISION_TOKENS.items()}


def text_ids(tokens: Any) -> dict[str, int]:
    return {"bos_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id}


def published_config(config: Any, vision_type: str | None, *, flat: bool) -> dict[str, Any]:
    """config.json as the Hub has it, older than transformers 5: rope_theta and rope_scaling instead of rope_parameters,
    and the language model's fields beside those of the whole (`flat`: Qwen2-VL and Qwen2.5-VL)."""

    def fields(part: Any, *leave_out: str) -> dict[str, Any]:
        return {
            k: v
            for k, v in part.to_diff_dict().items()
            if v is not None and k not in (*leave_out, "transformers_version")
        }

    architecture = type(config).__name__.replace("Config", "ForConditionalGeneration")
    text = fields(config.text_config, "model_type", "rope_parameters", "layer_types", "dtype")
    rope = dict(config.text_config.rope_parameters)
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    if flat:
        rope["type"] = "mrope"
        del rope["rope_type"]
    vision = fields(config.vision_config, "model_type", "rope_parameters", "dtype")
    if vision_type is not None:
        vision["model_type"] = vision_type
    whole = fields(config, "text_config", "vision_config", "dtype")
    held = text if flat else {"text_config": {"model_type": f"{config.model_type}_text", **text}}
    return {**held, **whole, "architectures": [architecture], "torch_dtype": "bfloat16", "vision_config": vision}


def files(
    tokens: Any, kind: str, template: str, patch_size: int, image: dict[str, Any], image_processor: str
) -> dict[str, Any]:
    """kind: Qwen2VL, Qwen2_5_VL or Qwen3VL. image: limits of the size, mean and std."""
    return {
        "chat_template.json": {"chat_template": template},
        "preprocessor_config.json": {
            "image_processor_type": image_processor,
            "processor_class": f"{kind}Processor",
            "patch_size": patch_size,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **image,
        },
        # a penalty that the policy's own probabilities do not know
        "generation_config.json": {
            "bos_token_id": tokens.pad_token_id,
            "pad_token_id": tokens.pad_token_id,
            "do_sample": True,
            "eos_token_id": [tokens.eos_token_id, tokens.pad_token_id],
            "repetition_penalty": 1.05,
            "temperature": 0.1,
        },
    }
