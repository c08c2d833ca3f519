"""Text-only checkpoints: Llama (SmolLM), Qwen2, Qwen3 and SmolLM3, ChatML as their chat template."""

from __future__ import annotations

from typing import Any

import transformers

from checkpoints.common import Tiny, randomize, train_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = dict(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=12
)


def _tiny(kind: str, **fields: Any) -> Tiny:
    tokenizer = train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    config = getattr(transformers, f"{kind}Config")(
        **SIZES,
        vocab_size=len(tokenizer) + 5,  # published vocabularies are padded
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    return Tiny(randomize(getattr(transformers, f"{kind}ForCausalLM")(config)), tokenizer)


CHECKPOINTS = {
    "llama": lambda: _tiny("Llama", tie_word_embeddings=True),
    "qwen2": lambda: _tiny("Qwen2", tie_word_embeddings=True),
    "qwen2-sliding": lambda: _tiny("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": lambda: _tiny("Qwen3", tie_word_embeddings=False),
    "smollm3": lambda: _tiny("SmolLM3", tie_word_embeddings=True),
}
SHAPES: dict[str, Any] = {}
