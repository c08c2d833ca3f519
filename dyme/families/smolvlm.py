"""SmolVLM2: the layout of SmolVLM v1 (idefics3) in separate classes, whose processor also takes videos."""

from __future__ import annotations

from dyme.families.idefics3 import Idefics3


class SmolVLM(Idefics3):
    """SmolVLM2-256M/500M-Video-Instruct and SmolVLM2-2.2B-Instruct, on pictures."""

    name = "smolvlm"
    model_types = ("smolvlm",)

    model_class = "SmolVLMForConditionalGeneration"
    processor_class = "SmolVLMProcessor"
    image_processor_class = "SmolVLMImageProcessor"
    image_texts = ("<video>",)  # the processor looks for a video wherever the text has this token
