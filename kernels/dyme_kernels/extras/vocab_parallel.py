"""The fused loss with the head's weight sharded over a process group by vocabulary, as in Megatron-LM (1909.08053).

Every rank of the group holds the same hidden states and a block of rows of the weight. Per chunk of tokens the ranks
exchange five numbers a token; the logits of a token never leave their rank, and neither does the weight's gradient. The
gradient of the hidden states is summed over the group once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dyme_kernels.dispatch import row_kernels
from dyme_kernels.linear import check_head, chunk_rows, loss_in_chunks, under_autocast
from dyme_kernels.rows import Head, RowKernels, RowLosses, RowStats, losses_in_two_steps
from dyme_kernels.spec import LossSpec
from dyme_kernels.tokens import PolicyLossOutput, TokenBatch, compute_dtype, make_batch


@dataclass(frozen=True)
class Shard:
    """A rank's block of the vocabulary: rows first..first+size-1 of the weight, of `vocabulary` in all.

    `widest`: size of the group's largest block, from which all ranks derive the same chunks of tokens.
    """

    group: dist.ProcessGroup | None
    first: int
    size: int
    vocabulary: int
    widest: int


def vocabulary_shard(vocabulary: int, group: dist.ProcessGroup | None = None) -> Shard:
    """An even split of the vocabulary over a group (None is the default group); earlier ranks take the remainder."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    base, more = divmod(vocabulary, ranks)
    first = rank * base + min(rank, more)
    return Shard(group, first, base + (rank < more), vocabulary, base + (more > 0))


def vocab_parallel_linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    weights: Tensor,
    shard: Shard,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    memorize: Tensor | None = None,
    importance: Tensor | None = None,
    segments: Tensor | None = None,
    live: Tensor | None = None,
    bias: Tensor | None = None,
    spec: LossSpec = LossSpec(),  # noqa: B008  frozen
    logits_budget_mb: float = 256,
    backend: str = "auto",
) -> PolicyLossOutput:
    """`linear_policy_loss` with weight [shard.size, H] and bias [shard.size], this rank's rows of the head.

    hidden [N,H], targets [N] (numbers of the whole vocabulary) and all other vectors are the same on every rank of the
    group, and so are the loss, its statistics and hidden's gradient. Collective: all ranks of the group call it
    together, with the same budget.

    Raises ValueError naming the argument, as `linear_policy_loss` does, and for a weight that is not the shard's.
    """
    if weight.shape[0] != shard.size:
        raise ValueError(
            f"weight has {weight.shape[0]} rows, the shard {shard.size} (from {shard.first} of {shard.vocabulary}): "
            "pass this rank's rows"
        )
    vectors = (targets, advantages, weights, old_logprobs, ref_logprobs, memorize, importance, segments)
    hidden, weight, bias = under_autocast(hidden, weight, bias)
    check_head(hidden, weight, bias, logits_budget_mb)
    rows = ShardedRows(row_kernels(backend, "vocab_parallel_linear_policy_loss", hidden), shard)
    batch = make_batch(hidden.shape[0], compute_dtype(hidden.dtype), shard.vocabulary, vectors, live, spec)
    chunk = chunk_rows(hidden, shard.widest, logits_budget_mb)
    return loss_in_chunks(hidden, weight, bias, batch, live, spec, rows, chunk, rows.sum_hidden)


@dataclass(frozen=True)
class ShardedRows:
    """The row functions of a backend over a sharded vocabulary, with the signatures of torch_rows.py. Statistics are
    those of the whole row; gradients those of this rank's columns."""

    kernels: RowKernels
    shard: Shard

    def row_statistics(
        self, logits: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, rows: Tensor | None = None
    ) -> RowStats:
        local = self._local(targets)
        mine = local >= 0
        part = self.kernels.row_statistics(logits, local, inverse, head, rows)
        top = part.top.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self.shard.group)
        # everything below is relative to the largest logit of the whole row
        shift = torch.where(part.top == top, 0.0, part.top - top) * inverse
        fade = shift.exp()
        log_total = part.total.log()
        chosen = torch.where(mine, part.logprobs + log_total + shift, 0.0)
        total = part.total * fade
        # H = log total - moment / total, for a shard as for the whole
        moment = total * (log_total - part.entropy + shift)
        match = part.argmax_match * (mine & (part.top == top))
        sums = torch.stack([total, moment, chosen, match.to(total.dtype)])
        dist.all_reduce(sums, group=self.shard.group)
        total, moment, chosen, match = sums.unbind()
        return RowStats(chosen - total.log(), total.log() - moment / total, match, top, total)

    def row_gradient(
        self, logits: Tensor, out: Tensor, targets: Tensor, inverse: Tensor | float, head: Head, stats: RowStats,
        logprob_grad: Tensor, entropy_grad: Tensor | None, rows: Tensor | None = None,
    ) -> None:  # fmt: skip
        local = self._local(targets)
        self.kernels.row_gradient(logits, out, local, inverse, head, stats, logprob_grad, entropy_grad, rows)

    def row_losses(
        self, logits: Tensor, out: Tensor | None, tokens: TokenBatch, spec: LossSpec, head: Head,
        rows: Tensor | None = None,
    ) -> RowLosses:  # fmt: skip
        return losses_in_two_steps(self.row_statistics, self.row_gradient, logits, out, tokens, spec, head, rows)[0]

    def sum_hidden(self, gradient: Tensor) -> None:
        """Adds up the gradients that the ranks' columns give to the hidden states."""
        dist.all_reduce(gradient, group=self.shard.group)

    def _local(self, targets: Tensor) -> Tensor:
        """Targets as numbers of this shard, -1 for those of other ranks."""
        local = targets - self.shard.first
        return local.masked_fill((local < 0) | (local >= self.shard.size), -1)
