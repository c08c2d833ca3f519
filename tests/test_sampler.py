"""The sampler: every record once per epoch, contiguous blocks of rows, groups that span ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.sampler import epoch_order, step_batch


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_each_record_once_per_epoch(records, prompts, seed, epochs):
    steps = -(-epochs * records // prompts)
    seen = [r for step in range(steps) for r in step_batch(step, records, prompts, 2, 1, seed).records]
    for epoch in range(epochs):
        assert Counter(seen[epoch * records : (epoch + 1) * records]) == Counter(range(records))


def test_orders_differ_by_epoch_and_seed():
    orders = {epoch_order(seed, epoch, 50) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert epoch_order(1, 2, 50) == epoch_order(1, 2, 50)


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 8), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_ranks_share_the_rows(prompts, group_size, world, step):
    rows = step_batch(step, 23, prompts, group_size, world, 0)
    assert [r for rank in range(world) for r in rows.rows(rank)] == list(range(prompts * group_size))
    assert rows.starts[0] == 0 and rows.starts[-1] == rows.num_rows == prompts * group_size
    assert rows.counts == [len(rows.rows(rank)) for rank in range(world)]
    assert max(rows.counts) - min(rows.counts) <= 1
    assert len(rows.records) == rows.num_groups == prompts
    assert rows.offsets == [g * group_size for g in range(prompts + 1)]
    for group in range(prompts):
        held = range(rows.offsets[group], rows.offsets[group + 1])
        assert {rows.group_of(row) for row in held} == {group}
        assert held[0] in rows.rows(rows.owner(group))
    assert sorted(g for rank in range(world) for g in rows.owned(rank)) == list(range(prompts))


def test_a_group_spans_ranks():
    rows = step_batch(0, 10, 3, 4, 2, 0)
    assert rows.starts == (0, 6, 12)
    assert [rows.owner(g) for g in range(3)] == [0, 0, 1]
    assert {rank for rank in range(2) for row in rows.rows(rank) if rows.group_of(row) == 1} == {0, 1}


def test_more_ranks_than_rows():
    rows = step_batch(0, 10, 1, 2, 4, 0)
    assert sorted(rows.counts) == [0, 0, 1, 1] and sum(rows.counts) == 2
    assert [len(rows.owned(rank)) for rank in range(4)].count(1) == 1


def test_records_do_not_depend_on_the_ranks():
    assert {step_batch(7, 30, 8, 4, world, 3).records for world in (1, 2, 3, 8)} == {
        step_batch(7, 30, 8, 4, 1, 3).records
    }


def test_a_step_may_cross_epochs():
    rows = step_batch(1, 5, 4, 2, 1, 0)
    assert rows.records == (epoch_order(0, 0, 5)[4], *epoch_order(0, 1, 5)[:3])
    assert rows.epoch == 8 / 5


def test_unshuffled_order_is_that_of_the_source():
    steps = [step_batch(s, 5, 3, 2, 2, 0, shuffle=False).records for s in range(3)]
    assert steps == [(0, 1, 2), (3, 4, 0), (1, 2, 3)]


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_records_that_join_a_step_have_no_rows(prompts, group_size, world, extra):
    own = step_batch(3, 23, prompts, group_size, world, 0)
    rows = replace(own, records=own.records + tuple(range(extra)), extra=extra)
    assert rows.num_rows == own.num_rows and rows.num_groups == prompts + extra
    assert rows.offsets == own.offsets + [own.num_rows] * extra
    assert [rows.owner(g) for g in range(prompts)] == [own.owner(g) for g in range(prompts)]
    owners = [rows.owner(g) for g in range(prompts, prompts + extra)]
    assert owners == sorted(owners) and set(owners) <= set(range(world))  # in rank order, as they are gathered
    counts = [owners.count(rank) for rank in range(world)]
    assert max(counts) - min(counts) <= 1
