"""Qwen3-VL: a ViT whose middle layers also feed the first decoder layers (DeepStack), each through a merger, a Qwen3
language model, interleaved M-RoPE."""

from __future__ import annotations

from dyme.families.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    """Qwen3-VL-Instruct checkpoints; dense ones, not the mixtures of experts."""

    name = "qwen3_vl"
    model_types = ("qwen3_vl",)

    model_class = "Qwen3VLForConditionalGeneration"
    processor_class = "Qwen3VLProcessor"
    mergers = ("merger", "deepstack_merger_list")
