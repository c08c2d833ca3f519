"""Parts that the tiny checkpoints of all families share: a trained tokenizer, random weights, files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

TEXTS = (
    "What is the value of bar one? Think step by step, then end with a line 'Answer: 4'.",
    "the red bar is 4, the blue bar is 12.5\nAnswer: red",
    "system user assistant model User: Assistant: You are a helpful assistant.",
)


@dataclass(frozen=True)
class Tiny:
    """A checkpoint in memory. files: name -> text, or a value that is written as JSON."""

    model: Any
    tokenizer: Any
    files: dict[str, Any] = field(default_factory=dict)


def train_tokenizer(
    special: Sequence[str],
    *,
    eos: str,
    pad: str,
    plain: Sequence[str] = (),
    bos: str | None = None,
    named: dict[str, str] | None = None,
    chat_template: str | None = None,
) -> Any:
    """A small byte-level BPE tokenizer with a family's special tokens, in the given order behind the learnt ones.

    plain: added tokens that are not special (`<think>` of Qwen3); named: tokens the processor looks for by name, such
    as {"start_image_token": "<img>"}.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text for text in TEXTS for _ in range(20)], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        bos_token=bos,
        padding_side="left",
        chat_template=chat_template,
        model_max_length=100_000,
        **({"extra_special_tokens": named} if named else {}),
    )


def randomize(model: nn.Module, std: float = 0.15) -> nn.Module:
    """Weights so large, and biases and norms so far from their start, that a mix-up shows in the output."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * std if p.ndim > 1 else p + 0.05 * noise)
    return model


def write_checkpoint(folder: Path, tiny: Tiny, random_weights: bool = False) -> Path:
    """Writes a checkpoint as it lies on the Hub.

    Where `tiny.model` is a configuration there are no weights, or with `random_weights` those of a fresh model in
    bfloat16.
    """
    from transformers import PretrainedConfig

    folder.mkdir(parents=True, exist_ok=True)
    model = tiny.model
    if random_weights and isinstance(model, PretrainedConfig):
        model = _fresh(model)
    model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    for name, content in tiny.files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _fresh(config: Any) -> nn.Module:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    torch.manual_seed(5)
    return (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_config(config, dtype=torch.bfloat16)
