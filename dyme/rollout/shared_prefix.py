"""The fast rollout engine: each prompt is encoded and prefilled once, its keys and values are held once for all of its
completions, and all completions decode in one batch that rows leave and enter.

Rows with the same prompt form a group. Groups enter longest prompt first. docs/rollout.md says how it works and what is
exact.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from dyme.batching.packing import pack
from dyme.families.base import Family, Prompt
from dyme.rollout.attention import decoding
from dyme.rollout.cache import GroupCache, Shape, column_bucket, group_places, reply_bucket, row_bucket
from dyme.rollout.engine import LocalEngine
from dyme.rollout.graphs import StepGraphs
from dyme.rollout.sampling import draw, seen_tokens
from dyme.rollout.types import Finished, Rollout, RolloutRequest, Sampling, ignore

PREFILL_TOKENS = 8192  # padded tokens of the prompts that are prefilled together
CHECK_EVERY = 8  # steps between two looks at which rows are finished: each look waits for the device


@dataclass(frozen=True)
class Group:
    """A prompt and the rows that it is asked for: indices into the call's rows."""

    prompt: Prompt
    rows: list[int]


@dataclass(frozen=True)
class Prefilled:
    """A prompt in the model: keys and values [kv heads, P, D] of each layer, logits float32 [V] of the first reply
    token, and its position id."""

    layers: list[tuple[Tensor, Tensor]]
    logits: Tensor
    position: int


@dataclass(frozen=True)
class Held:
    """A group whose prompt is in the cache: its place there, and of `Prefilled` what rows that enter later need."""

    place: int
    logits: Tensor
    position: int


class SharedPrefixEngine(LocalEngine):
    """Each prompt once for all of its completions, and one batch for all requests."""

    tells_logprobs = True

    @classmethod
    def obstacle(cls, family: Family) -> str:
        if family.packs_trees:
            return ""
        return f"family '{family.name}' takes no masks of ours: set it to hf or auto"

    @torch.no_grad()
    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, finished: Finished = ignore
    ) -> list[Rollout]:
        if not requests:
            return []
        model = self.weights.place()
        with _masked_attention(model):
            return DecodeBatch(self.family, model, requests, sampling, finished).run()


@contextmanager
def _masked_attention(model: Any) -> Iterator[None]:
    """flash-attn takes no masks, eager attention no bool ones, and FlexAttention compiles for each: in here the
    decoder prefills with sdpa."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = own


def group_rows(rows: Sequence[RolloutRequest]) -> list[Group]:
    """Rows of the same or an equal prompt together; longest prompts first, else in the order of the rows."""
    digests: dict[int, bytes] = {}
    groups: dict[bytes, Group] = {}
    for i, row in enumerate(rows):
        held = digests.setdefault(id(row.prompt), b"") or _digest(row.prompt)
        digests[id(row.prompt)] = held
        groups.setdefault(held, Group(row.prompt, [])).rows.append(i)
    return sorted(groups.values(), key=lambda group: -len(group.prompt))


def _digest(prompt: Prompt) -> bytes:
    content = hashlib.blake2b(digest_size=16)
    for name, tensor in (("", prompt.input_ids), *sorted(prompt.pixels.items())):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.digest()


def prefill_batches(prompts: Sequence[Prompt]) -> list[int]:
    """How many of `prompts`, which come longest first, are prefilled together each time: those of similar length."""
    sizes, at = [], 0
    while at < len(prompts):
        longest, size = len(prompts[at]), 1
        while at + size < len(prompts):
            if len(prompts[at + size]) * 4 < longest * 3 or (size + 1) * longest > PREFILL_TOKENS:
                break
            size += 1
        sizes.append(size)
        at += size
    return sizes


def prefill(family: Family, model: nn.Module, prompts: Sequence[Prompt]) -> list[Prefilled]:
    """Runs prompts through image tower and decoder as one padded batch."""
    weight = next(model.parameters())
    batch = pack(family, [(prompt, ()) for prompt in prompts], frozenset()).to(weight.device, weight.dtype)
    cache = DynamicCache()
    mask = family.attention_mask(model, batch.layout)
    hidden = family.hidden(model, batch.input_ids, mask, batch.position_ids, batch.pixels, cache)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=weight.device)
    logits = family.head(model)(hidden[torch.arange(len(prompts), device=weight.device), last]).float()
    layers: list[Any] = cache.layers
    return [
        Prefilled(
            [(layer.keys[i, :, : len(prompt)], layer.values[i, :, : len(prompt)]) for layer in layers],
            logits[i],
            family.prompt_positions(prompt)[1],
        )
        for i, prompt in enumerate(prompts)
    ]


def largest_shape(rows: int, asked: Sequence[int], prompt: int, reply: int) -> Shape:
    """The most that the cache holds while `rows` decode at once. asked: rows of each group; prompt, reply: tokens of
    the longest."""
    groups = group_places(rows, sum(asked), len(asked))
    return Shape(rows, reply_bucket(reply), groups, min(rows, max(asked)), column_bucket(prompt))


class DecodeBatch:
    """The rows that decode together. What a step reads and writes are tensors over the most rows that there may be, of
    which it takes the first ones: their addresses never change, which captured graphs rely on."""

    def __init__(
        self,
        family: Family,
        model: Any,
        rows: Sequence[RolloutRequest],
        sampling: Sampling,
        finished: Finished = ignore,
    ) -> None:
        self.family, self.model, self.sampling, self.tell = family, model, sampling, finished
        self.keys = [row.key for row in rows]
        self.groups = group_rows(rows)
        self.waiting = deque((index, row) for index, group in enumerate(self.groups) for row in group.rows)
        self.held: dict[int, Held] = {}  # groups that have rows here or, begun, still waiting
        self.most = min(sampling.batch_size, len(rows))
        self.slots: list[tuple[int, int] | None] = []  # group and row of each place in the batch
        self.begun: list[int] = []  # step at which it entered
        asked = [len(group.rows) for group in self.groups]
        self.largest = largest_shape(self.most, asked, len(self.groups[0].prompt), sampling.max_new_tokens)
        self.steps = 0
        self.done: dict[int, Rollout] = {}

        device = next(model.parameters()).device
        whole, most, tokens = torch.int64, self.most, sampling.max_new_tokens
        self.device = device
        self.cache: GroupCache | None = None
        self.graphs = StepGraphs(device, tokens)
        self.token = torch.zeros(most, dtype=whole, device=device)
        self.position = torch.zeros(most, dtype=whole, device=device)
        self.key = torch.zeros(most, dtype=whole, device=device)
        self.reply_lengths = torch.ones(most, dtype=whole, device=device)  # tokens of the completion so far
        self.finished = torch.ones(most, dtype=torch.bool, device=device)
        self.index = torch.arange(most, device=device)
        self.tokens = torch.zeros(most, tokens + 1, dtype=whole, device=device)  # what is too much goes last
        self.logprobs = torch.zeros(most, tokens + 1, device=device)
        self.seen: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(most, family.vocab_size, dtype=torch.bool, device=device)
        self.banned = torch.tensor(family.forbidden_ids, dtype=whole, device=device)
        self.stops = torch.tensor(family.stop_ids, dtype=whole, device=device)
        self.axes = family.prompt_positions(self.groups[0].prompt)[0].shape[:-1]  # (3,) with M-RoPE

    def run(self) -> list[Rollout]:
        while self.waiting or self.living:
            self._enter()
            self._decode()
            self._leave()
        return [self.done[i] for i in sorted(self.done)]

    @property
    def living(self) -> list[int]:
        """Places that hold a row."""
        return [place for place, row in enumerate(self.slots) if row is not None]

    # --- rows come and go ----------

    def _enter(self) -> None:
        """Fills free places with waiting rows, when there are enough of them to be worth a prefill and there is room
        for their prompts."""
        if not self.waiting:
            return
        if not self.living:
            self.slots = [None] * row_bucket(min(self.most, len(self.waiting)), self.most)
            self.begun = [0] * len(self.slots)
        free = [place for place, row in enumerate(self.slots) if row is None]
        if len(free) < min(len(self.waiting), max(1, len(self.slots) // 8)):
            return
        entering: dict[int, list[int]] = {}
        room = self.largest.groups - len(self.held)
        for place in free:
            if not self.waiting:
                break
            group = self.waiting[0][0]
            if group not in self.held and group not in entering:
                if not room:
                    break
                room -= 1
            entering.setdefault(group, []).append(place)
            self.slots[place] = self.waiting.popleft()
            self.begun[place] = self.steps
        if entering:
            self._hold([group for group in entering if group not in self.held])
            self._start(entering)
            self._arrange()

    def _hold(self, groups: list[int]) -> None:
        """Prefills groups and puts their prompts into free places of the cache."""
        at = 0
        for size in prefill_batches([self.groups[group].prompt for group in groups]):
            self._put_prompts(groups[at : at + size])  # one batch's keys and values are gone before the next one's come
            at += size

    def _put_prompts(self, groups: list[int]) -> None:
        made = prefill(self.family, self.model, [self.groups[group].prompt for group in groups])
        if self.cache is None:
            whole = self.graphs.on or self.device.type != "cpu"  # kernels of a GPU want aligned masks
            self.cache = GroupCache(made[0].layers, self.reply_lengths, self.largest, whole=whole)
        taken = {held.place for held in self.held.values()}
        free = [place for place in range(self.largest.groups) if place not in taken]
        for group, place, prefilled in zip(groups, free, made, strict=False):
            self.cache.put_prompt(place, prefilled.layers)
            self.held[group] = Held(place, prefilled.logits, prefilled.position)

    def _start(self, entering: dict[int, list[int]]) -> None:
        """Puts rows of groups into the batch and draws their first tokens."""
        places = [place for own in entering.values() for place in own]
        held = [self.held[group] for group, own in entering.items() for _ in own]
        at = torch.tensor(places, device=self.device)
        rows = [row[1] for place in places if (row := self.slots[place]) is not None]
        self.key[at] = torch.tensor([self.keys[row] for row in rows], device=self.device)
        self.position[at] = torch.tensor([one.position for one in held], device=self.device)
        self.reply_lengths[at] = 0
        self.finished[at] = False
        if self.seen is not None:
            for group, own in entering.items():
                ids = self.groups[group].prompt.input_ids.to(self.device)[None]
                self.seen[torch.tensor(own, device=self.device)] = seen_tokens(
                    ids, torch.ones_like(ids, dtype=torch.bool), self.seen.shape[1]
                )
        self._put(at, torch.stack([one.logits for one in held]))

    def _arrange(self) -> None:
        """Tells the cache which rows there are and what they share."""
        assert self.cache is not None
        places = [None if row is None else self.held[row[0]].place for row in self.slots]
        prompts = {held.place: len(self.groups[group].prompt) for group, held in self.held.items()}
        self.cache.arrange(places, prompts)

    def _leave(self) -> None:
        """Takes finished rows out; where no row waits, the batch shrinks to the next bucket."""
        finished = self.finished[: len(self.slots)].tolist()  # the one wait for the device
        leaving = [place for place in self.living if finished[place]]
        if leaving:
            at = torch.tensor(leaving, device=self.device)
            counts, tokens, logprobs = (t[at].tolist() for t in (self.reply_lengths, self.tokens, self.logprobs))
            for place, n, ids, logs in zip(leaving, counts, tokens, logprobs, strict=True):
                row = self.slots[place]
                assert row is not None
                self.done[row[1]] = Rollout(tuple(ids[:n]), ids[n - 1] not in self.family.stop_ids, tuple(logs[:n]))
                self.tell(row[1], self.done[row[1]])
                self.slots[place] = None
        living = self.living
        used = {row[0] for row in self.slots if row is not None} | {group for group, _ in self.waiting}
        self.held = {group: held for group, held in self.held.items() if group in used}
        if living and not self.waiting and row_bucket(len(living), self.most) < len(self.slots):
            self._shrink(living)

    def _shrink(self, keep: list[int]) -> None:
        """Moves rows `keep` to the front of a smaller batch, and their prompts to the front of the cache."""
        assert self.cache is not None
        rows, n = row_bucket(len(keep), self.most), len(keep)
        at = torch.tensor(keep, device=self.device)
        self.cache.move_rows(at)
        kept = [self.token, self.position, self.key, self.reply_lengths, self.finished, self.tokens, self.logprobs]
        for tensor in [*kept, *([] if self.seen is None else [self.seen])]:
            tensor[:n] = tensor[at]
        self.slots = [self.slots[place] for place in keep] + [None] * (rows - n)
        self.begun = [self.begun[place] for place in keep] + [0] * (rows - n)
        if max(held.place for held in self.held.values()) >= len(self.held):
            self.cache.move_groups(torch.tensor([held.place for held in self.held.values()], device=self.device))
            self.held = {group: replace(held, place=place) for place, (group, held) in enumerate(self.held.items())}
        self._arrange()

    # --- steps ----------

    def _decode(self) -> None:
        """The next few steps: no further than the longest row may go."""
        living = self.living
        if not living:
            return
        assert self.cache is not None
        left = max(self.begun[place] for place in living) + self.sampling.max_new_tokens - 1 - self.steps
        first = min(self.begun[place] for place in living)
        # inference mode: less to do for each operation. Not in a prefill: models keep some of what they make there
        with decoding(self.model.config.get_text_config(), self.cache), torch.inference_mode():
            for _ in range(min(CHECK_EVERY, left)):
                self.cache.show(self.steps - first + 1)
                self.graphs.run(self.cache.shape, self.step)
                self.steps += 1

    def step(self) -> None:
        """One token more for each row. Reads and writes the tensors of this object and of the cache, nothing else."""
        cache = self.cache
        assert cache is not None
        layout, rows = cache.begin(), cache.shape.rows
        out = self.family.language(
            self.model
        )(  # replies are text: nothing of what joins pictures to it
            input_ids=self.token[:rows, None],
            attention_mask=self.family.attention_mask(self.model, layout),  # type: ignore[arg-type]
            position_ids=self.position[:rows, None].expand(*self.axes, rows, 1),
            past_key_values=cache,
            use_cache=True,
        )
        self.position[:rows] += 1
        self._put(slice(0, rows), self.family.head(self.model)(out.last_hidden_state[:, -1]))

    def _put(self, places: Tensor | slice, logits: Tensor) -> None:
        """Draws the next token of some places and notes what follows from it."""
        lengths, finished, rows = self.reply_lengths[places], self.finished[places], self.index[places]
        seen = None if self.seen is None else self.seen[places]
        tokens, logprobs = draw(logits, seen, self.key[places], lengths, self.banned, self.sampling)
        column = torch.where(finished, self.sampling.max_new_tokens, lengths)
        self.tokens[rows, column] = tokens
        self.logprobs[rows, column] = logprobs
        if self.seen is not None:
            # not True: a number goes from the host to the device, which a graph cannot hold
            self.seen[rows, tokens] = torch.ones_like(finished)
        self.token[places] = tokens
        lengths = lengths + ~finished
        ends = (tokens[:, None] == self.stops).any(1) | (lengths >= self.sampling.max_new_tokens)
        self.reply_lengths[places] = lengths
        self.finished[places] = finished | ends
