"""Chat: the half of a family that needs no weights. Text and pictures to token ids, replies to text."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from PIL import Image
from torch import Tensor

from dyme.families.context import context_of
from dyme.families.quotes import Quotes, any_of, following_ids, split_ids

IMAGE = "image"
MARKER = "<image>"
"""The place of the next picture in a question; without markers all pictures come before the text."""
TAG = re.compile(r"[^\w\s].*[^\w\s]")
"""Form of an added token that may be a control token without being special, such as `<tool_call>`."""


class ModelError(ValueError):
    """A model that cannot be opened or built; the message names the file or setting and the mend."""


class PromptError(Exception):
    """A record that cannot be encoded; the message names the counts and the mend."""


@dataclass(frozen=True)
class Prompt:
    """One encoded user turn, ending with the generation prompt.

    input_ids: int64 [P], image placeholders expanded. pixels: the processor's image tensors ({} for text-only prompts),
    in the layout the family's `collate_pixels` joins.

    For rollout engines that encode by themselves `PromptCache` adds what it was made of (`Family.messages` makes a chat
    of all). text: the user turn before the chat template. pictures: decodes the turn's pictures anew at each call, in
    the size that the processor was given, so that none is held. system: the system prompt. An engine that encodes them
    must split the control tokens that they quote, as `Family.encode` does; `input_ids` have them split already.
    """

    input_ids: Tensor
    pixels: Mapping[str, Tensor] = field(default_factory=dict)
    text: str = ""
    pictures: Callable[[], list[Image.Image]] = list
    system: str | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def modalities(self) -> frozenset[str]:
        return frozenset({IMAGE}) if self.pixels else frozenset()


class Chat:
    """Questions and replies through a checkpoint's own processor and chat template."""

    modalities: ClassVar[frozenset[str]] = frozenset({IMAGE})
    placeholder: ClassVar[str] = ""
    """Token that stands for one image feature; config.json and the tokenizer must agree on its id."""

    def __init__(self, processor: Any, config: Any, source: Path | None = None) -> None:
        """`source`: the checkpoint folder that the processor was read from, None for models from scratch."""
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.config = config
        self.source = source

    def apart(self) -> Self:
        """The same family with a separate processor, for use in another thread. A tokenizer keeps settings of a call,
        so two threads must not share one."""
        family = copy.copy(self)
        family.processor = copy.deepcopy(self.processor)
        family.tokenizer = getattr(family.processor, "tokenizer", family.processor)
        family.__dict__.pop("_quotes", None)  # it holds a processor too
        return family

    def messages(
        self, text: str, images: Sequence[Image.Image] = (), system: str | None = None
    ) -> list[dict[str, Any]]:
        """The chat of one user turn, after the system prompt if there is one. Raises `PromptError` where markers in the
        text and images differ in number."""
        pieces = text.split(MARKER)
        if len(pieces) == 1:
            pieces = [*[""] * len(images), text]
        if len(pieces) - 1 != len(images):
            raise PromptError(
                f"{len(pieces) - 1} image placeholders '{MARKER}' in the question but {len(images)} images: "
                "write one for each image, or none"
            )
        opening: list[dict[str, Any]] = []
        if system and self.has_system_role:
            opening = [{"role": "system", "content": [{"type": "text", "text": system}]}]
        elif system:
            pieces[0] = f"{system}\n\n{pieces[0]}"
        content: list[dict[str, Any]] = []
        for at, piece in enumerate(pieces):
            if piece:
                content.append({"type": "text", "text": piece})
            if at < len(images):
                content.append({"type": "image", "image": images[at]})
        return [*opening, {"role": "user", "content": content}]

    def encode(self, text: str, images: Sequence[Image.Image] = (), system: str | None = None) -> Prompt:
        """A user turn through the real processor and chat template. Control tokens that text and system prompt spell
        out (`control_tokens`) are encoded as plain characters: only the chat template writes such tokens, and only
        `images` become pictures.

        Raises `PromptError` where placeholders and images or features differ."""
        marked = self._quotes.mark(self.messages(text, images, system))
        processor = self._quotes.processor if marked.ids else self.processor
        out = processor.apply_chat_template(
            marked.messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = out["input_ids"][0]
        if marked.ids:
            ids = self._quotes.fill(ids, marked)
        pixels = {key: out[key] for key in self.pixel_keys if key in out}
        prompt = Prompt(ids, pixels, system=system)
        self.check_placeholders(prompt)
        return prompt

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the chat template writes a system prompt. Where it refuses or drops one, the prompt goes before the
        text of the user turn, with a blank line between."""
        probe = "\u2603system\u2603"
        user = self.messages("-")
        content = [{"type": "text", "text": probe}] if isinstance(user[0]["content"], list) else probe
        try:  # an edge: templates refuse a role by raising whatever they like
            chat = [{"role": "system", "content": content}, *user]
            return probe in self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except Exception:
            return False

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """Texts that a user's text must not turn into one token: special tokens, tokens that stop, tokens of pictures
        and videos, and added tokens that the chat template writes, such as `<tool_call>`. Other added tokens are words
        of the vocabulary."""
        holders = {id(each): each for each in (self.processor, self.tokenizer)}.values()
        template = "".join(str(getattr(each, "chat_template", None) or "") for each in holders)
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        written = {text for text in added if TAG.fullmatch(text) and text in template}
        special = self.tokenizer.convert_ids_to_tokens([*self._special_ids, *self.stop_ids])
        return frozenset({*special, *written, self.placeholder, *self.image_texts} - {""})

    @cached_property
    def _quotes(self) -> Quotes:
        special = self.tokenizer.convert_ids_to_tokens([*self._special_ids])
        tags = any_of(self.control_tokens - {*special})

        def as_characters(text: str) -> list[int]:
            ids = following_ids(self.tokenizer, "\n", text, tags)
            if held := self.control_tokens & {*self.tokenizer.convert_ids_to_tokens(ids)}:
                raise PromptError(f"this tokenizer cannot write '{min(held)}' as plain text: take it out of the text")
            return ids

        return Quotes(self.processor, self.control_tokens, as_characters)

    pixel_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Keys that the processor returns besides tokens and that the backbone takes."""
    image_texts: ClassVar[tuple[str, ...]] = ()
    """More tokens that the processor would take for pictures or videos."""
    beyond_embedding: ClassVar[tuple[str, ...]] = ()
    """Tokens of published tokenizers that the model has no embedding for, and that no prompt can hold."""

    def image_features(self, pixels: Mapping[str, Tensor]) -> int:
        """Number of features that the vision tower and the connector will make of `pixels`."""
        raise NotImplementedError(f"{type(self).__name__} must count its image features")

    def check_placeholders(self, prompt: Prompt) -> None:
        """Compares placeholder tokens with image features; raises `PromptError`."""
        if IMAGE not in self.modalities:
            return
        placeholders = int((prompt.input_ids == self.config.image_token_id).sum())
        features = self.image_features(prompt.pixels) if prompt.pixels else 0
        if placeholders != features:
            raise PromptError(
                f"{placeholders} image placeholder tokens but {features} image features: the processor's files do not "
                "fit config.json, copy both from the same checkpoint"
            )

    def check_tokens(self) -> None:
        """Raises `ModelError` where the tokenizer has no EOS token, more tokens than the embedding, or another image
        token than config.json."""
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{self.source}/tokenizer_config.json names no eos_token: copy it from the original checkpoint again"
            )
        ids = {token: at for token, at in self.tokenizer.get_vocab().items() if token not in self.beyond_embedding}
        if beyond := sorted((at, token) for token, at in ids.items() if at >= self.vocab_size):
            at, token = beyond[0]
            raise ModelError(
                f"{self.source}: the embedding has {self.vocab_size} rows and the tokenizer {len(beyond)} tokens "
                f"beyond them, first '{token}' ({at}): copy both from the same checkpoint, or enlarge "
                "the embedding in transformers (resize_token_embeddings, save_pretrained)"
            )
        if IMAGE not in self.modalities:
            return
        ours, theirs = self.config.image_token_id, self.tokenizer.convert_tokens_to_ids(self.placeholder)
        if ours != theirs or theirs == self.tokenizer.unk_token_id:
            raise ModelError(
                f"{self.source}: config.json has image_token_id {ours}, the tokenizer has {theirs} for "
                f"'{self.placeholder}': copy config.json and the tokenizer's files from the same checkpoint"
            )

    @cached_property
    def anchors(self) -> dict[frozenset[str], Prompt]:
        """Prompts that a rank runs when it must run a module set but has no work for it."""
        anchors = {frozenset[str](): self.encode("-")}
        if IMAGE in self.modalities:
            anchors[frozenset({IMAGE})] = self.encode("-", [Image.new("RGB", (32, 32), (200, 60, 30))])
        return anchors

    @cached_property
    def _reply_frame(self) -> tuple[str, str]:
        """What the chat template puts between the generation prompt and a reply, and after it (end of turn too)."""
        probe = "\u2603reply\u2603"
        user = self.messages("-")
        reply = {
            "role": "assistant",
            "content": [{"type": "text", "text": probe}] if isinstance(user[0]["content"], list) else probe,
        }
        full = self.processor.apply_chat_template([*user, reply], tokenize=False)
        before, found, after = full.partition(probe)
        if not found:
            return "", self.tokenizer.eos_token
        # a template may start a reply differently from its generation prompt; replies follow the latter
        return before[len(self._opening) :] if before.startswith(self._opening) else "", after

    @cached_property
    def _opening(self) -> str:
        """A chat up to the first token of a reply."""
        return self.processor.apply_chat_template(self.messages("-"), add_generation_prompt=True, tokenize=False)

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a reply: the first token the chat template puts after it, else the tokenizer's EOS."""
        after = self.tokenizer(self._reply_frame[1], add_special_tokens=False)["input_ids"]
        special = [t for t in after if t in self._special_ids]
        return special[0] if special else self.tokenizer.eos_token_id

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Special tokens, unnamed ones included."""
        added = [t for t, info in self.tokenizer.added_tokens_decoder.items() if info.special]
        return frozenset([*added, *self.tokenizer.all_special_ids])

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that stop generation."""
        return tuple(dict.fromkeys([self.end_of_turn, self.tokenizer.eos_token_id]))

    @cached_property
    def forbidden_ids(self) -> tuple[int, ...]:
        """Tokens that may never be sampled: special tokens other than stops, tokens of pictures, videos and turns (even
        those that the tokenizer treats as text), and padded vocabulary."""
        beyond, known = range(len(self.tokenizer), self.vocab_size), self.tokenizer.get_vocab()
        alien = {known[token] for token in self._no_reply_tokens if token in known}
        banned = (self._special_ids | set(beyond) | alien) - set(self.stop_ids)
        return tuple(sorted(token for token in banned if token < self.vocab_size))

    @cached_property
    def context(self) -> int | None:
        """Most tokens of a prompt and its reply; None where config.json does not say."""
        return context_of(self.config.get_text_config())

    @property
    def vocab_size(self) -> int:
        return self.config.get_text_config().vocab_size

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn if pad is None else pad

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a reply with its end of turn, exactly as the model would have to generate it after `encode`."""
        body = self._reply_frame[0] + text
        return [*following_ids(self.tokenizer, self._opening[-1:], body, self._reply_tags), self.end_of_turn]

    def plain_ids(self, text: str) -> list[int]:
        """Special tokens and those of pictures and turns in the text stay plain text: a trace with '<image>' must not
        become a placeholder that has no features. Other added tokens (`<think>`) stay whole, as the model generates
        them."""
        return split_ids(self.tokenizer, text, self._reply_tags)

    @cached_property
    def _no_reply_tokens(self) -> frozenset[str]:
        """Control tokens that no reply may hold whole: all but the tags that come in pairs, such as `<think>` and
        `</think>`. Not all of them are special: the tokens that begin a turn of the distilled DeepSeek-R1 are not."""
        tags = self.control_tokens
        paired = {tag for open in tags if (close := f"</{open[1:]}") in tags for tag in (open, close)}
        return frozenset({*tags - paired, self.placeholder, *self.image_texts} - {""})

    @cached_property
    def _reply_tags(self) -> re.Pattern[str] | None:
        """Those of `_no_reply_tokens` that the tokenizer does not know as special."""
        special = {*self.tokenizer.convert_ids_to_tokens([*self._special_ids])}
        return any_of(self._no_reply_tokens - special)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply, without special tokens and without what the chat template puts before every reply (an empty
        thinking block)."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
        return text.removeprefix(self._reply_frame[0].strip()).strip()
