"""The reference rollout engine: transformers' `generate`, greedy over logits that carry the keyed noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from dyme.families.base import Family
from dyme.rollout.noise import gumbel
from dyme.rollout.types import Rollout, RolloutRow, Sampling


class KeyedSampler(LogitsProcessor):
    """Bans tokens, applies temperature, top-k and top-p, and adds the keyed noise, so that the arg-max is a sample."""

    def __init__(self, keys: Tensor, prompt_length: int, banned: Tensor, sampling: Sampling) -> None:
        self.keys, self.prompt_length, self.banned, self.sampling = keys, prompt_length, banned, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().index_fill(1, self.banned, -torch.inf)
        if self.sampling.greedy:
            return scores
        scores = _top_p(_top_k(scores / self.sampling.temperature, self.sampling.top_k), self.sampling.top_p)
        return scores + gumbel(self.keys, input_ids.shape[1] - self.prompt_length, scores.shape[1])


def _top_k(scores: Tensor, k: int) -> Tensor:
    if not 0 < k < scores.shape[1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k).values[:, -1:], -torch.inf)


def _top_p(scores: Tensor, p: float) -> Tensor:
    if p >= 1.0:
        return scores
    ordered, index = scores.sort(descending=True)
    probability = ordered.softmax(-1)
    outside = probability.cumsum(-1) - probability >= p  # the token that crosses p stays in
    return scores.masked_fill(torch.zeros_like(outside).scatter(1, index, outside), -torch.inf)


@torch.no_grad()
def generate(family: Family, model: nn.Module, rows: Sequence[RolloutRow], sampling: Sampling) -> list[Rollout]:
    """Completions of `rows`, in their order. `model` is a plain (not partitioned) copy of the weights in eval mode."""
    out: dict[int, Rollout] = {}
    # image rows apart from text rows; equal lengths together, so that little is padded
    order = sorted(range(len(rows)), key=lambda i: (bool(rows[i].prompt.pixels), len(rows[i].prompt)))
    for images in (False, True):
        same = [i for i in order if bool(rows[i].prompt.pixels) == images]
        for at in range(0, len(same), sampling.batch_size):
            part = same[at : at + sampling.batch_size]
            out.update(zip(part, _generate_batch(family, model, [rows[i] for i in part], sampling), strict=True))
    return [out[i] for i in range(len(rows))]


def _generate_batch(family: Family, model: nn.Module, rows: Sequence[RolloutRow], sampling: Sampling) -> list[Rollout]:
    device = next(model.parameters()).device
    prompts = [row.prompt for row in rows]
    length = max(map(len, prompts))
    ids = torch.full((len(rows), length), family.pad_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, length - len(prompt) :] = prompt.input_ids
        mask[i, length - len(prompt) :] = 1
    keys = torch.tensor([row.key for row in rows], dtype=torch.int64, device=device)
    banned = torch.tensor(family.forbidden_ids, dtype=torch.int64, device=device)
    inputs = {k: v.to(device) for k, v in family.generate_inputs(prompts, ids).items()}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=list(family.stop_ids),
        pad_token_id=family.pad_id,
        use_cache=True,
    )
    with _without_own_settings(model):
        tokens = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([KeyedSampler(keys, length, banned, sampling)]),
            **inputs,
        )
    return [_cut(row, family.stop_ids) for row in tokens[:, length:].tolist()]


@contextmanager
def _without_own_settings(model: nn.Module) -> Iterator[None]:
    """transformers fills what our configuration leaves open from the checkpoint's own: a repetition penalty there would
    sample from another distribution than the one that training takes log-probabilities of."""
    own, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[assignment]
    try:
        yield
    finally:
        model.generation_config = own


def _cut(tokens: list[int], stop_ids: tuple[int, ...]) -> Rollout:
    for at, token in enumerate(tokens):
        if token in stop_ids:
            return Rollout(tuple(tokens[: at + 1]), truncated=False)
    return Rollout(tuple(tokens), truncated=True)
