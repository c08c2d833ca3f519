"""The rollout copy: what the weights give to the bit, gathered a layer at a time, in host memory where asked."""

from __future__ import annotations

import json

import pytest
import torch

from dyme.engine.lora import Source
from dyme.engine.rollout_copy import RolloutCopy, Weight, buckets, layer_size
from tests.helpers import scenario


@pytest.mark.dist
def test_the_copy_is_what_the_gathered_weights_give(tmp_path, run_ranks):
    """Two steps on two ranks: ZeRO-2 and 3, with and without LoRA, float32 and bfloat16, offloaded or not."""
    run_ranks(2, "copies", tmp_path)
    ranks = [json.loads((tmp_path / f"copies{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == 10
    for a, b in zip(*ranks, strict=True):
        assert a["gathers"] == b["gathers"], "ranks gathered different weights"
    for result in ranks[0] + ranks[1]:
        stage, lora, dtype, offload = result["case"]
        assert result["wrong"] == [] and result["moved"] > 0, result["case"]
        assert result["dtypes"] == [{"fp32": "torch.float32", "bf16": "torch.bfloat16"}[dtype]]
        assert result["parked"] == [offload] * 2, "an update begins with the copy off the device, or leaves it there"
        assert result["again"] == 0
        assert any("vision" in name for name in result["frozen"]) and result["loaded"] == []
        assert not any("q_proj" in name and "text_model" in name for name in result["frozen"])
        if stage == 2:
            assert result["gathers"] == []
            continue
        assert max(map(sum, result["gathers"])) <= max(*result["layers"], 0 if lora else result["largest"])
        assert len(result["gathers"]) >= len(result["layers"])
        if lora:  # the adapted Linears and their adapters alone, one layer after the other
            assert [len(sizes) for sizes in result["gathers"]] == [2 * 3] * len(result["layers"])


def weight(size: int, layer: int) -> Weight:
    return Weight(Source(torch.zeros(size)), torch.zeros(size), layer)


def test_buckets_follow_the_layers():
    """Sizes in float32: an embedding larger than a layer goes alone, small neighbours go together."""
    weights = [weight(n, layer) for n, layer in ((2, -1), (3, -1), (40, -1), (1, -1), (4, 0), (5, 0), (6, 1), (9, -1))]
    cap = layer_size(weights)
    assert cap == 4 * 9
    sizes = [[w.target.numel() for w in bucket] for bucket in buckets(weights, cap)]
    assert sizes == [[2, 3], [40], [1], [4, 5], [6], [9]]
    assert buckets([], cap) == []


def test_offload_leaves_the_device_and_comes_back():
    family, model, _ = scenario.build()
    rollout = RolloutCopy(family, model, torch.device("cpu"), offload=True)
    assert not rollout.model.training and not any(p.requires_grad for p in rollout.model.parameters())
    host = [p.data_ptr() for p in rollout.model.parameters()]

    def equal() -> bool:
        return all(torch.equal(a, b) for a, b in zip(rollout.model.parameters(), model.parameters(), strict=True))

    assert rollout.place() is rollout.model and equal()
    placed = [p.data_ptr() for p in rollout.model.parameters()]
    assert set(host).isdisjoint(placed)
    assert [p.data_ptr() for p in rollout.place().parameters()] == placed, "moved twice"
    rollout.park()
    assert [p.data_ptr() for p in rollout.model.parameters()] == host
    with torch.no_grad():
        model.lm_head.weight += 1
    rollout.begin_refresh()
    assert [p.data_ptr() for p in rollout.model.parameters()] == host, "a refresh needs no room on the device"
    rollout.place()
    assert equal() and rollout.model.lm_head.weight is rollout.model.model.text_model.embed_tokens.weight
    rollout.outdated()
    with torch.no_grad():
        model.lm_head.weight += 1
    rollout.begin_refresh()  # while it is on the device
    assert rollout.place() is rollout.model and equal()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", [False, True])
def test_a_refresh_beside_the_default_stream_on_a_gpu(offload):
    """Weights that are still being written when it begins, and written again as soon as it is waited for."""
    family, model, _ = scenario.build()
    device = torch.device("cuda", torch.cuda.current_device())
    model.cuda()
    rollout = RolloutCopy(family, model, device, offload=offload)
    busy = torch.randn(4096, 4096, device=device)
    for _ in range(4):
        rollout.wait()
        with torch.no_grad():
            for _ in range(10):
                busy = (busy @ busy).clamp(-1, 1)
            for p in model.parameters():
                p += 1 + 0 * busy[0, 0]
        rollout.outdated(whole=True)
        rollout.begin_refresh()
        placed = rollout.place()
        assert all(torch.equal(a, b) for a, b in zip(placed.parameters(), model.parameters(), strict=True))
        assert all(p.is_cuda for p in placed.parameters())
        rollout.park()
        assert all(p.is_pinned() == offload and p.is_cuda != offload for p in placed.parameters())


def test_without_offload_it_stays_where_it_is():
    family, model, _ = scenario.build()
    rollout = RolloutCopy(family, model, torch.device("cpu"), offload=False)
    placed = [p.data_ptr() for p in rollout.place().parameters()]
    rollout.park()
    rollout.begin_refresh()
    assert [p.data_ptr() for p in rollout.place().parameters()] == placed
