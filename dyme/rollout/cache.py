"""Cache: keys and values of each prompt once per group, and of each reply once per row, in storage whose addresses hold
for the whole rollout.

A prompt lies in the place of its group from column 0 on, a reply in that of its row. Keys carry their rotary positions,
so a column says nothing but the order. Rows stand in the batch in any order; `GroupCache.arrange` lays them out as a
grid of groups by branches, in which all rows of a group read their prompt at once (dyme/rollout/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

FIRST = 256  # columns that steps see at least, empty ones too, where shapes are captured: a capture costs more


class Shape(NamedTuple):
    """What a decode step works on: rows and the columns of their replies; groups, the rows of the largest, and the
    columns of their prompts."""

    rows: int
    columns: int
    groups: int
    width: int
    prompt: int


class GroupCache(Cache):
    """Keys and values of each layer: those of prompts [groups, kv heads, columns, D] and of replies [rows, kv heads,
    columns, D].

    A step sees the first ones of each, as many as `shape` says. Without graphs (`whole` is False) that is what is
    filled, else buckets of it, so that shapes come back. On the device, all int64 and for the most there may be:
    reply_lengths [rows]: tokens of each reply, whose last one takes the column before; prompt_lengths [groups]: tokens
    of the prompt; grid [groups * width]: the row in each cell, 0 in empty ones; cell [rows]: where each row stands in
    the grid.
    """

    layers: list[GroupLayer]  # type: ignore[assignment]

    def __init__(
        self, like: Sequence[tuple[Tensor, Tensor]], reply_lengths: Tensor, largest: Shape, *, whole: bool
    ) -> None:
        """like: keys and values [.., kv heads, .., D] of each layer, for heads, sizes, dtype and device; reply_lengths:
        of the most rows; largest: the most of everything that there will be; whole: the shape has buckets."""
        super().__init__(layers=[GroupLayer(keys, values, largest) for keys, values in like])
        self.largest, self.shape, self.whole = largest, largest, whole
        self.reply_lengths = reply_lengths
        self.prompt_lengths = torch.ones(largest.groups, dtype=torch.int64, device=reply_lengths.device)
        self.grid = torch.zeros(largest.groups * largest.width, dtype=torch.int64, device=reply_lengths.device)
        self.cell = torch.zeros(largest.rows, dtype=torch.int64, device=reply_lengths.device)
        self.now: Step | None = None
        self.arranged: dict[Any, Any] = {}

    def put_prompt(self, group: int, prompt: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Writes a prompt's keys and values [kv heads, P, D] of each layer into the place of a group."""
        length = prompt[0][0].shape[1]
        for layer, (keys, values) in zip(self.layers, prompt, strict=True):
            layer.prompt_keys[group, :, :length] = keys
            layer.prompt_values[group, :, :length] = values
        self.prompt_lengths[group] = length

    def move_rows(self, keep: Tensor) -> None:
        """Replies of rows `keep` int64 [n] come to the front."""
        for layer in self.layers:
            for tensor in (layer.keys, layer.values):
                filled = tensor[:, :, : self.shape.columns]
                filled[: len(keep)] = filled[keep]

    def move_groups(self, keep: Tensor) -> None:
        """Prompts of groups `keep` int64 [n] come to the front."""
        for layer in self.layers:
            for tensor in (layer.prompt_keys, layer.prompt_values):
                filled = tensor[:, :, : self.shape.prompt]
                filled[: len(keep)] = filled[keep]
        self.prompt_lengths[: len(keep)] = self.prompt_lengths[keep]

    def arrange(self, places: Sequence[int | None], prompts: dict[int, int]) -> None:
        """Lays the rows out. places: the place of each row's prompt, None where there is no row; prompts: length of the
        prompt in each place that holds one."""
        inside: dict[int, list[int]] = {}
        for row, group in enumerate(places):
            if group is not None:
                inside.setdefault(group, []).append(row)
        groups, width = max(inside) + 1, max(map(len, inside.values()))
        prompt = max(prompts[group] for group in inside)
        if self.whole:
            groups, width = row_bucket(groups, self.largest.groups), row_bucket(width, self.largest.width)
            prompt = column_bucket(prompt)
        grid, cell = [0] * (groups * width), [0] * len(places)
        for group, rows in inside.items():
            for branch, row in enumerate(rows):
                grid[group * width + branch] = row
                cell[row] = group * width + branch
        self.grid[: len(grid)] = torch.tensor(grid, device=self.grid.device)
        self.cell[: len(cell)] = torch.tensor(cell, device=self.cell.device)
        self.arranged = {}
        self.shape = Shape(len(places), self.shape.columns, groups, width, min(prompt, self.largest.prompt))

    def show(self, columns: int) -> None:
        """Steps see `columns` columns of the replies from now on."""
        if self.whole:
            columns = reply_bucket(max(columns, FIRST))
        self.shape = self.shape._replace(columns=min(columns, self.largest.columns))

    def begin(self) -> Step:
        """The next step, for which keys and values are written and read from now on."""
        rows, _, groups, width, _ = self.shape
        self.now = Step(
            self.shape, self.reply_lengths[:rows], self.prompt_lengths[:groups], self.grid[: groups * width],
            self.cell[:rows], self.largest.columns, self.layers[0].keys.dtype, {} if self.whole else self.arranged,
        )  # fmt: skip
        return self.now

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes a token of each row [rows, kv heads, 1, D] at the end of its reply; returns the replies seen."""
        assert self.now is not None
        return self.layers[layer_idx].update(key_states, value_states, self.now)

    def prompts(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts that are seen, [groups, kv heads, columns, D]."""
        layer, groups, columns = self.layers[layer_idx], self.shape.groups, self.shape.prompt
        return layer.prompt_keys[:groups, :, :columns], layer.prompt_values[:groups, :, :columns]


class GroupLayer(CacheLayerMixin):
    """One layer of a `GroupCache`."""

    keys: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]
    is_sliding = False
    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, largest: Shape) -> None:
        super().__init__()
        # zeros, and never NaN: what is masked is still multiplied by zero
        self.prompt_keys, self.prompt_values = (
            t.new_zeros(largest.groups, t.shape[-3], largest.prompt, t.shape[-1]) for t in (keys, values)
        )
        self.keys, self.values = (
            t.new_zeros(largest.rows, t.shape[-3], largest.columns, t.shape[-1]) for t in (keys, values)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        step: Step = args[0]
        rows, heads = key_states.shape[:2]
        at = step.columns_of(heads)
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            held.view(-1, held.shape[-1]).index_copy_(0, at, new.reshape(rows * heads, -1))
        columns = step.shape.columns
        return self.keys[:rows, :, :columns], self.values[:rows, :, :columns]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def get_seq_length(self) -> int:
        """Never what positions or masks are made from: both are given."""
        return self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True)
class Step:
    """Who sees whom when every row has one new token; takes the place of a packed batch's `Layout`. The first ones, as
    many as `shape` says, of the tensors of `GroupCache`; stride: columns of a reply in the storage."""

    shape: Shape
    reply_lengths: Tensor
    prompt_lengths: Tensor
    grid: Tensor
    cell: Tensor
    stride: int
    dtype: torch.dtype
    arranged: dict[Any, Any]
    """What all steps share until rows come or go. A captured step makes its own: it has to read what is new then."""
    made: dict[Any, Any] = field(default_factory=dict)
    """What all layers share."""

    def dense(self, window: int | None = None) -> Tensor:
        """What is added to the scores, [1, 1, 1, n]: that of replies [rows, columns], then that of prompts [groups,
        columns], or with a window [groups, width, columns]. A model takes it for a 4-D mask and passes it on as it is;
        `split` takes it apart."""
        _, columns, groups, width, prompt = self.shape
        device = self.reply_lengths.device
        at = self.reply_lengths[:, None] - 1
        own = torch.arange(columns, device=device)
        shared = torch.arange(prompt, device=device)
        replies, prompts = own <= at, shared < self.prompt_lengths[:, None]
        if window is not None:
            replies = replies & (at - own < window)
            depth = self.prompt_lengths[:, None] + self.reply_lengths[self.grid].view(groups, width) - 1
            prompts = prompts[:, None] & (depth[..., None] - shared < window)
        sees = torch.cat([replies.flatten(), prompts.flatten()])
        # finite: where a window sees nothing of a prompt, that part has weight zero and no NaN
        low = torch.finfo(self.dtype).min / 2
        return torch.zeros(sees.shape, dtype=self.dtype, device=device).masked_fill_(~sees, low)[None, None, None]

    def split(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of replies [rows, 1, 1, columns] and of prompts [groups, 1, 1 or width, columns], from `dense`."""
        rows, columns, groups, _, prompt = self.shape
        flat = mask.flatten()
        replies, prompts = flat[: rows * columns], flat[rows * columns :]
        return replies.view(rows, 1, 1, columns), prompts.view(groups, 1, -1, prompt)

    def columns_of(self, heads: int) -> Tensor:
        """int64 [rows * kv heads]: where the storage of replies, as [rows * kv heads * columns, D], takes a token."""
        if ("columns", heads) not in self.made:
            row = torch.arange(self.shape.rows * heads, device=self.reply_lengths.device).view(-1, heads) * self.stride
            self.made["columns", heads] = (row + (self.reply_lengths[:, None] - 1)).flatten()
        return self.made["columns", heads]

    def order(self, heads: int, share: int) -> tuple[Tensor, Tensor]:
        """The way of queries into the grid and back, for `share` query heads to each of `heads` kv heads. int64
        [groups * kv heads * width * share], in this order: indices into queries [rows * kv heads * share]; int64
        [rows * share * kv heads]: indices into outputs [groups * width * share * kv heads]."""
        if ("order", heads, share) not in self.arranged:
            device, shape = self.reply_lengths.device, self.shape
            head, part = torch.arange(heads, device=device), torch.arange(share, device=device)
            row = self.grid.view(shape.groups, 1, shape.width, 1) * (heads * share)
            there = row + (head[:, None, None] * share + part)
            back = (self.cell[:, None, None] * share + part[:, None]) * heads + head
            self.arranged["order", heads, share] = there.flatten(), back.flatten()
        return self.arranged["order", heads, share]


def row_bucket(rows: int, most: int) -> int:
    """The number of rows that is decoded where `rows` live: a power of two, or three quarters of one."""
    size = 1
    while size < rows:
        size *= 2
    if size >= 4 and size * 3 // 4 >= rows:
        size = size * 3 // 4
    return min(size, most)


def column_bucket(columns: int) -> int:
    """The number of columns where `columns` are needed: a multiple of 64, above 512 of 256."""
    step = 64 if columns <= 512 else 256
    return -(-columns // step) * step


def reply_bucket(columns: int) -> int:
    """The number of columns that a step sees of replies of `columns`: 64 and its doubles, since replies grow through
    all of them."""
    size = 64
    while size < columns:
        size *= 2
    return size


def group_places(rows: int, asked: int, groups: int) -> int:
    """How many prompts are held while `rows` of `asked` rows decode at once, which have `groups` prompts: those of the
    rows, and as many again for groups of which few rows are left."""
    return min(groups, rows, 2 * -(-rows * groups // asked))
