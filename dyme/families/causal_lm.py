"""Text-only causal language models (Llama, SmolLM, Qwen2, Qwen3 ...): the plain case of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dyme.families import scratch
from dyme.families.base import Family, PromptError

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class CausalLM(Family):
    """Models of transformers' `AutoModelForCausalLM` with full or sliding-window attention."""

    name = "causal_lm"
    model_types = ("llama", "qwen2", "qwen3", "smollm3", "gemma3_text")
    modalities = frozenset()
    beyond_embedding = ("<image_soft_token>",)  # of Gemma 3 1B, whose tokenizer is that of the larger models

    model_class = "AutoModelForCausalLM"

    @classmethod
    def build(
        cls, spec: Any, texts: Sequence[str], dtype: torch.dtype, kept: str | None = None
    ) -> tuple[Family, nn.Module]:
        texts = [*texts, *["user\n", "assistant\n"] * scratch.FREQUENT]  # the words of the chat template
        tokenizer = scratch.train_tokenizer(texts, spec.vocab_size, kept=kept)
        tokenizer.chat_template = CHAT_TEMPLATE
        config = LlamaConfig(**llama_fields(spec, tokenizer))
        return cls(tokenizer, config), LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")

    def language(self, model: Any) -> nn.Module:
        return model.model

    def messages(self, text: str, images: Sequence[Any] = (), system: str | None = None) -> list[dict[str, Any]]:
        if images:
            raise PromptError("this model is text-only and the record has an image: use a vision-language checkpoint")
        if system and not self.has_system_role:
            text = f"{system}\n\n{text}"
        opening = [{"role": "system", "content": system}] if system and self.has_system_role else []
        return [*opening, {"role": "user", "content": text}]


def llama_fields(spec: Any, tokenizer: Any) -> dict[str, Any]:
    """LlamaConfig fields of a tiny language model."""
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.hidden_size * 3,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=spec.hidden_size**-0.5,  # narrow models learn slowly at first with the usual 0.02
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
