"""The reference rollout engine: transformers' `generate`, greedy over logits that carry the keyed noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from dyme.families.base import Family
from dyme.rollout.engine import LocalEngine
from dyme.rollout.generation import greedy_generation
from dyme.rollout.noise import gumbel
from dyme.rollout.sampling import restrict, seen_tokens
from dyme.rollout.types import Finished, Rollout, RolloutRequest, Sampling, ignore


class KeyedSampler(LogitsProcessor):
    """Restricts the logits as `sampler.restrict` does and adds the keyed noise, so that the arg-max is a sample.

    mask: bool [B, prompt_length], False at the padding of the prompts; None where there is none."""

    def __init__(
        self, keys: Tensor, prompt_length: int, banned: Tensor, sampling: Sampling, mask: Tensor | None = None
    ) -> None:
        self.keys, self.prompt_length, self.banned, self.sampling = keys, prompt_length, banned, sampling
        self.mask = mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        seen = self._seen(input_ids, scores.shape[1]) if self.sampling.repetition_penalty != 1.0 else None
        scores = restrict(scores, seen, self.banned, self.sampling)
        if self.sampling.greedy:
            return scores
        return scores + gumbel(self.keys, input_ids.shape[1] - self.prompt_length, scores.shape[1])

    def _seen(self, ids: Tensor, vocab_size: int) -> Tensor:
        valid = torch.ones_like(ids, dtype=torch.bool)
        if self.mask is not None:
            valid[:, : self.prompt_length] = self.mask
        return seen_tokens(ids, valid, vocab_size)


class HfEngine(LocalEngine):
    """Batches of requests through the model's own `generate`; those of a batch finish together."""

    tells_logprobs = False

    @torch.no_grad()
    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, finished: Finished = ignore
    ) -> list[Rollout]:
        model = self.weights.place()
        out: dict[int, Rollout] = {}
        # those with images apart from text; equal lengths together, so that little is padded
        order = sorted(range(len(requests)), key=lambda i: (bool(requests[i].prompt.pixels), len(requests[i].prompt)))
        for images in (False, True):
            same = [i for i in order if bool(requests[i].prompt.pixels) == images]
            for at in range(0, len(same), sampling.batch_size):
                part = same[at : at + sampling.batch_size]
                made = _generate_batch(self.family, model, [requests[i] for i in part], sampling)
                out.update(zip(part, made, strict=True))
                for i in part:
                    finished(i, out[i])
        return [out[i] for i in range(len(requests))]


def _generate_batch(
    family: Family, model: nn.Module, requests: Sequence[RolloutRequest], sampling: Sampling
) -> list[Rollout]:
    device = next(model.parameters()).device
    prompts = [request.prompt for request in requests]
    length = max(map(len, prompts))
    ids = torch.full((len(requests), length), family.pad_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, length - len(prompt) :] = prompt.input_ids
        mask[i, length - len(prompt) :] = 1
    where = mask.to(device).bool()
    keys = torch.tensor([request.key for request in requests], dtype=torch.int64, device=device)
    banned = torch.tensor(family.forbidden_ids, dtype=torch.int64, device=device)
    inputs = {k: v.to(device) for k, v in family.generate_inputs(prompts, ids).items()}
    with _without_own_settings(model):
        tokens = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=greedy_generation(family, sampling.max_new_tokens),
            logits_processor=LogitsProcessorList([KeyedSampler(keys, length, banned, sampling, where)]),
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
