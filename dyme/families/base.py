"""The contract between the trainer and a model family. Everything specific to one family is in its file.

A family knows how to load (or build) its model, how to turn a question and its pictures into token ids and pixel
tensors with the model's real processor and chat template, which tokens end a turn, which may never be sampled, and how
to run the backbone without the head.

Adding one: docs/families.md.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from torch import Tensor, nn

from dyme.families.attention import Layout
from dyme.families.chat import IMAGE, MARKER, Chat, ModelError, Prompt, PromptError
from dyme.families.processors import copy_processor, load_processor, pil_class

__all__ = ["IMAGE", "MARKER", "Family", "ModelError", "Prompt", "PromptError", "bundle"]


class Family(Chat, ABC):
    """Base of all families: what most Hugging Face models share. Holds the processor, never the weights."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """`model_type` values of config.json that this family loads."""
    model_class: ClassVar[str]
    """Class in transformers that holds backbone (`.model`) and head."""
    processor_class: ClassVar[str | None] = None
    """Class in transformers; None for text-only models, whose tokenizer is all there is."""
    image_processor_class: ClassVar[str | None] = None
    """Image processor of the processor, as its class is called without the suffixes Pil and Fast."""
    packs_trees: ClassVar[bool] = True
    """False for models that cannot take a 4-D mask (linear attention): they train padded rows."""

    @property
    def image_backend(self) -> Literal["torchvision", "pil"] | None:
        """What resizes pictures here (docs/families.md); None for text-only models."""
        if IMAGE not in self.modalities:
            return None
        return "pil" if type(self.processor.image_processor).__name__.endswith("Pil") else "torchvision"

    def resize_by(self, backend: Literal["torchvision", "pil"] | None) -> bool:
        """Resizes pictures by `backend` from now on, for a model trained with it. False where that cannot be had here:
        torchvision is missing, or too old for this family."""
        if backend == "pil" != self.image_backend:
            assert self.image_processor_class is not None and self.source is not None
            self.processor.image_processor = pil_class(self.image_processor_class).from_pretrained(self.source)
            self.__dict__.pop("_quotes", None)  # it holds a copy of the processor
        return backend in (None, self.image_backend)

    # --- weights ----------

    @classmethod
    def open(cls, path: Path) -> Family:
        """The family of a checkpoint folder without its weights. Raises `ModelError`."""
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        family = cls(load_processor(path, cls.processor_class, cls.image_processor_class), config, path)
        family.check_tokens()
        return family

    def load_model(self, dtype: torch.dtype) -> nn.Module:
        """The model of the checkpoint folder. `check_fit` has compared the folder's weights with its config.json,
        because transformers initializes missing weights at random. Its generation_config.json is not read: nothing here
        decodes by it."""
        model = getattr(transformers, self.model_class).from_pretrained(
            self.source,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            generation_config=transformers.GenerationConfig(),
        )
        self.config = model.config
        return model

    @classmethod
    def build(
        cls, spec: Any, texts: Sequence[str], dtype: torch.dtype, kept: str | None = None
    ) -> tuple[Family, nn.Module]:
        """A tiny random model (`model.from_scratch`) with a tokenizer trained on `texts`, or the `kept` one."""
        raise ModelError(f"model.from_scratch: family '{cls.name}' is loaded from checkpoints only: set model.path")

    def parts(self, model: Any) -> dict[str, nn.Module]:
        """Named parts that can be frozen or given their own learning rate: disjoint, but for tied embeddings, and
        together they hold every parameter. Images go through vision and connector."""
        return {**self.image_parts(model), "language": self.language(model), "head": self.head(model)}

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        """The parts `vision` and `connector`; nothing for text-only models."""
        return {}

    def language(self, model: Any) -> nn.Module:
        """The decoder without its head."""
        return model.model.language_model

    def decoder_layers(self, model: Any) -> nn.ModuleList:
        """The decoder's layers in their order."""
        return self.language(model).layers  # type: ignore[return-value]

    # --- running ----------

    def hidden(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Any,
        position_ids: Tensor,
        pixels: Mapping[str, Tensor],
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states [B, L, H] of packed sequences, through the stock transformers backbone. cache: a
        transformers `Cache` that takes the keys and values in, for rollouts."""
        more = dict(pixels) if cache is None else {**pixels, "past_key_values": cache}
        out = model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **more,
        )
        return out.last_hidden_state

    def head(self, model: Any) -> nn.Module:
        """The language-model head (a Linear whose weight is [V, H])."""
        return model.get_output_embeddings()

    def attention_mask(self, model: Any, layout: Layout) -> Any:
        """The mask in the form the backbone takes; one for each kind of layer where some have a sliding window."""
        config = model.config.get_text_config()
        make = layout.block_mask if config._attn_implementation == "flex_attention" else layout.dense
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            return {"full_attention": make(), "sliding_attention": make(config.sliding_window)}
        return make()

    def image_blocks(self, prompt: Prompt) -> Tensor | None:
        """For models whose image tokens see each other both ways: the number of the image of every token of the
        prompt, int64 [P], -1 for text."""
        return None

    def prompt_positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """Position ids of the prompt's tokens ([P], or [3, P] with M-RoPE) and that of the first reply token."""
        return torch.arange(len(prompt)), len(prompt)

    def collate_pixels(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Joins the pixel tensors of prompts in the order their placeholders stand in the batch."""
        held = [p.pixels for p in prompts if p.pixels]
        return {key: torch.cat([pixels[key] for pixels in held]) for key in held[0]} if held else {}

    def generate_inputs(self, prompts: Sequence[Prompt], input_ids: Tensor) -> dict[str, Tensor]:
        """Arguments of `generate` besides ids and mask, for a batch of prompts that all have images, or all have none.

        input_ids: int64 [B, L], the prompts padded on the left with `pad_id`."""
        return self.collate_pixels(prompts)

    # --- files ----------

    def export(self, folder: Path) -> None:
        """Writes processor, tokenizer and chat template beside exported weights: those of the checkpoint, unchanged.
        Raises `ModelError` where they are no longer there."""
        if self.source is None:
            self.processor.save_pretrained(folder)
        elif not copy_processor(self.source, folder):
            raise ModelError(
                f"model.path: {self.source} is gone, so the export has no processor: put it back and start the run "
                "again, which goes on from its last checkpoint"
            )


def bundle(owner: nn.Module, *leave_out: str) -> nn.Module:
    """The direct children and parameters of a module as a new module, without those named; for parts inside others."""
    out = nn.Module()
    for name, child in owner.named_children():
        if name not in leave_out:
            out.add_module(name, child)
    for name, parameter in owner.named_parameters(recurse=False):
        if name not in leave_out:
            out.register_parameter(name, parameter)
    return out
