"""Prompts: a record as the user turn it becomes, the reply that is memorized, and its encoding, kept for the step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from PIL import Image

from dyme.config import PromptConfig
from dyme.data import ImageError, Record
from dyme.families import Family, Prompt, PromptError


def prompt_text(record: Record, config: PromptConfig) -> str:
    """The user turn of a record."""
    question = record.question
    if record.choices:
        options = " ".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(record.choices))
        question += config.choices_template.replace("{choices}", options)
    return config.template.replace("{flag}", config.answer_flag).replace("{question}", question)


def reply_text(record: Record, config: PromptConfig, trace: str | None) -> str:
    """The reply that is memorized: refined trace, flag and answer; without a trace the answer alone."""
    if config.style == "direct":
        return record.answer
    final = f"{config.answer_flag} {record.answer}"
    # a trace that announces an answer of its own would teach a second flag, which is an invalid format
    thinking = re.split(re.escape(config.answer_flag), trace or "", maxsplit=1, flags=re.IGNORECASE)[0].strip()
    return f"{thinking}\n{final}" if thinking else final


def has_reference(record: Record, on_missing_trace: str, style: str) -> bool:
    """Whether the record can be memorized."""
    return on_missing_trace == "answer" or style == "direct" or bool(record.hint and record.hint.strip())


def fit_pixels(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture in its own aspect ratio with at most `max_pixels` pixels; the same object where it fits already."""
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    width = min(max(1, int(image.width * scale)), max_pixels)
    height = min(max(1, int(image.height * scale)), max_pixels // width)
    return image.resize((width, height), Image.Resampling.BICUBIC)


class PromptBook:
    """Encoded prompts of the records in use. A record that fails is reported once and stays None: it costs its rows
    only."""

    def __init__(
        self,
        family: Family,
        config: PromptConfig,
        report: Callable[[str], None],
        max_pixels: int | None = None,
    ) -> None:
        self.family, self.config, self.report, self.max_pixels = family, config, report, max_pixels
        self._resized = False
        self._pages: dict[str, Prompt | None] = {}
        self.failed: dict[str, str] = {}

    def encode(self, record: Record) -> Prompt | None:
        if record.id not in self._pages:
            self._pages[record.id] = self._encode(record)
        return self._pages[record.id]

    def _encode(self, record: Record) -> Prompt | None:
        try:
            images = [self._fit(record, image.load()) for image in record.images]
            return self.family.encode(prompt_text(record, self.config), images)
        except Exception as error:  # an edge: whatever a decoder or processor trips over, it costs this record only
            reason = str(error) if isinstance(error, ImageError | PromptError) else f"{type(error).__name__}: {error}"
            if record.id not in self.failed:
                self.report(f"record {record.id} left out: {reason}")
            self.failed[record.id] = reason
            return None

    def _fit(self, record: Record, image: Image.Image) -> Image.Image:
        fitted = fit_pixels(image, self.max_pixels)
        if fitted is not image and not self._resized:
            self._resized = True
            self.report(
                f"pictures are resized to model.max_pixels={self.max_pixels}, first that of record {record.id}: "
                f"{image.width}x{image.height} to {fitted.width}x{fitted.height} (said once)"
            )
        return fitted

    def clear(self) -> None:
        """Forgets the encodings (a step's pictures would otherwise pile up)."""
        self._pages.clear()
