"""Plan: which rank trains which sequences in which micro-batch. Pure, and the same on every rank.

A group is placed as an item: its prompt once, then the sequences it trains as branches. Every rank gets the same number
of micro-batches, and in micro-batch j every rank runs the same modules: where one rank has an image, all run the vision
modules. Ranks that run different modules break ZeRO-3's collectives (a hang on NCCL), so this is a contract, not an
optimization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedGroup:
    """Sequences of one group, or of a part of it, that share one copy of the prompt.

    `sequences` are indices into the `TrainBatch.sequences` of the step; `tokens` is the packed length: prompt and
    sequences.
    """

    group: int
    sequences: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Plan:
    """`micro_batches[rank][j]` is what a rank trains in micro-batch j (empty: an anchor without live tokens).

    `modules[j]` are the modalities whose modules every rank must run in micro-batch j. `joined`: the groups of a
    micro-batch are one sequence, see `dyme.batching.packing.pack`.
    """

    micro_batches: tuple[tuple[tuple[PlannedGroup, ...], ...], ...]
    modules: tuple[frozenset[str], ...]
    joined: bool = False

    @property
    def num_micro_batches(self) -> int:
        return len(self.modules)

    def tokens(self, rank: int) -> int:
        """Packed tokens a rank trains in the step."""
        return sum(item.tokens for micro in self.micro_batches[rank] for item in micro)


def make_plan(
    groups: Sequence[int],
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    modalities: Sequence[frozenset[str]],
    world_size: int,
    token_budget: int,
    *,
    first_modules: frozenset[str] = frozenset(),
    share_prompt: bool = True,
    joined: bool = False,
) -> Plan:
    """Places every sequence that trains exactly once.

    groups, lengths: [S] group index and tokens of each sequence. prompt_lengths, modalities: [G] tokens, image tokens
    included, and modalities of each group's prompt. `token_budget` bounds the tokens of one micro-batch on one rank:
    padded ones, or, with `joined`, real ones. A group over it is split and its prompt repeated; a single sequence over
    it stands alone. `first_modules`: modalities with trainable parameters, run in the first micro-batch whatever it
    holds (ZeRO-3 keeps stale gradients of parameters that are absent there). `share_prompt=False` gives every sequence
    its own prompt, for families that cannot pack trees. No sequences: a plan without micro-batches.
    """
    if not groups:
        return Plan(tuple(() for _ in range(world_size)), (), joined)
    items = _split_for_ranks(
        _items(groups, lengths, prompt_lengths, token_budget, share_prompt),
        world_size,
        prompt_lengths,
        lengths,
    )
    shares = _balance(items, world_size)
    # Groups with more modalities first, so that image work meets image work at the same index; then long to short,
    # so that the items of a micro-batch pad little.
    ordered = [sorted(s, key=lambda i: (-len(modalities[i.group]), -i.tokens, i.group, i.sequences)) for s in shares]
    fill = _fill_joined if joined else _fill
    count = max(len(fill(share, token_budget)) for share in ordered)
    micro_batches = tuple(_spread(fill(share, token_budget), count) for share in ordered)
    modules = [
        frozenset().union(*(modalities[i.group] for rank in micro_batches for i in rank[j])) for j in range(count)
    ]
    modules[0] |= first_modules
    return Plan(micro_batches, tuple(modules), joined)


def _items(
    groups: Sequence[int],
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    budget: int,
    share_prompt: bool,
) -> list[PlannedGroup]:
    sequences_of: dict[int, list[int]] = {}
    for sequence, group in enumerate(groups):
        sequences_of.setdefault(group, []).append(sequence)
    items = []
    for group in sorted(sequences_of):
        part: list[int] = []
        tokens = prompt_lengths[group]
        for sequence in sequences_of[group]:
            if part and (not share_prompt or tokens + lengths[sequence] > budget):
                items.append(PlannedGroup(group, tuple(part), tokens))
                part, tokens = [], prompt_lengths[group]
            part.append(sequence)
            tokens += lengths[sequence]
        items.append(PlannedGroup(group, tuple(part), tokens))
    return items


def _split_for_ranks(
    items: list[PlannedGroup], world_size: int, prompt_lengths: Sequence[int], lengths: Sequence[int]
) -> list[PlannedGroup]:
    """Halves the costliest groups until every rank can have one (or only single sequences are left)."""
    items = list(items)
    while len(items) < world_size:
        splittable = [i for i in items if len(i.sequences) > 1]
        if not splittable:
            break
        worst = max(splittable, key=lambda i: (i.tokens, -i.group, i.sequences))
        items.remove(worst)
        half = len(worst.sequences) // 2
        for part in (worst.sequences[:half], worst.sequences[half:]):
            tokens = prompt_lengths[worst.group] + sum(lengths[sequence] for sequence in part)
            items.append(PlannedGroup(worst.group, part, tokens))
    return items


def _balance(items: list[PlannedGroup], world_size: int) -> list[list[PlannedGroup]]:
    """Longest processing time first: each item to the rank with the least work so far."""
    shares: list[list[PlannedGroup]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for item in sorted(items, key=lambda i: (-i.tokens, i.group, i.sequences)):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        shares[rank].append(item)
        load[rank] += item.tokens
    return shares


def _fill(share: list[PlannedGroup], budget: int) -> list[list[PlannedGroup]]:
    """Consecutive micro-batches whose padded size (items x longest) stays within the budget."""
    micro: list[list[PlannedGroup]] = []
    longest = 0
    for item in share:
        widest = max(longest, item.tokens)
        if micro and widest * (len(micro[-1]) + 1) <= budget:
            micro[-1].append(item)
            longest = widest
        else:
            micro.append([item])
            longest = item.tokens
    return micro


def _fill_joined(share: list[PlannedGroup], budget: int) -> list[list[PlannedGroup]]:
    """Micro-batches whose tokens stay within the budget: each item goes into the first one with room for it, so that
    text fills the room that pictures leave."""
    micro: list[list[PlannedGroup]] = []
    room: list[int] = []
    for item in share:
        at = next((j for j, left in enumerate(room) if item.tokens <= left), len(micro))
        if at == len(micro):
            micro.append([])
            room.append(budget)
        micro[at].append(item)
        room[at] -= item.tokens
    return micro


def _spread(micro: list[list[PlannedGroup]], count: int) -> tuple[tuple[PlannedGroup, ...], ...]:
    """Halves the fullest micro-batches until there are `count`. Where none can be halved, anchors follow at the end."""
    while len(micro) < count:
        at = max(range(len(micro)), key=lambda j: (len(micro[j]), -j), default=-1)
        if at < 0 or len(micro[at]) < 2:
            break
        half = (len(micro[at]) + 1) // 2
        micro[at : at + 1] = [micro[at][:half], micro[at][half:]]
    return tuple(tuple(m) for m in micro) + ((),) * (count - len(micro))
