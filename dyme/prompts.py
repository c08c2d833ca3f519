"""Prompts: a record as the user turn it becomes, the reply that is memorized, and its encoding, kept for the step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from queue import SimpleQueue

from PIL import Image

from dyme.data import ImageError, Record
from dyme.families import Family, Prompt, PromptError
from dyme.rewards.answer import write_reply
from dyme.settings.errors import ConfigError
from dyme.settings.prompt import PromptConfig

SHORTEST = Record(id="", question="-", answers=("-",))
"""A record whose prompt is about as short as one can be."""


def prompt_text(record: Record, config: PromptConfig) -> str:
    """The user turn of a record."""
    question = record.question
    if record.choices:
        options = " ".join(f"({chr(65 + i)}) {choice}" for i, choice in enumerate(record.choices))
        question += config.choices_template.replace("{choices}", options)
    return config.template.replace("{flag}", config.answer_flag).replace("{question}", question)


def encode_turn(family: Family, text: str, images: Sequence[Image.Image], config: PromptConfig) -> Prompt:
    """The user turn as a prompt, behind the system prompt of the configuration. Raises `PromptError`."""
    system = {"system": config.system} if config.system else {}
    return family.encode(text, images, **system)


def check_context(family: Family, config: PromptConfig, new_tokens: int, key: str = "rollout.max_new_tokens") -> None:
    """Raises `ConfigError` where a reply of `new_tokens`, which `key` sets, leaves no room for any prompt in the
    model's context."""
    if family.context is None:
        return
    shortest = len(encode_turn(family, prompt_text(SHORTEST, config), (), config))
    room = family.context - shortest
    if room < 1:
        raise ConfigError(
            f"prompt: the shortest prompt has {shortest} tokens and the model's context {family.context}: shorten "
            "prompt.template or prompt.system"
        )
    if new_tokens > room:
        raise ConfigError(
            f"{key}={new_tokens} exceeds the model's context of {family.context} tokens, of which the shortest prompt "
            f"takes {shortest}: lower it to {room} at most, less the tokens of questions and pictures"
        )


def reply_text(record: Record, config: PromptConfig, trace: str | None) -> str:
    """The reply that is memorized: refined trace, flag and answer; without a trace the answer alone."""
    return write_reply(record.answer, config.answer_flag, trace, style=config.style)


def has_demonstration(record: Record, on_missing_trace: str, style: str) -> bool:
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


def pictures(record: Record, max_pixels: int | None) -> list[Image.Image]:
    """The record's pictures as the processor takes them. Raises `ImageError`."""
    return [fit_pixels(image.load(), max_pixels) for image in record.images]


MOST_THREADS = 8
"""Threads of a rank that encode ahead, at most."""


def threads() -> int:
    """Threads that encode ahead: half of this rank's share of the machine's cores."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // (2 * ranks)))


@dataclass(frozen=True)
class _Encoded:
    """What came of a record: its prompt, or the reason why there is none; `resized` says by how much a picture was."""

    prompt: Prompt | None
    reason: str = ""
    resized: str = ""


class PromptCache:
    """Encoded prompts of the records in use. A record that fails is reported once and stays None: it costs its rows
    only.

    `prefetch` encodes the records of the step to come in threads, each with a processor of its own; `advance` makes
    them the ones in use. Messages and counts come from the calling thread, when a record is used: a step that never
    comes leaves no trace.
    """

    def __init__(
        self,
        family: Family,
        config: PromptConfig,
        report: Callable[[str], None],
        max_pixels: int | None = None,
        background: Callable[[str], AbstractContextManager[None]] = lambda track: nullcontext(),
        new_tokens: int = 0,
    ) -> None:
        """`background("prompts")` is entered around the work of the threads. new_tokens: of the longest reply; a prompt
        that leaves less of the model's context is an error of its record. 0 takes prompts of any length."""
        self.family, self.config, self.report, self.max_pixels = family, config, report, max_pixels
        self.new_tokens = new_tokens
        self._background = background
        self._resized = False
        self._encoded: dict[str, Prompt | None] = {}
        self._ahead: tuple[list[Record], Future[list[_Encoded]]] | None = None
        self._one = ThreadPoolExecutor(1, "prompts ahead")
        self._many = ThreadPoolExecutor(threads(), "prompts")
        self.failed: dict[str, str] = {}

    def encode(self, record: Record) -> Prompt | None:
        if record.id not in self._encoded:
            self._encoded[record.id] = self._open(record, self._encode(record, self.family))
        return self._encoded[record.id]

    def encode_all(self, records: Sequence[Record]) -> list[Prompt | None]:
        """`encode` of each, several at a time."""
        new = list({record.id: record for record in records if record.id not in self._encoded}.values())
        for record, page in zip(new, self._encode_apart(new, self._families), strict=True):
            self._encoded[record.id] = self._open(record, page)
        return [self._encoded[record.id] for record in records]

    def prefetch(self, records: Sequence[Record]) -> None:
        """Starts to encode the records of the next step. One step ahead at most: an earlier call must have been
        followed by `advance`."""
        assert self._ahead is None, "turn the page first"
        self._ahead = list(records), self._one.submit(self._encode_ahead, list(records), self._families)

    def advance(self) -> None:
        """Forgets the encodings in use and takes those that were prefetched; waits for them."""
        records, pages = ([], []) if self._ahead is None else (self._ahead[0], self._ahead[1].result())
        self._encoded = {record.id: self._open(record, page) for record, page in zip(records, pages, strict=True)}
        self._ahead = None

    def clear(self) -> None:
        """Forgets the encodings in use (a step's pictures would otherwise pile up); those of the step to come stay. At
        its end nothing runs in the background."""
        self._encoded.clear()
        wait([] if self._ahead is None else [self._ahead[1]])

    def _open(self, record: Record, page: _Encoded) -> Prompt | None:
        if page.resized and not self._resized:
            self._resized = True
            self.report(page.resized)
        if page.prompt is None:
            if record.id not in self.failed:
                self.report(f"record {record.id} left out: {page.reason}")
            self.failed[record.id] = page.reason
        return page.prompt

    @cached_property
    def _families(self) -> SimpleQueue[Family]:
        """One for each thread of `_many`; made by the calling thread, the only one that uses the processor then."""
        families: SimpleQueue[Family] = SimpleQueue()
        for _ in range(threads()):
            families.put(self.family.apart())
        return families

    def _encode_ahead(self, records: Sequence[Record], families: SimpleQueue[Family]) -> list[_Encoded]:
        with self._background("prompts"):
            return self._encode_apart(records, families)

    def _encode_apart(self, records: Sequence[Record], families: SimpleQueue[Family]) -> list[_Encoded]:
        def encode(record: Record) -> _Encoded:
            family = families.get()
            page = self._encode(record, family)
            families.put(family)
            return page

        return list(self._many.map(encode, records))

    def _encode(self, record: Record, family: Family) -> _Encoded:
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
            text = prompt_text(record, self.config)
            again = partial(pictures, record, self.max_pixels)
            prompt = encode_turn(family, text, fitted, self.config)
            self._check_length(prompt)
            return _Encoded(replace(prompt, text=text, pictures=again), resized=resized)
        except Exception as error:  # an edge: whatever a decoder or processor trips over, it costs this record only
            known = isinstance(error, ImageError | PromptError)
            return _Encoded(None, str(error) if known else f"{type(error).__name__}: {error}", resized)

    def _check_length(self, prompt: Prompt) -> None:
        context = self.family.context if self.new_tokens else None
        if context is not None and len(prompt) + self.new_tokens > context:
            mend = "lower max_new_tokens" + (" or model.max_pixels" if prompt.pixels else "")
            raise PromptError(
                f"its prompt of {len(prompt)} tokens and a reply of {self.new_tokens} exceed the model's context of "
                f"{context} tokens: {mend}, or shorten the record"
            )
