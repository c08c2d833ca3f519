"""All groups of a micro-batch in one sequence, for tiny checkpoints of every family: exact, with and without gradient
checkpointing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from dyme.batching.packing import pack
from tests.helpers.groups import NONE, groups
from tests.helpers.packed import assert_close, gradients, packed_logprobs, separate_logprobs


@pytest.fixture(autouse=True)
def trees_only(opened) -> None:
    if not opened[0].packs_trees:
        pytest.skip("trains padded rows")


def test_joined_trees_equal_separate_rows(opened):
    """Log-probabilities and every parameter's gradient in float64 (norms and rotary positions run in float32), the
    backward pass with gradient checkpointing too."""
    family, model = opened
    model = copy.deepcopy(model).double()
    sequences = groups(family)
    batch = pack(family, sequences, NONE, joined=True)
    assert len(batch.input_ids) == 1 and batch.input_ids.shape[1] % 128 == 0
    together = packed_logprobs(family, model, batch)
    apart = torch.cat([separate_logprobs(family, model, p, b) for p, branches in sequences for b in branches])
    assert (together - apart).abs().max() < 1e-6
    weights = torch.linspace(-1.0, 1.0, len(together), dtype=torch.float64)
    expected = gradients(model, (weights * apart).sum())
    assert_close(gradients(model, (weights * together).sum()), expected)
    model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_close(gradients(model, (weights * packed_logprobs(family, model, batch)).sum()), expected)
    mixed = replace(batch, layout=replace(batch.layout, tree=None))
    assert (packed_logprobs(family, model, mixed) - apart).abs().max() > 1e-3, "the check cannot fail"


def test_an_anchor_in_a_joined_sequence_changes_nothing(opened):
    family, model = opened
    sequences = groups(family)
    everything = set(gradients(model, packed_logprobs(family, model, pack(family, sequences, NONE, joined=True)).sum()))
    for held in ([], sequences[1:2]):
        batch = pack(family, held, family.modalities, joined=True)
        grads = gradients(model, packed_logprobs(family, model, batch).sum())
        assert set(grads) == everything and all(torch.isfinite(g).all() for g in grads.values())
    alone = packed_logprobs(family, model, pack(family, sequences[1:2], NONE))
    anchored = packed_logprobs(family, model, pack(family, sequences[1:2], family.modalities, joined=True))
    assert (alone - anchored).abs().max() < 1e-5
