"""Packing: groups as trees. The prompt once, then each live row as a branch that sees the prompt and itself.

Positions of every branch go on from the prompt; the last prompt token's hidden state predicts the first token of every
branch. This is exact: log-probabilities and gradients equal those of separate rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyme.families.attention import PADDING, PROMPT, Layout
from dyme.families.base import Family, Prompt


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of one micro-batch, padded on the right, and where their live tokens are predicted.

    input_ids [B, L]; position_ids [B, L] (or [3, B, L]); layout: who sees whom; pixels: joined image tensors;
    select [N]: flat indices into B * L of the hidden states that predict `targets` [N]. The live tokens stand in the
    order of sequences, then branches, then tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    pixels: Mapping[str, Tensor]
    select: Tensor
    targets: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> PackedBatch:
        """Everything on the device; floating-point pixels in the model's dtype."""
        pixels = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in self.pixels.items()}
        return PackedBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.layout.to(device),
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
    block = torch.stack([s.block for s in laid])
    return PackedBatch(
        input_ids=torch.stack([s.ids for s in laid]),
        position_ids=torch.stack([s.positions for s in laid], dim=-2),
        layout=Layout(
            torch.stack([s.branch for s in laid]),
            torch.stack([s.depth for s in laid]),
            block if (block >= 0).any() else None,
        ),
        pixels=family.collate_pixels([prompt for prompt, _ in sequences]),
        select=torch.cat([s.select for s in laid]),
        targets=torch.cat([s.targets for s in laid]),
    )


@dataclass(frozen=True)
class _Laid:
    ids: Tensor  # [L]
    positions: Tensor  # [L] or [3, L]
    branch: Tensor  # [L], see Layout
    depth: Tensor  # [L]
    block: Tensor  # [L]
    select: Tensor  # [n]
    targets: Tensor  # [n]


def _lay(family: Family, prompt: Prompt, branches: Sequence[Sequence[int]], length: int, offset: int) -> _Laid:
    prompt_positions, start = family.prompt_positions(prompt)
    blocks = family.image_blocks(prompt)
    ids, branch, positions = [prompt.input_ids], [torch.full((len(prompt),), PROMPT)], [prompt_positions]
    depth = [torch.arange(len(prompt))]
    select, at = [], len(prompt)
    for index, tokens in enumerate(branches):
        n = len(tokens)
        ids.append(torch.as_tensor(tokens, dtype=torch.int64))
        branch.append(torch.full((n,), index))
        depth.append(torch.arange(len(prompt), len(prompt) + n))
        positions.append(torch.arange(start, start + n).expand(*prompt_positions.shape[:-1], n))
        select.append(torch.cat([torch.tensor([len(prompt) - 1]), torch.arange(at, at + n - 1)])[:n] + offset)
        at += n
    pad = length - at
    ids.append(torch.full((pad,), family.pad_id))
    branch.append(torch.full((pad,), PADDING))
    depth.append(torch.zeros(pad, dtype=torch.int64))
    positions.append(torch.zeros(*prompt_positions.shape[:-1], pad, dtype=torch.int64))
    block = torch.full((length,), -1)
    if blocks is not None:
        block[: len(prompt)] = blocks
    empty = torch.zeros(0, dtype=torch.int64)
    return _Laid(
        torch.cat(ids),
        torch.cat(positions, dim=-1),
        torch.cat(branch),
        torch.cat(depth),
        block,
        torch.cat([empty, *select]),
        torch.cat([empty, *(torch.as_tensor(b, dtype=torch.int64) for b in branches)]),
    )
