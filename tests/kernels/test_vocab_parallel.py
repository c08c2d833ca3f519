"""The loss with a sharded vocabulary against the unsharded one, on real ranks."""

from __future__ import annotations

import pytest
import torch

from dyme_kernels import Shard, vocab_parallel_linear_policy_loss


@pytest.mark.dist
@pytest.mark.parametrize(("ranks", "backend"), [(2, "torch"), (4, "torch"), (2, "triton")])
def test_equals_the_unsharded_loss(run_ranks, ranks, backend):
    assert f"cases equal on {ranks} ranks" in run_ranks(ranks, "vocab_parallel", backend)


def test_a_weight_that_is_not_the_shards_is_an_error():
    one = torch.ones(2)
    with pytest.raises(ValueError, match="weight has 9 rows, the shard 5"):
        vocab_parallel_linear_policy_loss(
            torch.ones(2, 4), torch.ones(9, 4), torch.zeros(2, dtype=torch.int64), one, one, Shard(None, 0, 5, 9, 5)
        )
