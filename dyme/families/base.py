"""The contract between the trainer and a model family. Everything a family does differently lives in its own file.

A family knows how to load (or build) its model, how to turn a question and a picture into token ids and pixel tensors
with the model's real processor and chat template, which tokens end a turn, which may never be sampled, and how to run
the backbone without the head.

Adding one: subclass `Family`, name its `model_types`, register it in `dyme/families/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

IMAGE = "image"


class ModelError(ValueError):
    """A model that cannot be opened or built; the message names the file or setting and the mend."""


class PromptError(Exception):
    """A record that cannot be encoded; the message names the counts and the mend."""


@dataclass(frozen=True)
class Prompt:
    """One encoded user turn, ending with the generation prompt.

    input_ids: int64 [P], image placeholders expanded. pixels: the processor's image tensors ({} for text-only prompts),
    in the layout the family's `collate_pixels` joins.
    """

    input_ids: Tensor
    pixels: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def modalities(self) -> frozenset[str]:
        return frozenset({IMAGE}) if self.pixels else frozenset()


class Family(ABC):
    """Base of all families: what most Hugging Face models share. Holds the processor, never the weights."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """`model_type` values of config.json that this family loads."""
    modalities: ClassVar[frozenset[str]] = frozenset({IMAGE})
    packs_trees: ClassVar[bool] = True
    """False for models that cannot take a 4-D mask (linear attention): they train padded rows."""

    def __init__(self, processor: Any, config: Any) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.config = config

    # --- weights ----------

    @classmethod
    @abstractmethod
    def load(cls, path: Path, dtype: torch.dtype) -> tuple[Family, nn.Module]:
        """The family and the model of a local checkpoint folder."""

    @classmethod
    @abstractmethod
    def build(cls, spec: Any, texts: Sequence[str], dtype: torch.dtype) -> tuple[Family, nn.Module]:
        """A tiny random model (`model.from_scratch`) with a tokenizer trained on `texts`."""

    @abstractmethod
    def parts(self, model: Any) -> dict[str, nn.Module]:
        """Named parts that can be frozen or given their own learning rate; together they hold every parameter."""

    # --- running ----------

    @abstractmethod
    def hidden(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Any,
        position_ids: Tensor,
        pixels: Mapping[str, Tensor],
    ) -> Tensor:
        """Last hidden states [B, L, H] of packed sequences, through the stock transformers backbone."""

    def head(self, model: Any) -> nn.Module:
        """The language-model head (a Linear whose weight is [V, H])."""
        return model.get_output_embeddings()

    def attention_mask(self, allow: Tensor, position_ids: Tensor) -> Any:
        """What the backbone takes as mask. allow: bool [B, L, L], True where a query (row) sees a key (column)."""
        return allow[:, None]

    def prompt_positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """Position ids of the prompt's tokens ([P], or [3, P] with M-RoPE) and that of the first reply token."""
        return torch.arange(len(prompt)), len(prompt)

    def collate_pixels(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Joins the pixel tensors of prompts in the order their placeholders stand in the batch."""
        held = [p.pixels for p in prompts if p.pixels]
        return {key: torch.cat([pixels[key] for pixels in held]) for key in held[0]} if held else {}

    def generate_pixels(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Pixel tensors as `generate` takes them for a batch of prompts that all have images, or all have none."""
        return self.collate_pixels(prompts)

    # --- text ----------

    def messages(self, text: str, image: Image.Image | None) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = [{"type": "image", "image": image}] if image is not None else []
        return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]

    def encode(self, text: str, image: Image.Image | None = None) -> Prompt:
        """A user turn through the real processor and chat template.

        Raises `PromptError` where placeholders and features differ."""
        out = self.processor.apply_chat_template(
            self.messages(text, image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        pixels = {k: v for k, v in out.items() if k not in ("input_ids", "attention_mask", "token_type_ids")}
        prompt = Prompt(out["input_ids"][0], pixels)
        self.check_placeholders(prompt)
        return prompt

    @abstractmethod
    def check_placeholders(self, prompt: Prompt) -> None:
        """Compares placeholder tokens with the features the vision tower will return; raises `PromptError`."""

    @cached_property
    def anchors(self) -> dict[frozenset[str], Prompt]:
        """Prompts that a rank runs when it must run a module set but has no work for it."""
        anchors = {frozenset[str](): self.encode("-")}
        if IMAGE in self.modalities:
            anchors[frozenset({IMAGE})] = self.encode("-", Image.new("RGB", (32, 32), (200, 60, 30)))
        return anchors

    @cached_property
    def _reply_frame(self) -> tuple[str, str]:
        """What the chat template puts between the generation prompt and a reply, and after it (end of turn too)."""
        probe = "\u2603reply\u2603"
        user = self.messages("-", None)
        reply = {
            "role": "assistant",
            "content": [{"type": "text", "text": probe}] if isinstance(user[0]["content"], list) else probe,
        }
        prompt = self.processor.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
        full = self.processor.apply_chat_template([*user, reply], tokenize=False)
        if not full.startswith(prompt) or probe not in full:
            return "", self.tokenizer.eos_token
        before, after = full[len(prompt) :].split(probe)
        return before, after

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a reply: the first token the chat template puts after it, else the tokenizer's EOS."""
        after = self.tokenizer(self._reply_frame[1], add_special_tokens=False)["input_ids"]
        special = [t for t in after if t in set(self.tokenizer.all_special_ids)]
        return special[0] if special else self.tokenizer.eos_token_id

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that stop generation."""
        return tuple(dict.fromkeys([self.end_of_turn, self.tokenizer.eos_token_id]))

    @cached_property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Tokens that may never be sampled: specials (image placeholders too) but stops, and padded vocabulary."""
        added = [t for t, info in self.tokenizer.added_tokens_decoder.items() if info.special]
        beyond = range(len(self.tokenizer), self.vocab_size)
        return tuple(sorted((set(added) | set(self.tokenizer.all_special_ids) | set(beyond)) - set(self.stop_ids)))

    @property
    def vocab_size(self) -> int:
        return self.config.get_text_config().vocab_size

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn if pad is None else pad

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a reply with its end of turn, exactly as the model would have to generate it after `encode`."""
        # a trace that writes '<image>' must not bring a placeholder without features into a forward: specials stay text
        body = self.tokenizer(self._reply_frame[0] + text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return [*body, self.end_of_turn]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def export(self, folder: Path) -> None:
        """Writes processor, tokenizer and chat template beside exported weights."""
        self.processor.save_pretrained(folder)
