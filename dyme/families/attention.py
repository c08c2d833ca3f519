"""Attention of packed groups: where every token stands, and the mask that follows from it.

One function says who sees whom; the dense mask (sdpa) and FlexAttention's block mask are both made from it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

PROMPT, PADDING = -1, -2


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed batch stand in their trees, int64 [B, L] each.

    branch: index of the branch, `PROMPT` or `PADDING`. depth: index of the token in its own path (prompt, then branch),
    which is what sliding windows count. block: number of the image whose tokens see each other both ways, -1 outside;
    None where the model has no such blocks.
    """

    branch: Tensor
    depth: Tensor
    block: Tensor | None = None

    def to(self, device: torch.device) -> Layout:
        block = None if self.block is None else self.block.to(device)
        return replace(self, branch=self.branch.to(device), depth=self.depth.to(device), block=block)

    def sees(self, b: Tensor, q: Tensor, k: Tensor, window: int | None = None) -> Tensor:
        """Whether in row b the token q (query) attends to the token k: causal or in the same picture, to the prompt and
        the own branch, less than `window` tokens of its path back; padding sees only itself."""
        mine, other = self.branch[b, q], self.branch[b, k]
        allow = k <= q
        if self.block is not None:
            allow = allow | ((self.block[b, q] == self.block[b, k]) & (self.block[b, q] >= 0))
        allow = allow & ((other == mine) | (other == PROMPT)) & (mine != PADDING)
        if window is not None:  # also inside a picture: a window shorter than the picture cuts it
            allow = allow & (self.depth[b, q] - self.depth[b, k] < window)
        return allow | (q == k)  # a fully masked row would be NaN

    def dense(self, window: int | None = None) -> Tensor:
        """bool [B, 1, L, L], True where a query (row) sees a key (column)."""
        rows, length = self.branch.shape
        b = torch.arange(rows, device=self.branch.device)[:, None, None]
        at = torch.arange(length, device=self.branch.device)
        return self.sees(b, at[None, :, None], at[None, None, :], window)[:, None]

    def block_mask(self, window: int | None = None) -> Any:
        """The same as a BlockMask of torch's FlexAttention: blocks that nobody sees cost nothing."""
        from torch.nn.attention.flex_attention import create_block_mask

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return self.sees(b, q, k, window)

        rows, length = self.branch.shape
        return create_block_mask(mask_mod, rows, None, length, length, device=str(self.branch.device))


def resolve_attention(attention: str, packed: str, dtype: str, *, cuda: bool) -> tuple[str, str]:
    """Implementations for whole rows (rollouts, vision towers) and for packed groups, from `model.attention` and
    `model.packed_attention`. flash-attn takes no masks and no fp32; FlexAttention has no backward pass on CPUs."""
    if attention == "auto":
        flash = cuda and dtype == "bf16" and importlib.util.find_spec("flash_attn") is not None
        attention = "flash_attention_2" if flash else "sdpa"
    if packed == "auto":
        packed = "flex_attention" if cuda else "sdpa"
    return attention, packed


def set_attention(model: Any, language: str, rest: str) -> nn.Module:
    """Sets the implementation of the language model and that of everything else."""
    parts = set(model.config.sub_configs)
    model.set_attn_implementation({part: language if part == "text_config" else rest for part in parts} or language)
    return model
