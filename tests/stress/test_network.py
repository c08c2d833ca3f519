"""The claim that the network program rests on: collectives of a step do not grow with K or the prompts."""

from __future__ import annotations

import json
from collections import Counter

import pytest


def case(prompts: int, group_size: int, explore: bool, token_budget: int = 8192) -> dict:
    return {"prompts": prompts, "group_size": group_size, "explore": explore, "token_budget": token_budget}


ONE_MICRO_BATCH = [case(2, 2, False), case(8, 2, False), case(2, 8, False), case(2, 2, True), case(6, 8, True)]
GROWING = [case(2 * n, 2, False, token_budget=1) for n in (2, 3, 4)]  # every reference alone: n micro-batches a rank


@pytest.mark.dist
@pytest.mark.parametrize("stage", [2, 3])
def test_collectives_are_constant_in_group_size_and_prompts(tmp_path, run_ranks, stage):
    (tmp_path / "cases.json").write_text(json.dumps(ONE_MICRO_BATCH + GROWING))
    run_ranks(2, "collectives", tmp_path, str(stage), tmp_path / "cases.json")
    ranks = [json.loads((tmp_path / f"counts{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1], "ranks ran different collectives"
    assert [found["micro"] for found in ranks[0]] == [1] * len(ONE_MICRO_BATCH) + [2, 3, 4]
    counts = []
    for found in ranks[0]:
        first, second = (Counter(calls) for calls in found["calls"])
        assert first == second
        counts.append(first)
    same, (two, three, four) = counts[: len(ONE_MICRO_BATCH)], counts[len(ONE_MICRO_BATCH) :]
    assert all(found == same[0] for found in same), same
    assert sum(same[0].values()) > 10
    per_micro_batch = sum(three.values()) - sum(two.values())
    assert sum(four.values()) - sum(three.values()) == sum(two.values()) - sum(same[0].values()) == per_micro_batch
    assert per_micro_batch > 0
    print(f"ZeRO-{stage}: {dict(same[0])}, {per_micro_batch} more a micro-batch: {dict(three - two)}")
