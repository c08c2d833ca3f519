"""Qwen2-VL: a ViT of full attention, a merger, a Qwen2 language model, M-RoPE."""

from __future__ import annotations

from dyme.families.qwen_vl import QwenVL


class Qwen2VL(QwenVL):
    """Qwen2-VL-Instruct checkpoints."""

    name = "qwen2_vl"
    model_types = ("qwen2_vl",)

    model_class = "Qwen2VLForConditionalGeneration"
    processor_class = "Qwen2VLProcessor"
