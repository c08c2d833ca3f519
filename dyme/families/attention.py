"""Attention of packed groups: the place of every token in its tree, and the mask that follows from it.

One function (`sees`) defines the mask; the dense mask (sdpa) and FlexAttention's block mask are both made from it.
With a block mask all groups of a micro-batch are joined into one sequence (`joins_groups`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import is_flash_attn_2_available

from dyme.settings.errors import ConfigError

PROMPT, PADDING = -1, -2
BLOCK = 128
"""Side of the blocks of a block mask, in tokens: FlexAttention's default. Joined sequences have a multiple of it as
length."""
NARROWEST = 16
"""Smallest head width that FlexAttention's GPU kernels take."""
PROGRAMS = 64
"""Programs that torch may compile FlexAttention to: kinds of layers, lengths (the first, any, one block), with and
without gradients. Past its own limit of 8 it would go on without the kernel, in [L, L] scores."""


@dataclass(frozen=True)
class Layout:
    """The place of each token of a packed batch in its tree, int64 [B, L] each.

    branch: index of the branch, `PROMPT` or `PADDING`. depth: index of the token in its own path (prompt, then branch),
    which is what sliding windows count. block: number of the image whose tokens see each other both ways, -1 outside;
    None for models without such blocks. tree: number of the token's tree, where a row holds several; None where it
    holds one.
    """

    branch: Tensor
    depth: Tensor
    block: Tensor | None = None
    tree: Tensor | None = None

    def map(self, move: Callable[[Tensor], Tensor]) -> Layout:
        """The same with `move` applied to every tensor."""
        return Layout(
            move(self.branch),
            move(self.depth),
            None if self.block is None else move(self.block),
            None if self.tree is None else move(self.tree),
        )

    def sees(self, b: Tensor, q: Tensor, k: Tensor, window: int | None = None) -> Tensor:
        """Whether in row b the token q (query) attends to the token k: causal or in the same picture, to the prompt and
        the own branch of its own tree, less than `window` tokens of its path back; padding sees only itself."""
        mine, other = self.branch[b, q], self.branch[b, k]
        allow = k <= q
        if self.block is not None:
            allow = allow | ((self.block[b, q] == self.block[b, k]) & (self.block[b, q] >= 0))
        allow = allow & ((other == mine) | (other == PROMPT)) & (mine != PADDING)
        if self.tree is not None:
            allow = allow & (self.tree[b, q] == self.tree[b, k])
        if window is not None:  # also inside a picture: a window shorter than the picture cuts it
            allow = allow & (self.depth[b, q] - self.depth[b, k] < window)
        return allow | (q == k)  # a fully masked row would be NaN

    def dense(self, window: int | None = None) -> Tensor:
        """bool [B, 1, L, L], True where a query (row) sees a key (column)."""
        rows, length = self.branch.shape
        b = torch.arange(rows, device=self.branch.device)[:, None, None]
        at = torch.arange(length, device=self.branch.device)
        return self.sees(b, at[None, :, None], at[None, None, :], window)[:, None]

    def mask_mod(self, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """`sees` as FlexAttention wants it."""

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return self.sees(b, q, k, window)

        return mask_mod

    def block_mask(self, window: int | None = None) -> Any:
        """The same as a BlockMask of FlexAttention, in blocks of `BLOCK` x `BLOCK`. Empty blocks cost nothing."""
        rows, length = self.branch.shape
        device = self.branch.device
        create = _create_block_mask(compiled=device.type == "cuda")
        with torch.no_grad():  # the same program with and without gradients
            return create(self.mask_mod(window), rows, None, length, length, device=str(device), BLOCK_SIZE=BLOCK)


@cache
def _create_block_mask(*, compiled: bool) -> Callable[..., Any]:
    """torch's create_block_mask, compiled. Uncompiled it writes an [L, L] tensor for every operation of the mask (int64
    for windows), in every micro-batch."""
    from torch.nn.attention.flex_attention import create_block_mask

    if not compiled:
        return create_block_mask
    import torch._dynamo.config as limits

    limits.recompile_limit = max(limits.recompile_limit, PROGRAMS)
    return torch.compile(create_block_mask)


def head_width(config: Any) -> int:
    """Values of a head of a language model, from its text config."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def resolve_attention(
    attention: str, packed: str, dtype: str, *, cuda: bool, width: int = NARROWEST
) -> tuple[str, str]:
    """Implementations for whole rows (rollouts, vision towers) and for packed groups, from `model.attention` and
    `model.packed_attention`; width: see `head_width`. flash-attn takes no masks and no fp32; FlexAttention has no
    backward pass on CPUs and no narrow heads on GPUs."""
    if attention == "auto":
        flash = cuda and dtype == "bf16" and has_flash_attention()
        attention = "flash_attention_2" if flash else "sdpa"
    if packed == "auto":
        packed = "flex_attention" if cuda and width >= NARROWEST else "sdpa"
    return attention, packed


def has_flash_attention() -> bool:
    """Whether flash-attn can be imported. A build for another torch is found but fails on import."""
    try:  # an edge: a third-party binary
        import flash_attn  # type: ignore[import-not-found]  # noqa: F401
    except Exception:
        return False
    return is_flash_attn_2_available()


def joins_groups(packed: str) -> bool:
    """Whether all groups of a micro-batch lie in one sequence, under the resolved packed attention. In a block mask the
    blocks between two groups cost nothing, and there is no padding to the longest; a dense mask would pay for them."""
    return packed == "flex_attention"


def set_attention(model: Any, language: str, rest: str) -> nn.Module:
    """Sets the implementation of the language model and that of everything else. Raises `ConfigError`."""
    chosen = {part: language if part == "text_config" else rest for part in model.config.sub_configs}
    try:  # an edge: transformers says what a machine or model lacks for an implementation
        model.set_attn_implementation(chosen or language)
    except (ImportError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"model.attention, model.packed_attention: {told} Set both to auto") from error
    return model
