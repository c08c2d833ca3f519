"""Packed batches against rows on their own through the stock forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dyme.families import Family, Prompt


def packed_logprobs(family: Family, model: nn.Module, batch: Any) -> Tensor:
    """Log-probabilities [N] of a packed batch's targets, in the precision of the model."""
    batch = batch.to(next(model.parameters()).device, next(model.parameters()).dtype)
    mask = family.attention_mask(model, batch.layout)
    hidden = family.hidden(model, batch.input_ids, mask, batch.position_ids, batch.pixels)
    logits = family.head(model)(hidden.flatten(0, 1)[batch.select])
    return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]


def separate_logprobs(family: Family, model: Any, prompt: Prompt, tokens: list[int]) -> Tensor:
    """The row alone through the stock forward: no mask, no positions of ours."""
    ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])[None]
    dtype = next(model.parameters()).dtype
    more = family.generate_inputs([prompt], ids)
    more = {k: v.to(dtype) if v.is_floating_point() else v for k, v in more.items()}
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Gradients, relative to the larger of their own norm and 1e-4 of the largest."""
    assert got.keys() == expected.keys()
    largest = max(g.norm() for g in expected.values())
    for name, grad in expected.items():
        error = float((got[name] - grad).norm() / max(grad.norm(), 1e-4 * largest))
        assert error < tolerance, f"{name}: relative error {error:.1e}"
