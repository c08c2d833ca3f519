"""The plan: every sequence once, equal micro-batches and modules on all ranks, balance, determinism, splitting."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.batching.plan import make_plan

IMAGE, NONE = frozenset({"image"}), frozenset()


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 12))
    prompts = draw(st.lists(st.integers(1, 60), min_size=groups, max_size=groups))
    modalities = draw(st.lists(st.sampled_from([IMAGE, NONE]), min_size=groups, max_size=groups))
    rows = draw(st.lists(st.tuples(st.integers(0, groups - 1), st.integers(1, 40)), max_size=40))
    rows.sort(key=lambda r: r[0])
    world = draw(st.sampled_from([1, 2, 3, 4, 8]))
    budget = draw(st.integers(1, 400))
    return [g for g, _ in rows], [n for _, n in rows], prompts, modalities, world, budget


@given(problems(), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_properties(problem, share_prompt, needs_image, joined):
    groups, lengths, prompts, modalities, _, budget = problem
    first = IMAGE if needs_image else NONE
    options = {"first_modules": first, "share_prompt": share_prompt, "joined": joined}
    plan = make_plan(*problem, **options)
    assert plan == make_plan(*problem, **options) and plan.joined == joined  # deterministic
    placed = [row for rank in plan.micro_batches for micro in rank for item in micro for row in item.sequences]
    assert sorted(placed) == list(range(len(groups)))  # every sequence exactly once
    assert {len(rank) for rank in plan.micro_batches} == {plan.num_micro_batches}  # equal counts on all ranks
    assert (plan.num_micro_batches == 0) == (not groups)
    for j in range(plan.num_micro_batches):
        assert any(rank[j] for rank in plan.micro_batches)  # no micro-batch is empty everywhere
        held = [modalities[item.group] for rank in plan.micro_batches for item in rank[j]]
        assert plan.modules[j] == frozenset().union(*held, first if j == 0 else NONE)
    for rank in plan.micro_batches:
        for micro in rank:
            for item in micro:
                assert {groups[r] for r in item.sequences} == {item.group}
                assert item.tokens == prompts[item.group] + sum(lengths[r] for r in item.sequences)
                assert share_prompt or len(item.sequences) == 1
                assert item.tokens <= budget or len(item.sequences) == 1
            if micro:
                sizes = [i.tokens for i in micro]
                assert (sum(sizes) if joined else max(sizes) * len(sizes)) <= budget or len(micro) == 1


@given(problems())
@settings(max_examples=200, deadline=None)
def test_balance(problem):
    """No rank has more than the mean plus one item: the bound of longest-processing-time-first."""
    world = problem[4]
    plan = make_plan(*problem)
    items = [item for rank in plan.micro_batches for micro in rank for item in micro]
    loads = [plan.tokens(rank) for rank in range(world)]
    if items:
        assert max(loads) <= sum(loads) / world + max(item.tokens for item in items)
        splittable = any(len(item.sequences) > 1 for item in items)
        assert min(loads) > 0 or not splittable  # a rank idles only when nothing is left to split
    assert sum(loads) == sum(item.tokens for item in items) and len(loads) == world


def test_one_group_is_split_over_ranks():
    plan = make_plan([0] * 8, [10] * 8, [100], [IMAGE], 4, 10_000)
    assert [sum(len(i.sequences) for m in rank for i in m) for rank in plan.micro_batches] == [2, 2, 2, 2]
    assert [plan.tokens(rank) for rank in range(4)] == [120] * 4  # the prompt is repeated


def test_group_over_the_budget_is_split():
    plan = make_plan([0] * 6, [50] * 6, [100], [NONE], 1, 250)
    assert [[i.sequences for i in m] for m in plan.micro_batches[0]] == [[(0, 1, 2)], [(3, 4, 5)]]


def test_joined_groups_share_the_budget():
    """Padded to the longest, no two of them fit into the budget; as one sequence text fills up what pictures leave."""
    sizes, modalities = [150, 60, 140, 50], [IMAGE, NONE, IMAGE, NONE]
    problem = ([0, 1, 2, 3], [10] * 4, [n - 10 for n in sizes], modalities, 1, 210)
    padded, joined = make_plan(*problem), make_plan(*problem, joined=True)
    assert [[i.group for i in m] for m in padded.micro_batches[0]] == [[0], [2], [1, 3]]
    assert [[i.group for i in m] for m in joined.micro_batches[0]] == [[0, 1], [2, 3]]
    assert joined.modules == (IMAGE, IMAGE)


def test_rank_without_rows_runs_the_same_micro_batches():
    plan = make_plan([0], [5], [10], [IMAGE], 2, 100)
    assert plan.micro_batches == (((plan.micro_batches[0][0][0],),), ((),))
    assert plan.modules == (IMAGE,)


def test_image_work_comes_first():
    plan = make_plan([0, 1, 2, 3], [5] * 4, [90, 10, 95, 11], [NONE, IMAGE, NONE, IMAGE], 1, 100)
    assert plan.modules[0] == IMAGE and plan.modules[-1] == NONE


def test_order_of_rows_does_not_matter_for_the_load():
    rng = random.Random(0)
    rows = [(g, rng.randint(1, 30)) for g in range(6) for _ in range(4)]
    loads = set()
    for _ in range(3):
        within = sorted(rows, key=lambda r: (r[0], rng.random()))
        plan = make_plan([g for g, _ in within], [n for _, n in within], [20] * 6, [NONE] * 6, 2, 10_000)
        loads.add(tuple(sorted(plan.tokens(r) for r in range(2))))
    assert len(loads) == 1
