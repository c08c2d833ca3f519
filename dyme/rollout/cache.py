"""Cache: keys and values of the rows that decode together, in one storage whose addresses hold for the whole rollout.

All rows write at one common column although their prompts differ in length and they entered at different times: a
prompt ends (is right-aligned) at the column that was current when its row entered. Keys carry their rotary positions,
so a column says nothing but the order; a row sees the columns from its own start to the current one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BucketShape = tuple[int, int]
"""Rows and columns."""


class RowCache(Cache):
    """`keys` and `values` of each layer: [rows, kv heads, columns, D].

    `at`: int64 [1] on the device, the column that the next token takes; `filled`: the same number on the host. The
    views of a (rows, columns) bucket have the same addresses whenever the cache has that shape, so that a captured
    graph of the bucket stays valid. Without graphs a step need not look at columns that are still empty (`whole`).
    """

    layers: list[RowLayer]  # type: ignore[assignment]

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], largest: BucketShape, *, whole: bool) -> None:
        """like: keys and values [.., kv heads, .., D] of each layer, for heads, sizes, dtype and device; largest: the
        most rows and columns it will ever have; whole: attention gets all columns of the bucket."""
        self.at = torch.zeros(1, dtype=torch.int64, device=like[0][0].device)
        self.whole = whole
        self.filled = 0
        super().__init__(layers=[RowLayer(self.at, k, v, largest) for k, v in like])
        self.reshape(largest, None, 0)

    @property
    def shape(self) -> BucketShape:
        keys = self.layers[0].keys
        return keys.shape[0], keys.shape[2]

    @property
    def visible(self) -> int:
        """How many columns attention gets."""
        return self.shape[1] if self.whole else self.filled + 1

    def place(self, filled: int) -> None:
        """Makes `filled` the column of the next token."""
        self.at.fill_(filled)
        self.note(filled)

    def note(self, filled: int) -> None:
        """Tells the host's side that `at` has come to `filled`."""
        self.filled = filled
        for layer in self.layers:
            layer.visible = self.visible

    def reshape(self, shape: BucketShape, keep: Tensor | None, shift: int) -> None:
        """Takes on the shape of another bucket. keep: int64, rows that move to the front, or None for those that have
        room; shift: columns that fall away on the left."""
        for layer in self.layers:
            layer.reshape(shape, keep, shift, self.filled)
        self.place(self.filled - shift)

    def fork(self, slots: Tensor, prompt: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Writes a prompt's keys and values [kv heads, P, D] of each layer into rows `slots`, its last token before the
        current column. Needs P <= `filled`."""
        for layer, (keys, values) in zip(self.layers, prompt, strict=True):
            columns = slice(self.filled - keys.shape[1], self.filled)
            layer.keys[slots, :, columns] = keys
            layer.values[slots, :, columns] = values


class RowLayer(CacheLayerMixin):
    """One layer of a `RowCache`."""

    keys: Tensor  # type: ignore[assignment]
    values: Tensor  # type: ignore[assignment]
    is_sliding = False
    is_compileable = True

    def __init__(self, at: Tensor, keys: Tensor, values: Tensor, largest: BucketShape) -> None:
        super().__init__()
        self.at = at
        self.sizes = [(t.shape[-3], t.shape[-1]) for t in (keys, values)]
        rows, columns = largest
        # zeros, and never NaN: what is masked is still multiplied by zero
        self.visible = columns
        self.flat = [t.new_zeros(rows * heads * columns * size) for t, (heads, size) in zip((keys, values), self.sizes)]
        self.is_initialized = True
        self._view(largest)

    def _view(self, shape: BucketShape) -> None:
        rows, columns = shape
        self.keys, self.values = (
            flat[: rows * heads * columns * size].view(rows, heads, columns, size)
            for flat, (heads, size) in zip(self.flat, self.sizes)
        )

    def reshape(self, shape: BucketShape, keep: Tensor | None, shift: int, filled: int) -> None:
        held = []
        for tensor in (self.keys, self.values):
            tensor = tensor[: shape[0]] if keep is None else tensor[keep]
            held.append(tensor[:, :, shift:filled].clone())  # old and new view overlap
        self._view(shape)
        for new, old in zip((self.keys, self.values), held):
            new.zero_()
            new[: old.shape[0], :, : old.shape[2]] = old

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one token a row [rows, kv heads, 1, D] at the current column; returns the visible columns."""
        self.keys.index_copy_(2, self.at, key_states)
        self.values.index_copy_(2, self.at, value_states)
        return self.keys[:, :, : self.visible], self.values[:, :, : self.visible]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def get_seq_length(self) -> int:
        """Never what positions or masks are made from: both are given."""
        return self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.visible, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


@dataclass(frozen=True)
class RowLayout:
    """Who sees whom when every row has one new token; takes the place of a packed batch's `Layout`.

    start: int64 [rows], first column of each row; at: int64 [1], the current column; columns: arange of all."""

    start: Tensor
    at: Tensor
    columns: Tensor

    def dense(self, window: int | None = None) -> Tensor:
        """bool [rows, 1, 1, columns]: from the row's start to the current column, `window` of them at most."""
        sees = (self.columns >= self.start[:, None]) & (self.columns <= self.at)
        if window is not None:
            sees = sees & (self.at - self.columns < window)
        return sees[:, None, None]


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
