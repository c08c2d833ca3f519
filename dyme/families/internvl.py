"""InternVL 2.5, 3 and 3.5 in their Hugging Face format: InternViT tower, pixel shuffle and MLP, Qwen or Llama models.

A picture becomes a grid of equal tiles and a thumbnail (none where the grid is one tile); every tile has the same
number of features. `max_patches` of preprocessor_config.json bounds the tiles, `model.max_pixels` hardly does: the grid
follows the picture's shape more than its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer

from dyme.families.base import Family, ModelError

NAMED_TOKENS = ("start_image_token", "end_image_token", "context_image_token", "video_token")
"""Token names that the processor reads from the tokenizer."""


class InternVL(Family):
    """OpenGVLab's InternVL*-hf checkpoints."""

    name = "internvl"
    model_types = ("internvl",)

    model_class = "InternVLForConditionalGeneration"
    processor_class = "InternVLProcessor"
    image_processor_class = "GotOcr2ImageProcessor"
    placeholder = "<IMG_CONTEXT>"
    image_texts = ("<video>",)

    @classmethod
    def open(cls, path: Path) -> Family:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if missing := [name for name in NAMED_TOKENS if getattr(tokenizer, name, None) is None]:
            raise ModelError(
                f"{path / 'tokenizer_config.json'}: names no {missing[0]}: take the checkpoint whose name ends in -hf, "
                "in its newest revision"
            )
        return super().open(path)

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        return {"vision": model.model.vision_tower, "connector": model.model.multi_modal_projector}

    def image_features(self, pixels: Mapping[str, Tensor]) -> int:
        """pixel_values [tiles, 3, H, W], thumbnails among the tiles."""
        tiles, _, height, width = pixels["pixel_values"].shape
        patch_height, patch_width = self.config.vision_config.patch_size
        shuffled = (height // patch_height) * (width // patch_width) * self.config.downsample_ratio**2
        return tiles * round(shuffled)
