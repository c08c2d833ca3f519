"""Packing: groups as trees. The prompt once, then each live row as a branch that sees the prompt and itself.

Positions of every branch go on from the prompt; the last prompt token's hidden state predicts the first token of every
branch. This is exact: log-probabilities and gradients equal those of separate rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyme.families.base import Family, Prompt


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of one micro-batch, padded on the right, and where their live tokens are predicted.

    input_ids [B, L]; position_ids [B, L] (or [3, B, L]); attention_mask: what the family's backbone takes; pixels:
    joined image tensors; select [N]: flat indices into B * L of the hidden states that predict `targets` [N]. The live
    tokens stand in the order of sequences, then branches, then tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Any
    pixels: Mapping[str, Tensor]
    select: Tensor
    targets: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> PackedBatch:
        """Everything on the device; floating-point pixels in the model's dtype."""
        pixels = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in self.pixels.items()}
        mask = self.attention_mask
        mask = {k: v.to(device) for k, v in mask.items()} if isinstance(mask, dict) else mask.to(device)
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            mask,
            pixels,
            self.select.to(device),
            self.targets.to(device),
        )


def pack(
    family: Family, sequences: Sequence[tuple[Prompt, Sequence[Sequence[int]]]], modules: frozenset[str]
) -> PackedBatch:
    """Packs (prompt, branches) pairs, one sequence each; a branch is a list of token ids.

    Where no prompt brings a modality of `modules`, an anchor prompt without branches is added, so that this rank runs
    the same modules as all others. An empty micro-batch becomes one anchor.
    """
    sequences = list(sequences)
    have = frozenset().union(*(prompt.modalities for prompt, _ in sequences))
    if not sequences or not modules <= have:
        sequences.append((family.anchors[modules - have], ()))
    length = max(len(prompt) + sum(map(len, branches)) for prompt, branches in sequences)
    laid = [_lay(family, prompt, branches, length, row * length) for row, (prompt, branches) in enumerate(sequences)]
    branch = torch.stack([s.branch for s in laid])
    positions = torch.stack([s.positions for s in laid], dim=-2)
    return PackedBatch(
        input_ids=torch.stack([s.ids for s in laid]),
        position_ids=positions,
        attention_mask=family.attention_mask(_tree_mask(branch), positions),
        pixels=family.collate_pixels([prompt for prompt, _ in sequences]),
        select=torch.cat([s.select for s in laid]),
        targets=torch.cat([s.targets for s in laid]),
    )


@dataclass(frozen=True)
class _Laid:
    ids: Tensor  # [L]
    positions: Tensor  # [L] or [3, L]
    branch: Tensor  # [L], -1 prompt, 0.. branches, -2 padding
    select: Tensor  # [n]
    targets: Tensor  # [n]


def _lay(family: Family, prompt: Prompt, branches: Sequence[Sequence[int]], length: int, offset: int) -> _Laid:
    prompt_positions, start = family.prompt_positions(prompt)
    ids, branch, positions = [prompt.input_ids], [torch.full((len(prompt),), -1)], [prompt_positions]
    select, at = [], len(prompt)
    for index, tokens in enumerate(branches):
        n = len(tokens)
        ids.append(torch.as_tensor(tokens, dtype=torch.int64))
        branch.append(torch.full((n,), index))
        positions.append(torch.arange(start, start + n).expand(*prompt_positions.shape[:-1], n))
        select.append(torch.cat([torch.tensor([len(prompt) - 1]), torch.arange(at, at + n - 1)])[:n] + offset)
        at += n
    pad = length - at
    ids.append(torch.full((pad,), family.pad_id))
    branch.append(torch.full((pad,), -2))
    positions.append(torch.zeros(*prompt_positions.shape[:-1], pad, dtype=torch.int64))
    empty = torch.zeros(0, dtype=torch.int64)
    return _Laid(
        torch.cat(ids),
        torch.cat(positions, dim=-1),
        torch.cat(branch),
        torch.cat([empty, *select]),
        torch.cat([empty, *(torch.as_tensor(b, dtype=torch.int64) for b in branches)]),
    )


def _tree_mask(branch: Tensor) -> Tensor:
    """bool [B, L, L] from branch [B, L]: causal, to the prompt and the own branch; padding sees only itself."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    key, query = branch[:, None, :], branch[:, :, None]
    allow = causal & ((key == query) | (key == -1)) & (query != -2) & (key != -2)
    return allow | torch.eye(length, dtype=torch.bool)  # a fully masked row would be NaN
