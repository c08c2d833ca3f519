"""Packing: groups as trees. The prompt once, then each sequence as a branch that sees the prompt and itself.

Positions of every branch go on from the prompt; the last prompt token's hidden state predicts the first token of every
branch. This is exact: log-probabilities and gradients equal those of separate rows. Each tree is a row of the batch, or
all trees of a micro-batch are joined into one row, in which a token sees its own tree only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyme.families.attention import BLOCK, PADDING, PROMPT, Layout
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
        move = mover(device)
        pixels = {k: move(v).to(dtype if v.is_floating_point() else v.dtype) for k, v in self.pixels.items()}
        return PackedBatch(
            move(self.input_ids),
            move(self.position_ids),
            self.layout.map(move),
            pixels,
            move(self.select),
            move(self.targets),
        )


def mover(device: torch.device) -> Callable[[Tensor], Tensor]:
    """To a GPU from pinned memory, so that the host goes on packing while the device still works."""
    if device.type != "cuda":
        return lambda tensor: tensor.to(device)
    return lambda tensor: tensor.to(device) if tensor.is_cuda else tensor.pin_memory().to(device, non_blocking=True)


def bucket_length(tokens: int) -> int:
    """Length of a joined sequence of `tokens`: the next multiple of BLOCK that is one of 1, 2, 3, 4 and then four to
    every doubling (5, 6, 7, 8, 10, 12, 14, 16, 20, ...) blocks. So lengths repeat; less than a quarter and a block is
    added."""
    blocks = max(1, -(-tokens // BLOCK))
    step = 1 << max(0, (blocks - 1).bit_length() - 3)
    return -(-blocks // step) * step * BLOCK


def pack(
    family: Family,
    sequences: Sequence[tuple[Prompt, Sequence[Sequence[int]]]],
    modules: frozenset[str],
    *,
    joined: bool = False,
) -> PackedBatch:
    """Packs (prompt, branches) pairs as trees; a branch is a list of token ids. Every tree is a row, or all of them are
    one row (`joined`, [1, `bucket_length`]).

    Where no prompt brings a modality of `modules`, an anchor prompt without branches is added, so that this rank runs
    the same modules as all others. An empty micro-batch becomes one anchor.
    """
    sequences = list(sequences)
    have = frozenset().union(*(prompt.modalities for prompt, _ in sequences))
    if not sequences or not modules <= have:
        sequences.append((family.anchors[modules - have], ()))
    trees = [_lay(family, prompt, branches) for prompt, branches in sequences]
    rows = [_join(trees)] if joined else trees
    longest = max(len(row.ids) for row in rows)
    length = bucket_length(longest) if joined else longest
    blocks = [_pad(row.block, length, -1) for row in rows if row.block is not None]
    return PackedBatch(
        input_ids=torch.stack([_pad(row.ids, length, family.pad_id) for row in rows]),
        position_ids=torch.stack([_pad(row.positions, length, 0) for row in rows], dim=-2),
        layout=Layout(
            torch.stack([_pad(row.branch, length, PADDING) for row in rows]),
            torch.stack([_pad(row.depth, length, 0) for row in rows]),
            torch.stack(blocks) if blocks else None,
            torch.stack([_pad(row.tree, length, -1) for row in rows]) if joined else None,
        ),
        pixels=family.collate_pixels([prompt for prompt, _ in sequences]),
        select=torch.cat([row.select + index * length for index, row in enumerate(rows)]),
        targets=torch.cat([row.targets for row in rows]),
    )


@dataclass(frozen=True)
class _Laid:
    """One tree, or several behind one another, without padding."""

    ids: Tensor  # [n]
    positions: Tensor  # [n] or [3, n]
    branch: Tensor  # [n], see Layout
    depth: Tensor  # [n]
    block: Tensor | None  # [n]; the model decides which, so that a batch without pictures has no mask of its own kind
    tree: Tensor  # [n]
    select: Tensor  # [live]
    targets: Tensor  # [live]


def _lay(family: Family, prompt: Prompt, branches: Sequence[Sequence[int]]) -> _Laid:
    prompt_positions, start = family.prompt_positions(prompt)
    blocks = family.image_blocks(prompt)
    size = len(prompt)
    ids, branch, positions = [prompt.input_ids], [torch.full((size,), PROMPT)], [prompt_positions]
    depth = [torch.arange(size)]
    select, targets, at = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)], size
    for index, tokens in enumerate(branches):
        n = len(tokens)
        ids.append(torch.as_tensor(tokens, dtype=torch.int64))
        branch.append(torch.full((n,), index))
        depth.append(torch.arange(size, size + n))
        positions.append(torch.arange(start, start + n).expand(*prompt_positions.shape[:-1], n))
        select.append(torch.cat([torch.tensor([size - 1]), torch.arange(at, at + n - 1)])[:n])
        targets.append(ids[-1])
        at += n
    return _Laid(
        torch.cat(ids),
        torch.cat(positions, dim=-1),
        torch.cat(branch),
        torch.cat(depth),
        None if blocks is None else _pad(blocks, at, -1),
        torch.zeros(at, dtype=torch.int64),
        torch.cat(select),
        torch.cat(targets),
    )


def _join(trees: Sequence[_Laid]) -> _Laid:
    """The trees behind one another. Numbers of branches and pictures repeat between trees; `tree` keeps them apart."""
    blocks = [tree.block for tree in trees if tree.block is not None]
    starts = torch.tensor([0, *(len(tree.ids) for tree in trees)]).cumsum(0).tolist()
    return _Laid(
        torch.cat([tree.ids for tree in trees]),
        torch.cat([tree.positions for tree in trees], dim=-1),
        torch.cat([tree.branch for tree in trees]),
        torch.cat([tree.depth for tree in trees]),
        torch.cat(blocks) if blocks else None,
        torch.cat([tree.tree + number for number, tree in enumerate(trees)]),
        torch.cat([tree.select + start for tree, start in zip(trees, starts)]),
        torch.cat([tree.targets for tree in trees]),
    )


def _pad(values: Tensor, length: int, value: int) -> Tensor:
    """[..., n] -> [..., length], filled on the right."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=value)
