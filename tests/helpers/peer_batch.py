"""One batch of completions twice: [B,T] with a mask, as other libraries take it, and the flat vectors of ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyme.batching.objective import TrainSequence, TrainSequences, token_weights

BATCH, LENGTH, VOCABULARY, MAX_NEW_TOKENS = 5, 6, 37, 9


@dataclass(frozen=True)
class Batch:
    """logits [B,T,V]; ids [B,T]; mask [B,T] int64, ragged, with a hole in row 0 and row 3 empty; old, ref, importance
    [B,T]; advantages [B,T], equal within a row unless asked otherwise."""

    logits: Tensor
    ids: Tensor
    mask: Tensor
    old: Tensor
    ref: Tensor
    importance: Tensor
    advantages: Tensor

    @property
    def live(self) -> Tensor:
        return self.mask.flatten().nonzero().squeeze(1)

    def weights(self, normalization: str) -> Tensor:
        """[B T] of the normalization that the trainer calls by this name; 0 for tokens that do not count."""
        rows = [TrainSequence(i, i, 1.0, 1.0) for i, length in enumerate(self.mask.sum(1).tolist()) if length]
        lengths = {row: int(self.mask[row.completion].sum()) for row in rows}
        values = token_weights(
            TrainSequences(tuple(rows), tuple(rows)),
            lengths,
            normalization,
            groups=1,
            rows=BATCH,
            max_new_tokens=MAX_NEW_TOKENS,
            memorize_weight=1.0,
        )
        out = torch.zeros(BATCH, LENGTH, dtype=self.logits.dtype)
        for row, value in zip(rows, values, strict=True):
            out[row.completion] = value * self.mask[row.completion].to(out)
        return out.flatten().to(self.logits.device)

    def ours(self, normalization: str) -> dict[str, Tensor]:
        """Arguments of policy_loss but the logits, off-policy, without reference and importance."""
        rows = torch.arange(BATCH, device=self.ids.device).repeat_interleave(LENGTH)
        return {
            "targets": self.ids.flatten(),
            "advantages": self.advantages.flatten(),
            "weights": self.weights(normalization),
            "old_logprobs": self.old.flatten(),
            "segments": rows,
            "live": self.live,
        }


def make_batch(dtype: torch.dtype, device: str = "cpu", by_token: bool = False, temperature: float = 1.0) -> Batch:
    """Ratios between 0.4 and 2.5, so that every side of every clip is met."""
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    logits, shape = 2 * normal(BATCH, LENGTH, VOCABULARY), (BATCH, LENGTH)
    ids = torch.randint(VOCABULARY, shape, generator=g)
    logprobs = torch.log_softmax(logits / temperature, 2).gather(2, ids[..., None])[..., 0]
    mask = (torch.arange(LENGTH) < torch.tensor([6, 4, 1, 0, 5])[:, None]).long()
    mask[0, 2] = 0
    advantages = normal(*shape) if by_token else normal(BATCH)[:, None].expand(shape)
    floats = (logits, logprobs + 0.4 * normal(*shape), logprobs + 0.4 * normal(*shape), 0.5 + normal(*shape).abs())
    logits, old, ref, importance = (x.to(dtype).to(device) for x in floats)
    return Batch(logits, ids.to(device), mask.to(device), old, ref, importance, advantages.to(dtype).to(device))


def distance(mine: Tensor, other: Tensor) -> float:
    """Norm of the difference relative to the norm."""
    return ((mine.detach().double() - other.detach().double()).norm() / other.detach().double().norm()).item()
