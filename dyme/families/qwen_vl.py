"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: pictures as grids of patches, and M-RoPE positions.

A text token has one position in all three rows (time, height, width). The tokens of a picture share the time, and their
rows and columns count up from the end of the text; the text continues after the longer side of the grid. So the last
position of a prompt with pictures is smaller than its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dyme.families.base import Family, Prompt, bundle

GRID = "image_grid_thw"


class QwenVL(Family):
    """pixels: pixel_values [patches, C * T * h * w] of all pictures, concatenated; image_grid_thw int64
    [pictures, 3], patches in time, height and width."""

    image_processor_class = "Qwen2VLImageProcessor"
    placeholder = "<|image_pad|>"
    pixel_keys = ("pixel_values", GRID)
    image_texts = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    mergers: ClassVar[tuple[str, ...]] = ("merger",)
    """Children of the vision tower that turn its patches into language-model features."""

    def load_model(self, dtype: torch.dtype) -> nn.Module:
        model: Any = super().load_model(dtype)
        # transformers refuses FlexAttention for these classes as a whole; their decoders call attention through the
        # same interface as Qwen2 and Qwen3, which have it
        self.language(model)._supports_flex_attn = True  # type: ignore[assignment]
        return model

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        visual = model.model.visual
        rest = [name for name, _ in (*visual.named_children(), *visual.named_parameters(recurse=False))]
        rest = [name for name in rest if name not in self.mergers]
        return {"vision": bundle(visual, *self.mergers), "connector": bundle(visual, *rest)}

    def image_features(self, pixels: Mapping[str, Tensor]) -> int:
        return int(pixels[GRID].prod(-1).sum()) // self._merge**2

    @property
    def _merge(self) -> int:
        return self.config.vision_config.spatial_merge_size

    def prompt_positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """[3, P]: time, height and width."""
        grids = prompt.pixels[GRID].tolist() if prompt.pixels else []
        placeholders = (prompt.input_ids == self.config.image_token_id).nonzero()[:, 0].tolist()
        rows, laid, seen, position = [], 0, 0, 0
        for time, height, width in grids:
            height, width = height // self._merge, width // self._merge
            text = placeholders[seen] - laid  # tokens since the last picture
            rows.append(torch.arange(position, position + text).expand(3, -1))
            position += text
            sides = [torch.arange(position, position + side) for side in (time, height, width)]
            rows.append(torch.cartesian_prod(*sides).T)
            seen += time * height * width
            laid += text + time * height * width
            position += max(height, width)
        start = position + len(prompt) - laid
        rows.append(torch.arange(position, start).expand(3, -1))
        return torch.cat(rows, dim=1), start

    def generate_inputs(self, prompts: Sequence[Prompt], input_ids: Tensor) -> dict[str, Tensor]:
        """mm_token_type_ids [B, L], 1 at pictures: without it transformers refuses, or counts in one dimension."""
        pixels = self.collate_pixels(prompts)
        types = (input_ids == self.config.image_token_id).to(torch.int64)
        return {**pixels, "mm_token_type_ids": types} if pixels else {}
