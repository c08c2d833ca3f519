"""Schedule: when a run evaluates, saves and stops, decided alike on all ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch.distributed as dist

from dyme import schedule as module
from dyme.schedule import Schedule, Stop


@pytest.fixture
def make(monkeypatch):
    """Schedules that no signal of this process reaches."""
    monkeypatch.setattr(module, "Preemption", lambda: SimpleNamespace(asked=""))

    def make(**settings: object) -> Schedule:
        run = {
            "max_minutes": 2.0,
            "max_skipped_updates": 3,
            "eval_every": 4,
            "save_every": 3,
            "save_every_minutes": 0.0,
        }
        run |= settings
        train = SimpleNamespace(max_steps=10, component_norms_every=run.pop("component_norms_every", 0))
        return Schedule(SimpleNamespace(run=SimpleNamespace(**run), train=train))

    return make


def votes_of(*others: float):
    """An all_reduce with other ranks; notes what this rank voted."""
    own: list[float] = []

    def all_reduce(values, op):
        assert op is dist.ReduceOp.MAX
        own.extend(values)
        return [max([*values, *others])]

    return all_reduce, own


@pytest.mark.parametrize(
    ("elapsed", "asked", "others", "vote", "stop"),
    [
        (10.0, "", [0.0], 0.0, None),
        (120.0, "", [0.0], 0.0, None),  # the limit itself is still in time
        (120.5, "", [0.0], 1.0, Stop.TIME),
        (10.0, "", [1.0], 0.0, Stop.TIME),  # a rank whose clock is ahead
        (10.0, "SIGTERM", [0.0], 2.0, Stop.PREEMPTED),
        (10.0, "", [0.0, 2.0], 0.0, Stop.PREEMPTED),
        (500.0, "SIGTERM", [0.0], 2.0, Stop.PREEMPTED),  # the gravest of a rank, and of all
        (500.0, "", [2.0], 1.0, Stop.PREEMPTED),
    ],
)
def test_ranks_vote_to_stop(make, elapsed, asked, others, vote, stop):
    schedule = make()
    schedule.preemption.asked = asked
    all_reduce, own = votes_of(*others)
    assert schedule.must_stop(elapsed, all_reduce) is stop
    assert own == [vote]


def test_without_a_limit_time_never_ends_a_run(make):
    all_reduce, own = votes_of()
    assert make(max_minutes=None).must_stop(1e9, all_reduce) is None and own == [0.0]


def test_updates_skipped_in_a_row_break_a_run(make):
    schedule = make()
    for applied in (False, False, True, False, False):
        schedule.updated(applied=applied)
    all_reduce, own = votes_of(2.0)
    assert schedule.skipped_in_a_row == 2 and schedule.must_stop(0.0, all_reduce) is Stop.PREEMPTED
    schedule.updated(applied=False)
    assert schedule.must_stop(0.0, all_reduce) is Stop.BROKEN  # graver than what anybody votes
    assert own == [0.0, 0.0]  # one collective all the same: the others wait in it


def test_when_an_evaluation_is_due(make):
    schedule = make()
    assert [step for step in range(1, 11) if schedule.must_evaluate(step)] == [4, 8]
    assert not any(make(eval_every=0).must_evaluate(step) for step in range(1, 11))


@pytest.mark.parametrize(
    ("step", "evaluated", "lacks"),
    [(0, -1, True), (4, 4, False), (4, 0, True), (5, 4, False), (5, 0, False), (10, 8, True), (10, 10, False)],
)
def test_a_resumed_run_makes_up_for_an_evaluation_that_was_given_up(make, step, evaluated, lacks):
    schedule = make()
    schedule.evaluated = evaluated
    assert schedule.lacks_evaluation(step) is lacks


def test_a_checkpoint_that_is_due_waits_for_an_applied_update(make):
    schedule = make()
    saved = []
    for step, applied in enumerate([True, True, False, False, True, True, True], start=1):
        schedule.updated(applied=applied)
        if schedule.must_save(step):
            saved.append(step)
            schedule.saved()
    assert saved == [5, 6]  # due at 3, while updates were skipped, and at 6
    assert not make(save_every=0).must_save(3)


def test_components_are_measured_every_few_steps(make):
    schedule = make(component_norms_every=3)
    assert [step for step in range(7) if schedule.measures_components(step)] == [0, 3, 6]
    assert not make().measures_components(0)


def test_a_checkpoint_is_due_by_time_on_all_ranks_together(make, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    schedule = make(save_every=0, save_every_minutes=10.0)
    sent: list[list[float]] = []

    def vote(*others: float) -> None:
        def all_reduce(values, op):
            sent.append(values)
            return [max(pair) for pair in zip(values, others or values, strict=True)]

        assert schedule.must_stop(1.0, all_reduce) is None

    vote()
    assert not schedule.must_save(1)
    vote(0.0, 1.0)  # another rank's clock is ahead
    assert schedule.must_save(2)
    now[0] += 599
    schedule.saved()
    now[0] += 599
    vote()
    assert not schedule.must_save(3)
    now[0] += 1
    vote()
    assert schedule.must_save(4) and schedule.must_save(4)
    assert sent == [[0, 0.0], [0, 0.0], [0, 0.0], [0, 1.0]]
