"""Prompts: a record as the user turn it becomes, the reply that is memorized, and its encoding, kept for the step."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Page:
    """What came of a record: its prompt, or the reason why there is none; `resized` says by how much a picture was."""

    prompt: Prompt | None
    reason: str = ""
    resized: str = ""


class PromptBook:
    """Encoded prompts of the records in use. A record that fails is reported once and stays None: it costs its rows
    only.

    `prefetch` encodes the records of the step to come in a thread; `turn` makes them the ones in use. Whatever is said
    or counted is so in the calling thread, when a record is used: a step that never comes leaves no trace.
    """

    def __init__(
        self,
        family: Family,
        config: PromptConfig,
        report: Callable[[str], None],
        max_pixels: int | None = None,
        background: Callable[[str], AbstractContextManager[None]] = lambda track: nullcontext(),
    ) -> None:
        """`background("prompts")` is entered around the work of the thread."""
        self.family, self.config, self.report, self.max_pixels = family, config, report, max_pixels
        self._background = background
        self._resized = False
        self._pages: dict[str, Prompt | None] = {}
        self._ahead: list[tuple[Record, Future[_Page]]] = []
        self._worker = ThreadPoolExecutor(1, "prompts")
        self._processor = threading.Lock()  # a tokenizer keeps settings of the call, so calls must not meet
        self.failed: dict[str, str] = {}

    def encode(self, record: Record) -> Prompt | None:
        if record.id not in self._pages:
            self._pages[record.id] = self._open(record, self._encode(record))
        return self._pages[record.id]

    def prefetch(self, records: Sequence[Record]) -> None:
        """Starts to encode the records of the next step. One step ahead at most: an earlier call must have been
        followed by `turn`. Until `clear` or `turn` nobody but this book may use the processor."""
        assert not self._ahead, "turn the page first"
        self._ahead = [(record, self._worker.submit(self._encode_ahead, record)) for record in records]

    def turn(self) -> None:
        """Forgets the encodings in use and takes those that were prefetched; waits for them."""
        self._pages = {record.id: self._open(record, page.result()) for record, page in self._ahead}
        self._ahead = []

    def clear(self) -> None:
        """Forgets the encodings in use (a step's pictures would otherwise pile up); those of the step to come stay. At
        its end nothing runs in the background."""
        self._pages.clear()
        wait([page for _, page in self._ahead])

    def _open(self, record: Record, page: _Page) -> Prompt | None:
        if page.resized and not self._resized:
            self._resized = True
            self.report(page.resized)
        if page.prompt is None:
            if record.id not in self.failed:
                self.report(f"record {record.id} left out: {page.reason}")
            self.failed[record.id] = page.reason
        return page.prompt

    def _encode_ahead(self, record: Record) -> _Page:
        with self._background("prompts"):
            return self._encode(record)

    def _encode(self, record: Record) -> _Page:
        resized = ""
        try:
            images = [image.load() for image in record.images]
            fitted = [fit_pixels(image, self.max_pixels) for image in images]
            for before, after in zip(images, fitted):
                if after is not before and not resized:
                    resized = (
                        f"pictures are resized to model.max_pixels={self.max_pixels}, first that of record "
                        f"{record.id}: {before.width}x{before.height} to {after.width}x{after.height} (said once)"
                    )
            with self._processor:
                return _Page(self.family.encode(prompt_text(record, self.config), fitted), resized=resized)
        except Exception as error:  # an edge: whatever a decoder or processor trips over, it costs this record only
            known = isinstance(error, ImageError | PromptError)
            return _Page(None, str(error) if known else f"{type(error).__name__}: {error}", resized)
