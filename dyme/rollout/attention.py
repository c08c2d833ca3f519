"""Attention of a decode step: all rows of a group to their prompt at once, each row to its own reply, and both merged
with their log-sum-exps, which is exact (Juravsky et al. 2024, Hydragen, 2402.05099, section 3.1).

So a step reads the keys and values of a prompt once for its group. Registered with transformers under the name `NAME`;
the decoder sets `decoding` to the cache that the layers write to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from dyme.rollout.cache import GroupCache

NAME = "dyme_shared_prefix"
_DECODING: ContextVar[GroupCache] = ContextVar("decoding")


@contextmanager
def decoding(config: Any, cache: GroupCache) -> Iterator[None]:
    """In here the layers of `config` attend to `cache`."""
    own = config._attn_implementation
    config._attn_implementation = NAME
    token = _DECODING.set(cache)
    try:
        yield
    finally:
        _DECODING.reset(token)
        config._attn_implementation = own


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """query [rows, heads, 1, D]; key, value [rows, kv heads, columns, D] of the replies; attention_mask: see
    `Step.dense`. Output [rows, 1, heads, D]."""
    if softcap is not None:
        raise ValueError("rollout.engine=shared_prefix knows no soft-capped attention: set rollout.engine to hf")
    cache = _DECODING.get()
    step = cache.now
    assert step is not None
    rows, heads, _, size = query.shape
    kv_heads, shape = key.shape[1], step.shape
    share = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    replies, prompts = step.split(attention_mask)
    if prompts.shape[2] > 1:  # [groups, 1, width * share, columns]
        prompts = prompts.repeat_interleave(share, 2)
    own, own_sum = attention(query.reshape(rows, kv_heads, share, size), key, value, replies, scale)
    there, back = step.order(kv_heads, share)
    gathered = query.reshape(rows * heads, size).index_select(0, there)
    gathered = gathered.view(shape.groups, kv_heads, shape.width * share, size)
    common, common_sum = attention(gathered, *cache.prompts(module.layer_idx), prompts, scale)  # type: ignore[arg-type]
    common = common.view(-1, common.shape[-1]).index_select(0, back).view(own.shape)
    merged = merge(own, own_sum, common, common_sum.view(-1).index_select(0, back).view(own_sum.shape))
    return merged.transpose(1, 2).reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, attend)


def merge(first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor) -> Tensor:
    """Attention [.., D] to two disjoint sets of keys from that to each and its log-sum-exp float32 [..]."""
    weight = torch.sigmoid(second_sum - first_sum)[..., None]
    return torch.lerp(first.float(), second.float(), weight).to(first.dtype)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of queries [B, heads, M, D] to keys and values [B, heads, n, D], and the log-sum-exp of the scores;
    bias [B, 1, 1 or M, n] in the type of the query is added to them. Output [B, M, heads, D] and float32 [B, M, heads],
    both contiguous."""
    if query.is_cuda and _fits(query, value):
        mask = bias.expand(*query.shape[:3], key.shape[2])
        # its log-sum-exp is padded
        out, total = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, scale=scale)[
            :2
        ]
        out, total = out.transpose(1, 2), total[..., : query.shape[2]].transpose(1, 2)
    elif query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total = flash(query, key, value, attn_mask=bias, scale=scale)
        out, total = out.transpose(1, 2), total.transpose(1, 2)
    else:
        out, total = (t.transpose(1, 2) for t in plain(query, key, value, bias, scale))
    return out.contiguous(), total.contiguous()


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same with matrix products in float32. Output [B, heads, M, D] and float32 [B, heads, M]."""
    scores = query.float() @ key.float().transpose(-1, -2) * scale + bias
    return (scores.softmax(-1) @ value.float()).to(query.dtype), scores.logsumexp(-1)


def _fits(query: Tensor, value: Tensor) -> bool:
    """Whether torch's memory-efficient kernel takes these sizes: rows of whole 16 bytes."""
    return query.shape[-1] == value.shape[-1] and query.shape[-1] * query.element_size() % 16 == 0
