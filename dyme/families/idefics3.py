"""SmolVLM v1 (Idefics3 classes): SigLIP tower, pixel-shuffle connector, Llama language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)

from dyme.families import scratch
from dyme.families.base import Family, ModelError, Prompt
from dyme.families.causal_lm import llama_fields
from dyme.families.processors import pil_class

IMAGE_TOKEN, FAKE_TOKEN, GLOBAL_TOKEN = "<image>", "<fake_token_around_image>", "<global-img>"

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Idefics3(Family):
    """SmolVLM-256M/500M-Instruct (v1) and other Idefics3 checkpoints."""

    name = "idefics3"
    model_types = ("idefics3",)

    model_class = "Idefics3ForConditionalGeneration"
    processor_class = "Idefics3Processor"
    image_processor_class = "Idefics3ImageProcessor"
    placeholder = IMAGE_TOKEN
    pixel_keys = ("pixel_values", "pixel_attention_mask")

    @classmethod
    def build(
        cls, spec: Any, texts: Sequence[str], dtype: torch.dtype, kept: str | None = None
    ) -> tuple[Family, nn.Module]:
        grid = spec.image_size // spec.patch_size
        if spec.image_size % spec.patch_size or grid % spec.scale_factor:
            raise ModelError(
                f"model.from_scratch: image_size {spec.image_size} / patch_size {spec.patch_size} must be a "
                f"multiple of scale_factor {spec.scale_factor}"
            )
        # the processor needs all row and column tags even when pictures are never split
        tags = [GLOBAL_TOKEN, *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
        texts = [*texts, *["User: ", "Assistant: "] * scratch.FREQUENT]  # the words of the chat template
        tokenizer = scratch.train_tokenizer(texts, spec.vocab_size, [IMAGE_TOKEN, FAKE_TOKEN, *tags], kept)
        side = {"longest_edge": spec.image_size}
        image_processor = pil_class("Idefics3ImageProcessor")(do_image_splitting=False, size=side, max_image_size=side)
        processor = Idefics3Processor(
            image_processor, tokenizer, image_seq_len=(grid // spec.scale_factor) ** 2, chat_template=CHAT_TEMPLATE
        )
        config = Idefics3Config(  # type: ignore[call-arg]
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),  # type: ignore[arg-type]
            pad_token_id=tokenizer.pad_token_id,
            scale_factor=spec.scale_factor,
            tie_word_embeddings=True,
            text_config=dict(model_type="llama", **llama_fields(spec, tokenizer)),
            vision_config=dict(
                hidden_size=spec.vision_hidden_size,
                intermediate_size=spec.vision_hidden_size * 3,
                num_hidden_layers=spec.vision_layers,
                num_attention_heads=spec.heads,
                image_size=spec.image_size,
                patch_size=spec.patch_size,
                initializer_range=spec.vision_hidden_size**-0.5,
            ),
        )
        model = Idefics3ForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        return cls(processor, config), model

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        return {"vision": model.model.vision_model, "connector": model.model.connector}

    def language(self, model: Any) -> nn.Module:
        return model.model.text_model

    def image_features(self, pixels: Mapping[str, Tensor]) -> int:
        _, tiles, _, height, width = pixels["pixel_values"].shape
        patch, shuffle = self.config.vision_config.patch_size, self.config.scale_factor
        return tiles * ((height // patch) * (width // patch) // shuffle**2)

    def collate_pixels(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """pixel_values [1, tiles, C, H, W] and pixel_attention_mask [1, tiles, H, W] over all prompts."""
        held = [p.pixels for p in prompts if p.pixels]
        return {key: torch.cat([pixels[key] for pixels in held], dim=1) for key in held[0]} if held else {}

    def generate_inputs(self, prompts: Sequence[Prompt], input_ids: Tensor) -> dict[str, Tensor]:
        """generate splits by its batch dimension: [B, max tiles, ...]; the model drops all-zero padding tiles."""
        held = [p.pixels for p in prompts]
        if not held[0]:
            return {}
        tiles = max(pixels["pixel_values"].shape[1] for pixels in held)
        return {key: torch.cat([_pad_tiles(pixels[key], tiles) for pixels in held]) for key in held[0]}


def _pad_tiles(tensor: Tensor, tiles: int) -> Tensor:
    missing = tiles - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros(1, missing, *tensor.shape[2:])], dim=1) if missing else tensor
