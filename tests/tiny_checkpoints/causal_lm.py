"""Text-only checkpoints: Llama (SmolLM), Qwen2, Qwen3 and SmolLM3, ChatML as their chat template; Gemma 3 1B."""

from __future__ import annotations

from typing import Any

import transformers

from tests.tiny_checkpoints import gemma3
from tests.tiny_checkpoints.common import Tiny, randomize, train_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3 and SmolLM3: the last reply has a thinking block, an empty one where the message brings none."""
SIZES = dict(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=12
)


def _tokenizer(thinks: bool = False) -> Any:
    return train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        plain=("<think>", "</think>") if thinks else (),
        chat_template=THINKING_TEMPLATE if thinks else CHAT_TEMPLATE,
    )


def _config(kind: str, tokenizer: Any, **fields: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **fields
    )


def _tiny(kind: str, **fields: Any) -> Tiny:
    tokenizer = _tokenizer(thinks=kind in ("Qwen3", "SmolLM3"))
    vocab_size = len(tokenizer) + 5  # published vocabularies are padded
    config = _config(kind, tokenizer, vocab_size=vocab_size, max_position_embeddings=4096, **SIZES, **fields)
    return Tiny(randomize(getattr(transformers, f"{kind}ForCausalLM")(config)), tokenizer)


def _published(kind: str, **fields: Any) -> Tiny:
    tokenizer = _tokenizer()
    return Tiny(_config(kind, tokenizer, **fields), tokenizer)


CHECKPOINTS = {
    "gemma3-text": gemma3.text_only,
    "llama": lambda: _tiny("Llama", tie_word_embeddings=True),
    "qwen2": lambda: _tiny("Qwen2", tie_word_embeddings=True),
    "qwen2-sliding": lambda: _tiny("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": lambda: _tiny("Qwen3", tie_word_embeddings=False),
    "smollm3": lambda: _tiny("SmolLM3", tie_word_embeddings=True),
}
SHAPES = {
    "qwen2.5-0.5b": lambda: _published(
        "Qwen2",
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        max_window_layers=21,
        rms_norm_eps=1e-6,
        rope_theta=1_000_000.0,
        tie_word_embeddings=True,
    ),
    "smollm2-360m": lambda: _published(
        "Llama",
        vocab_size=49_152,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
    ),
}
