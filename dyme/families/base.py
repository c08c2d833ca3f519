"""The contract between the trainer and a model family. Everything specific to one family is in its file.

A family knows how to load (or build) its model, how to turn a question and its pictures into token ids and pixel
tensors with the model's real processor and chat template, which tokens end a turn, which may never be sampled, and how
to run the backbone without the head.

Adding one: docs/families.md.
"""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from dyme.families.attention import Layout
from dyme.families.processors import copy_processor, load_processor, pil_class

IMAGE = "image"
MARKER = "<image>"
"""The place of the next picture in a question; without markers all pictures come before the text."""


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
    of both). text: the user turn before the chat template. pictures: decodes the turn's pictures anew at each call, in
    the size that the processor was given, so that none is held.
    """

    input_ids: Tensor
    pixels: Mapping[str, Tensor] = field(default_factory=dict)
    text: str = ""
    pictures: Callable[[], list[Image.Image]] = list

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def modalities(self) -> frozenset[str]:
        return frozenset({IMAGE}) if self.pixels else frozenset()


class Family(ABC):
    """Base of all families: what most Hugging Face models share. Holds the processor, never the weights."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    """`model_type` values of config.json that this family loads."""
    model_class: ClassVar[str]
    """Class in transformers that holds backbone (`.model`) and head."""
    processor_class: ClassVar[str | None] = None
    """Class in transformers; None for text-only models, whose tokenizer is all there is."""
    image_processor_class: ClassVar[str | None] = None
    """Image processor of the processor, as its class is called without the suffixes Pil and Fast."""
    modalities: ClassVar[frozenset[str]] = frozenset({IMAGE})
    placeholder: ClassVar[str] = ""
    """Token that stands for one image feature; config.json and the tokenizer must agree on its id."""
    packs_trees: ClassVar[bool] = True
    """False for models that cannot take a 4-D mask (linear attention): they train padded rows."""

    def __init__(self, processor: Any, config: Any, source: Path | None = None) -> None:
        """`source`: the checkpoint folder that the processor was read from, None for models from scratch."""
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.config = config
        self.source = source

    def apart(self) -> Family:
        """The same family with a separate processor, for use in another thread. A tokenizer keeps settings of a call,
        so two threads must not share one."""
        family = copy.copy(self)
        family.processor = copy.deepcopy(self.processor)
        family.tokenizer = getattr(family.processor, "tokenizer", family.processor)
        return family

    @property
    def image_backend(self) -> Literal["torchvision", "pil"] | None:
        """What resizes pictures here (docs/families.md); None for text-only models."""
        if IMAGE not in self.modalities:
            return None
        return "pil" if type(self.processor.image_processor).__name__.endswith("Pil") else "torchvision"

    def resize_by(self, backend: Literal["torchvision", "pil"] | None) -> bool:
        """Resizes pictures by `backend` from now on, for a model trained with it. False where that cannot be had here:
        torchvision is missing, or too old for this family."""
        if backend == "pil" != self.image_backend:
            assert self.image_processor_class is not None and self.source is not None
            self.processor.image_processor = pil_class(self.image_processor_class).from_pretrained(self.source)
        return backend in (None, self.image_backend)

    # --- weights ----------

    @classmethod
    def open(cls, path: Path) -> Family:
        """The family of a checkpoint folder without its weights. Raises `ModelError`."""
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        family = cls(load_processor(path, cls.processor_class, cls.image_processor_class), config, path)
        family.check_tokens()
        return family

    def load_model(self, dtype: torch.dtype) -> nn.Module:
        """The model of the checkpoint folder. `check_fit` has compared the folder's weights with its config.json,
        because transformers initializes missing weights at random."""
        model = getattr(transformers, self.model_class).from_pretrained(
            self.source,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        self.config = model.config
        return model

    @classmethod
    def build(cls, spec: Any, texts: Sequence[str], dtype: torch.dtype) -> tuple[Family, nn.Module]:
        """A tiny random model (`model.from_scratch`) with a tokenizer trained on `texts`."""
        raise ModelError(f"model.from_scratch: family '{cls.name}' is loaded from checkpoints only: set model.path")

    def parts(self, model: Any) -> dict[str, nn.Module]:
        """Named parts that can be frozen or given their own learning rate: disjoint, but for tied embeddings, and
        together they hold every parameter. Images go through vision and connector."""
        return {**self.image_parts(model), "language": self.language(model), "head": self.head(model)}

    def image_parts(self, model: Any) -> dict[str, nn.Module]:
        """The parts `vision` and `connector`; nothing for text-only models."""
        return {}

    def language(self, model: Any) -> nn.Module:
        """The decoder without its head."""
        return model.model.language_model

    def decoder_layers(self, model: Any) -> nn.ModuleList:
        """The decoder's layers in their order."""
        return self.language(model).layers  # type: ignore[return-value]

    # --- running ----------

    def hidden(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Any,
        position_ids: Tensor,
        pixels: Mapping[str, Tensor],
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states [B, L, H] of packed sequences, through the stock transformers backbone. cache: a
        transformers `Cache` that takes the keys and values in, for rollouts."""
        more = dict(pixels) if cache is None else {**pixels, "past_key_values": cache}
        out = model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=cache is not None,
            **more,
        )
        return out.last_hidden_state

    def head(self, model: Any) -> nn.Module:
        """The language-model head (a Linear whose weight is [V, H])."""
        return model.get_output_embeddings()

    def attention_mask(self, model: Any, layout: Layout) -> Any:
        """The mask in the form the backbone takes; one for each kind of layer where some have a sliding window."""
        config = model.config.get_text_config()
        make = layout.block_mask if config._attn_implementation == "flex_attention" else layout.dense
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            return {"full_attention": make(), "sliding_attention": make(config.sliding_window)}
        return make()

    def image_blocks(self, prompt: Prompt) -> Tensor | None:
        """For models whose image tokens see each other both ways: the number of the image of every token of the
        prompt, int64 [P], -1 for text."""
        return None

    def prompt_positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """Position ids of the prompt's tokens ([P], or [3, P] with M-RoPE) and that of the first reply token."""
        return torch.arange(len(prompt)), len(prompt)

    def collate_pixels(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Joins the pixel tensors of prompts in the order their placeholders stand in the batch."""
        held = [p.pixels for p in prompts if p.pixels]
        return {key: torch.cat([pixels[key] for pixels in held]) for key in held[0]} if held else {}

    def generate_inputs(self, prompts: Sequence[Prompt], input_ids: Tensor) -> dict[str, Tensor]:
        """Arguments of `generate` besides ids and mask, for a batch of prompts that all have images, or all have none.

        input_ids: int64 [B, L], the prompts padded on the left with `pad_id`."""
        return self.collate_pixels(prompts)

    # --- text ----------

    def messages(self, text: str, images: Sequence[Image.Image] = ()) -> list[dict[str, Any]]:
        """The chat of one user turn. Raises `PromptError` where markers in the text and images differ in number."""
        pieces = text.split(MARKER)
        if len(pieces) == 1:
            pieces = [*[""] * len(images), text]
        if len(pieces) - 1 != len(images):
            raise PromptError(
                f"{len(pieces) - 1} image placeholders '{MARKER}' in the question but {len(images)} images: "
                "write one for each image, or none"
            )
        content: list[dict[str, Any]] = []
        for at, piece in enumerate(pieces):
            if piece:
                content.append({"type": "text", "text": piece})
            if at < len(images):
                content.append({"type": "image", "image": images[at]})
        return [{"role": "user", "content": content}]

    def encode(self, text: str, images: Sequence[Image.Image] = ()) -> Prompt:
        """A user turn through the real processor and chat template.

        Raises `PromptError` where placeholders and images or features differ."""
        for token in (self.placeholder, *self.image_texts):
            if token and token != MARKER and token in text:
                raise PromptError(f"the question contains the model's own image token '{token}': take it out")
        out = self.processor.apply_chat_template(
            self.messages(text, images),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        pixels = {key: out[key] for key in self.pixel_keys if key in out}
        prompt = Prompt(out["input_ids"][0], pixels)
        self.check_placeholders(prompt)
        return prompt

    pixel_keys: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Keys that the processor returns besides tokens and that the backbone takes."""
    image_texts: ClassVar[tuple[str, ...]] = ()
    """More tokens that a question must not contain, because the processor would take them for pictures or videos."""

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
        """Raises `ModelError` where the tokenizer has no EOS token, or another image token than config.json."""
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                f"{self.source}/tokenizer_config.json names no eos_token: copy it from the original checkpoint again"
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
        """Tokens that may never be sampled: special tokens other than stops, tokens of pictures and videos (even those
        that the tokenizer treats as text), and padded vocabulary."""
        beyond, known = range(len(self.tokenizer), self.vocab_size), self.tokenizer.get_vocab()
        seen = {known[token] for token in (self.placeholder, *self.image_texts) if token in known}
        return tuple(sorted((self._special_ids | set(beyond) | seen) - set(self.stop_ids)))

    @property
    def vocab_size(self) -> int:
        return self.config.get_text_config().vocab_size

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.end_of_turn if pad is None else pad

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a reply with its end of turn, exactly as the model would have to generate it after `encode`."""
        before, body = self._opening[-1:], self._reply_frame[0] + text
        # after the prompt's last character, because SentencePiece puts a space before the start of a text
        head, whole = self._plain_ids(before), self._plain_ids(before + body)
        ids = whole[len(head) :] if whole[: len(head)] == head else self._plain_ids(body)
        return [*ids, self.end_of_turn]

    def _plain_ids(self, text: str) -> list[int]:
        """Special tokens in the text stay plain text: a trace with '<image>' must not become a placeholder that has no
        features."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a reply, without special tokens and without what the chat template puts before every reply (an empty
        thinking block)."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
        return text.removeprefix(self._reply_frame[0].strip()).strip()

    def export(self, folder: Path) -> None:
        """Writes processor, tokenizer and chat template beside exported weights: those of the checkpoint, unchanged.
        Raises `ModelError` where they are no longer there."""
        if self.source is None:
            self.processor.save_pretrained(folder)
        elif not copy_processor(self.source, folder):
            raise ModelError(
                f"model.path: {self.source} is gone, so the export has no processor: put it back and start the run "
                "again, which goes on from its last checkpoint"
            )


def bundle(owner: nn.Module, *leave_out: str) -> nn.Module:
    """The direct children and parameters of a module as a new module, without those named; for parts inside others."""
    out = nn.Module()
    for name, child in owner.named_children():
        if name not in leave_out:
            out.add_module(name, child)
    for name, parameter in owner.named_parameters(recurse=False):
        if name not in leave_out:
            out.register_parameter(name, parameter)
    return out
