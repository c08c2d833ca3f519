"""LLaVA-OneVision in its Hugging Face format: SigLIP tower, MLP projector, Qwen2 language model.

A single picture is encoded twice: as a whole and in tiles of a grid. The features of the tiles, without padding, are
scaled down where there are too many, and a newline feature (`image_newline`) follows each row. In a prompt with several
pictures each is one tile and one newline. The chat template writes all pictures before the text,
wherever the question has its markers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape, unpad_image

from dyme.families.base import Family, Prompt, bundle


class LlavaOnevision(Family):
    """llava-hf/llava-onevision-qwen2-*-hf."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)

    model_class = "LlavaOnevisionForConditionalGeneration"
    processor_class = "LlavaOnevisionProcessor"
    image_processor_class = "LlavaOnevisionImageProcessor"
    placeholder = "<image>"
    pixel_keys = ("pixel_values", "image_sizes", "batch_num_images")
    image_texts = ("<video>",)

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        return {
            "vision": model.model.vision_tower,
            "connector": bundle(model.model, "vision_tower", "language_model"),
        }

    def image_features(self, pixels: Mapping[str, Tensor]) -> int:
        """image_sizes [images, 2] (height, width); batch_num_images [prompts], the pictures of each."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        total = 0
        sizes = iter(pixels["image_sizes"].tolist())
        for images in pixels["batch_num_images"].tolist():
            for size in islice(sizes, images):
                total += side**2 + (self._grid_features(size, side) if images == 1 else 1)
        return total

    def _grid_features(self, size: list[int], side: int) -> int:
        """Features of a picture's tiles, `side` x `side` each, with the newlines."""
        config = self.config
        rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        # on shapes alone: the model's own rounding, without its numbers
        padded = torch.empty(1, rows * side, columns * side, device="meta")
        _, height, width = unpad_image(padded, size).shape
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(height * width / (most * side**2))
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
        return height * (width + 1)

    def collate_pixels(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """pixel_values [images, most tiles, 3, H, W]: the model drops tiles that a picture does not have, by its size
        and by the number of pictures in its prompt."""
        held = [dict(p.pixels) for p in prompts if p.pixels]
        most = max((pixels["pixel_values"].shape[1] for pixels in held), default=0)
        for pixels in held:
            tiles = pixels["pixel_values"]
            pixels["pixel_values"] = pad(tiles, (0, 0, 0, 0, 0, 0, 0, most - tiles.shape[1]))
        return {key: torch.cat([pixels[key] for pixels in held]) for key in held[0]} if held else {}
