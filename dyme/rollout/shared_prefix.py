"""The fast rollout engine: each prompt is encoded and prefilled once, its keys and values are forked to all of its
completions, and all completions decode in one batch that rows leave and enter.

Rows with the same prompt form a group. Groups enter longest prompt first, so that a prompt always fits to the left of
the current column. docs/rollout.md says how it works and what is exact.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from dyme.families.base import Family, Prompt
from dyme.packing import pack
from dyme.rollout.cache import RowCache, RowLayout, column_bucket, row_bucket
from dyme.rollout.graphs import StepGraphs
from dyme.rollout.sampler import draw, seen_tokens
from dyme.rollout.types import Finished, Rollout, RolloutRow, Sampling, ignore

PREFILL_TOKENS = 8192  # padded tokens of the prompts that are prefilled together
CHECK_EVERY = 8  # steps between two looks at which rows are finished: each look waits for the device
ROOM = 32  # columns that are free, at least, whenever the cache gets another shape


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


@torch.no_grad()
def generate(
    family: Family, model: nn.Module, rows: Sequence[RolloutRow], sampling: Sampling, finished: Finished = ignore
) -> list[Rollout]:
    """Completions of `rows`, in their order. `model` is a plain (not partitioned) copy of the weights in eval mode."""
    if not rows:
        return []
    with _masked_attention(model):
        return DecodeBatch(family, model, rows, sampling, finished).run()


@contextmanager
def _masked_attention(model: Any) -> Iterator[None]:
    """flash-attn takes no masks, eager attention no bool ones, and FlexAttention compiles for each: in here the
    decoder's attention is sdpa."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = own


def group_rows(rows: Sequence[RolloutRow]) -> list[Group]:
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


def prefill(family: Family, model: nn.Module, prompts: Sequence[Prompt]) -> list[Prefilled]:
    """Runs prompts through image tower and decoder, those of similar length together."""
    out: list[Prefilled] = []
    at = 0
    while at < len(prompts):
        together = [prompts[at]]
        for prompt in prompts[at + 1 :]:  # they come longest first
            longest = len(together[0])
            if len(prompt) * 4 < longest * 3 or (len(together) + 1) * longest > PREFILL_TOKENS:
                break
            together.append(prompt)
        out += _prefill_together(family, model, together)
        at += len(together)
    return out


def _prefill_together(family: Family, model: nn.Module, prompts: Sequence[Prompt]) -> list[Prefilled]:
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


def most_columns(prompt: int, reply: int) -> int:
    """Columns of the cache for prompts of `prompt` tokens at most and `reply` new ones: no row is longer until it is
    taken out, and columns before all rows fall away when the cache is full."""
    return column_bucket(prompt + reply + CHECK_EVERY + ROOM)


class DecodeBatch:
    """The rows that decode together. What a step reads and writes are tensors over the most rows that there may be, of
    which it takes the first ones: their addresses never change, which captured graphs rely on."""

    def __init__(
        self, family: Family, model: Any, rows: Sequence[RolloutRow], sampling: Sampling, finished: Finished = ignore
    ) -> None:
        self.family, self.model, self.sampling, self.tell = family, model, sampling, finished
        self.keys = [row.key for row in rows]
        self.groups = group_rows(rows)
        self.waiting = deque((group, row) for group in self.groups for row in group.rows)
        self.ready: dict[int, Prefilled] = {}  # of groups of which rows are still waiting, by id
        self.most = min(sampling.batch_size, len(rows))
        self.slots: list[int | None] = []  # row of each place in the batch
        self.begun: list[int] = []  # step at which it entered
        self.starts: list[int] = []  # its first column
        self.steps = 0
        self.done: dict[int, Rollout] = {}

        device = next(model.parameters()).device
        whole, most, tokens = torch.int64, self.most, sampling.max_new_tokens
        self.device = device
        self.cache: RowCache | None = None
        self.graphs = StepGraphs(device, tokens)
        self.token = torch.zeros(most, dtype=whole, device=device)
        self.position = torch.zeros(most, dtype=whole, device=device)
        self.start = torch.zeros(most, dtype=whole, device=device)
        self.key = torch.zeros(most, dtype=whole, device=device)
        self.turn = torch.zeros(most, dtype=whole, device=device)  # tokens of the completion so far
        self.finished = torch.ones(most, dtype=torch.bool, device=device)
        self.index = torch.arange(most, device=device)
        self.tokens = torch.zeros(most, tokens + 1, dtype=whole, device=device)  # what is too much goes last
        self.logprobs = torch.zeros(most, tokens + 1, device=device)
        self.seen: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(most, family.vocab_size, dtype=torch.bool, device=device)
        self.columns = torch.arange(most_columns(len(self.groups[0].prompt), tokens), device=device)
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
        """Fills free places with waiting rows, when there are enough of them to be worth a prefill."""
        if not self.waiting:
            return
        if not self.living:
            self.slots = [None] * row_bucket(min(self.most, len(self.waiting)), self.most)
            self.begun, self.starts = [0] * len(self.slots), [0] * len(self.slots)
        free = [place for place, row in enumerate(self.slots) if row is None]
        if len(free) < min(len(self.waiting), max(1, len(self.slots) // 8)):
            return
        fresh = not self.living
        entering: dict[int, tuple[Group, list[int]]] = {}
        for place in free[: len(self.waiting)]:
            group, row = self.waiting.popleft()
            self.slots[place] = row
            entering.setdefault(id(group), (group, []))[1].append(place)
        new = [group for at, (group, _) in entering.items() if at not in self.ready]
        made = prefill(self.family, self.model, [group.prompt for group in new])
        self.ready.update((id(group), prefilled) for group, prefilled in zip(new, made, strict=True))
        if fresh:
            self._shape_anew(max(len(group.prompt) for group, _ in entering.values()))
        for group, places in entering.values():
            self._fork(group, self.ready[id(group)], places)
        unfinished = {id(group) for group, _ in self.waiting}
        self.ready = {at: prefilled for at, prefilled in self.ready.items() if at in unfinished}

    def _shape_anew(self, filled: int) -> None:
        if self.cache is None:
            like = next(iter(self.ready.values())).layers
            self.cache = RowCache(like, (self.most, len(self.columns)), whole=self.graphs.on)
        self.cache.place(0)
        self.cache.reshape((len(self.slots), column_bucket(filled + ROOM)), None, 0)
        self.cache.place(filled)
        self.start.zero_()  # places without a row must see something: attention to nothing is NaN, and NaN stays

    def _fork(self, group: Group, prefilled: Prefilled, places: list[int]) -> None:
        """Puts rows of a group into the batch and draws their first tokens."""
        assert self.cache is not None
        at = torch.tensor(places, device=self.device)
        self.cache.fork(at, prefilled.layers)
        begin = self.cache.filled - len(group.prompt)
        for place in places:
            self.begun[place], self.starts[place] = self.steps, begin
        rows = [row for place in places if (row := self.slots[place]) is not None]
        self.key[at] = torch.tensor([self.keys[row] for row in rows], device=self.device)
        self.start[at] = begin
        self.position[at] = prefilled.position
        self.turn[at] = 0
        self.finished[at] = False
        if self.seen is not None:
            ids = group.prompt.input_ids.to(self.device)[None]
            self.seen[at] = seen_tokens(ids, torch.ones_like(ids, dtype=torch.bool), self.seen.shape[1])
        self._put(at, prefilled.logits.expand(len(places), -1))

    def _leave(self) -> None:
        """Takes finished rows out; where nobody waits, the batch shrinks to the next bucket."""
        finished = self.finished[: len(self.slots)].tolist()  # the one wait for the device
        leaving = [place for place in self.living if finished[place]]
        if leaving:
            at = torch.tensor(leaving, device=self.device)
            turns, tokens, logprobs = (t[at].tolist() for t in (self.turn, self.tokens, self.logprobs))
            for place, n, ids, logs in zip(leaving, turns, tokens, logprobs, strict=True):
                row = self.slots[place]
                assert row is not None
                self.done[row] = Rollout(tuple(ids[:n]), ids[n - 1] not in self.family.stop_ids, tuple(logs[:n]))
                self.tell(row, self.done[row])
                self.slots[place] = None
        living = self.living
        if living and not self.waiting and row_bucket(len(living), self.most) < len(self.slots):
            self._reshape(living)

    def _reshape(self, keep: list[int] | None) -> None:
        """Moves rows `keep` to the front of a smaller batch (None: all stay); columns that nobody sees fall away, and
        there is room for more."""
        assert self.cache is not None
        living = self.living
        shift = min(self.starts[place] for place in living)
        rows = len(self.slots) if keep is None else row_bucket(len(keep), self.most)
        columns = column_bucket(self.cache.filled - shift + ROOM)
        at = None if keep is None else torch.tensor(keep, device=self.device)
        self.cache.reshape((rows, columns), at, shift)
        if keep is not None and at is not None:
            n, empty = len(keep), rows - len(keep)
            kept = [self.token, self.position, self.start, self.key, self.turn, self.finished, self.tokens]
            for tensor in [*kept, self.logprobs, *([] if self.seen is None else [self.seen])]:
                tensor[:n] = tensor[at]
            self.slots = [self.slots[place] for place in keep] + [None] * empty
            self.begun = [self.begun[place] for place in keep] + [0] * empty
            self.starts = [self.starts[place] for place in keep] + [0] * empty
        self.start -= shift
        self.starts = [start - shift for start in self.starts]

    # --- steps ----------

    def _decode(self) -> None:
        """The next few steps: no further than the longest row may go."""
        living = self.living
        if not living:
            return
        left = max(self.begun[place] for place in living) + self.sampling.max_new_tokens - 1 - self.steps
        for _ in range(min(CHECK_EVERY, left)):
            assert self.cache is not None
            if self.cache.filled == self.cache.shape[1]:
                self._reshape(None)
            self.graphs.run(self.cache.shape, self.step)
            self.cache.note(self.cache.filled + 1)
            self.steps += 1

    def step(self) -> None:
        """One token more for each row. Reads and writes the tensors of this object and of the cache, nothing else."""
        cache = self.cache
        assert cache is not None
        rows = cache.shape[0]
        layout = RowLayout(self.start[:rows], cache.at, self.columns[: cache.visible])
        mask = self.family.attention_mask(self.model, layout)  # type: ignore[arg-type]
        position = self.position[:rows, None].expand(*self.axes, rows, 1)
        hidden = self.family.hidden(self.model, self.token[:rows, None], mask, position, {}, cache)
        self.position[:rows] += 1
        cache.at += 1
        self._put(slice(0, rows), self.family.head(self.model)(hidden[:, -1]))

    def _put(self, places: Tensor | slice, logits: Tensor) -> None:
        """Draws the next token of some places and notes what follows from it."""
        turn, finished, rows = self.turn[places], self.finished[places], self.index[places]
        seen = None if self.seen is None else self.seen[places]
        tokens, logprobs = draw(logits, seen, self.key[places], turn, self.banned, self.sampling)
        column = torch.where(finished, self.sampling.max_new_tokens, turn)
        self.tokens[rows, column] = tokens
        self.logprobs[rows, column] = logprobs
        if self.seen is not None:
            self.seen[rows, tokens] = True
        self.token[places] = tokens
        turn = turn + ~finished
        ends = (tokens[:, None] == self.stops).any(1) | (turn >= self.sampling.max_new_tokens)
        self.turn[places] = turn
        self.finished[places] = finished | ends
