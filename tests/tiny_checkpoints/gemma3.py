"""Gemma 3: BPE on whole text with bytes to fall back on, windows of 6 tokens, pictures of 16 x 16."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, GemmaTokenizer

from tests.tiny_checkpoints.common import TEXTS, Tiny, randomize

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NAMED = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def tokenizer(named: dict[str, str] | None = None) -> Any:
    """Gemma's own tokenizer class, which puts <bos> before every text; its turn tokens are special but have no name."""
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    reserved = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *NAMED.values()]
    trainer = trainers.BpeTrainer(vocab_size=len(reserved) + 100, special_tokens=reserved, show_progress=False)
    trained.train_from_iterator([text for text in TEXTS for _ in range(20)], trainer)
    bpe = json.loads(trained.to_str())["model"]
    held = GemmaTokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(pair) for pair in bpe["merges"]],
        add_bos_token=True,
        add_eos_token=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=100_000,
        **({"extra_special_tokens": named} if named else {}),
    )
    turns = [AddedToken(token, special=True, normalized=False) for token in first[-2:]]
    held.add_tokens(turns, special_tokens=True)
    return held


def files(side: int, image_seq_length: int) -> dict[str, Any]:
    return {
        "preprocessor_config.json": {
            "image_processor_type": "Gemma3ImageProcessor",
            "processor_class": "Gemma3Processor",
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_seq_length": image_seq_length,
            "pan_and_scan_max_num_crops": None,
            "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None,
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side},
        },
        "processor_config.json": {"image_seq_length": image_seq_length, "processor_class": "Gemma3Processor"},
    }


def config(tokens: Any, text: dict[str, Any], vision: dict[str, Any], mm_tokens_per_image: int) -> Any:
    return Gemma3Config(  # type: ignore[call-arg]
        text_config=dict(model_type="gemma3_text", **ids(tokens), **text),
        vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **vision),
        mm_tokens_per_image=mm_tokens_per_image,
        boi_token_index=tokens.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokens.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokens.convert_tokens_to_ids("<image_soft_token>"),
        eos_token_id=[tokens.eos_token_id, tokens.convert_tokens_to_ids("<end_of_turn>")],
    )


def ids(tokens: Any) -> dict[str, Any]:
    return dict(pad_token_id=tokens.pad_token_id, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id)


TEXT = dict(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    query_pre_attn_scalar=12,
    max_position_embeddings=4096,
    sliding_window=6,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
)
VISION = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
)


def tiny(features: int) -> Tiny:
    tokens = tokenizer(NAMED)
    made = config(tokens, dict(**TEXT, vocab_size=len(tokens) + 3), VISION, features)
    return Tiny(randomize(Gemma3ForConditionalGeneration(made)), tokens, files(16, features))


def published() -> Tiny:
    """gemma-3-4b-it."""
    tokens = tokenizer(NAMED)
    text = dict(
        vocab_size=262_208,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=131_072,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        sliding_window=1024,
    )
    vision = dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=896,
        patch_size=14,
    )
    return Tiny(config(tokens, text, vision, 256), tokens, files(896, 256))


def text_only() -> Tiny:
    """gemma-3-1b-it: the decoder alone."""
    from transformers import Gemma3ForCausalLM

    tokens = tokenizer()
    made = Gemma3TextConfig(**TEXT, **ids(tokens), vocab_size=len(tokens) + 3)
    return Tiny(randomize(Gemma3ForCausalLM(made)), tokens)


CHECKPOINTS = {
    "gemma3": lambda: tiny(4),
    "gemma3-large-pictures": lambda: tiny(16),  # a picture does not fit into the window
}
SHAPES = {"gemma3-4b": published}
