"""Qwen2.5-VL: a ViT of windows with a few blocks of full attention, a merger, a Qwen2.5 language model, M-RoPE."""

from __future__ import annotations

from dyme.families.qwen_vl import QwenVL


class Qwen2_5_VL(QwenVL):
    """Qwen2.5-VL-Instruct checkpoints."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)

    model_class = "Qwen2_5_VLForConditionalGeneration"
    processor_class = "Qwen2_5_VLProcessor"
