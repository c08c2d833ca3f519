"""InternVL 3 (Qwen2) and 3.5 (Qwen3): InternViT tiles of 16 x 16, four features each; InternVL3-1B's dimensions."""

from __future__ import annotations

from typing import Any

from transformers import InternVLConfig, InternVLForConditionalGeneration

from tests.tiny_checkpoints.common import Tiny, randomize, train_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def tokenizer(named: dict[str, str] = NAMED) -> Any:
    return train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values(), "<quad>", "</quad>", "<ref>", "</ref>"],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=named,
    )


def config(tokens: Any, text: dict[str, Any], vision: dict[str, Any], seq_length: int) -> Any:
    return InternVLConfig(  # type: ignore[call-arg]
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=seq_length,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        text_config=dict(
            bos_token_id=tokens.pad_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            tie_word_embeddings=False,
            **text,
        ),
        vision_config=dict(
            model_type="internvl_vision", attention_bias=True, norm_type="layer_norm", use_mean_pooling=True, **vision
        ),
    )


def processor_files(side: int, seq_length: int, max_patches: int) -> dict[str, Any]:
    """side: of a tile in pixels."""
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    return {
        "preprocessor_config.json": {
            **common,
            "crop_to_patches": False,  # as published: the processor's own default turns it on
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "max_patches": max_patches,
            "min_patches": 1,
        },
        "video_preprocessor_config.json": {**common, "video_processor_type": "InternVLVideoProcessor"},
        "processor_config.json": {"image_seq_length": seq_length, "processor_class": "InternVLProcessor"},
        "chat_template.jinja": CHAT_TEMPLATE,
    }


def published_tokenizer_config(tokens: Any) -> dict[str, Any]:
    """tokenizer_config.json in the form of the published checkpoints, which an older transformers wrote."""
    special = {
        str(at): {"content": str(token), "lstrip": False, "normalized": False, "rstrip": False, "special": True}
        for at, token in tokens.added_tokens_decoder.items()
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": special,
        "additional_special_tokens": [token["content"] for token in special.values()][1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens.eos_token,
        "errors": "replace",
        "extra_special_tokens": NAMED,
        "model_max_length": 8192,
        "pad_token": tokens.pad_token,
        "processor_class": "InternVLProcessor",
        "return_token_type_ids": False,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def tiny(language: str, **fields: Any) -> Tiny:
    """A tiny model over a language model of the given model_type."""
    tokens = tokenizer()
    text = dict(
        model_type=language,
        vocab_size=len(tokens) + 4,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        **fields,
    )
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    model = InternVLForConditionalGeneration(config(tokens, text, vision, 4))
    files = {**processor_files(16, 4, max_patches=6), "tokenizer_config.json": published_tokenizer_config(tokens)}
    return Tiny(randomize(model), tokens, files)


def shape_1b() -> Tiny:
    tokens = tokenizer()
    text = dict(
        model_type="qwen2",
        vocab_size=151674,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
    )
    vision = dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=448,
        patch_size=14,
    )
    return Tiny(config(tokens, text, vision, 256), tokens, processor_files(448, 256, max_patches=12))


CHECKPOINTS = {
    "internvl-qwen2": lambda: tiny("qwen2", use_sliding_window=False),
    "internvl-qwen3": lambda: tiny("qwen3", head_dim=16),
}
SHAPES = {"internvl3-1b": shape_1b}
