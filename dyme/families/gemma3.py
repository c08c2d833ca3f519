"""Gemma 3: SigLIP tower, pooling connector, decoder with sliding-window layers; tokens of a picture see each other both
ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dyme.families.base import Family, Prompt


class Gemma3(Family):
    """Gemma 3 4B and larger (the 1B model is text-only: causal_lm)."""

    name = "gemma3"
    model_types = ("gemma3",)

    model_class = "Gemma3ForConditionalGeneration"
    processor_class = "Gemma3Processor"
    image_processor_class = "Gemma3ImageProcessor"
    placeholder = "<image_soft_token>"
    image_texts = ("<start_of_image>", "<end_of_image>")

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        return {"vision": model.model.vision_tower, "connector": model.model.multi_modal_projector}

    def image_features(self, pixels: Mapping[str, Tensor]) -> int:
        """Pictures and their pan-and-scan crops, pixel_values [n, C, H, W], have the same number of features each."""
        return len(pixels["pixel_values"]) * self.config.mm_tokens_per_image

    def image_blocks(self, prompt: Prompt) -> Tensor | None:
        """Every run of placeholders is a block: the model tells pictures (and crops) apart by the text between them."""
        image = prompt.input_ids == self.config.image_token_id
        starts = image.clone()
        starts[1:] &= ~image[:-1]
        return (starts.cumsum(0) - 1).masked_fill(~image, -1)

    def generate_inputs(self, prompts: Sequence[Prompt], input_ids: Tensor) -> dict[str, Tensor]:
        """token_type_ids [B, L], 1 at pictures. Without them the model would use causal attention within pictures."""
        types = (input_ids == self.config.image_token_id).long()
        return {**self.collate_pixels(prompts), "token_type_ids": types}
