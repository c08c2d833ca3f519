"""Stages on two ranks: what each finds, holds and gathers, in a step whose middle group spans both."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dyme import stages
from dyme.batching.objective import TrainSequence, TrainSequences
from dyme.config import RunConfig, load_config
from dyme.data import Record
from dyme.families import IMAGE, Prompt
from dyme.metrics.columns import RolloutColumns
from dyme.rewards.calls import Failures
from dyme.rewards.compose import Scores, UserScores
from dyme.rollout.types import Rollout
from dyme.sampler import StepBatch
from dyme.selectors import make_selector
from dyme.selectors.base import Mode, ModeDecision, Reason
from tests.helpers.ranks import FakeEngine, on_ranks
from tests.helpers.runs import write_config

RECORDS = [
    Record("long", "How many?", ("4",), hint="The red bar shows 4.", kind="count"),
    Record("broken", "How many?", ("7",), hint="The blue bar shows 7."),
    Record("seen", "How many?", ("9",), hint="The green bar shows 9.", kind="value"),
    Record("bare", "How many?", ("2",)),
]
PROMPTS = {
    "long": Prompt(torch.arange(8)),
    "broken": None,
    "seen": Prompt(torch.arange(5), {"pixel_values": torch.zeros(1)}),
    "bare": Prompt(torch.arange(3)),
}
# records seen, long and broken; the group of "long" has its first row on rank 0, so that rank owns it
BATCH = StepBatch((2, 0, 1), 3, (0, 4, 9), 0.1, step=5)
SEEN, LONG = frozenset({IMAGE}), frozenset[str]()
TABLE = stages.PromptTable(torch.tensor([True, True, False]), [5, 8, 0], [SEEN, LONG, LONG])
CACHE = SimpleNamespace(encode=lambda record: PROMPTS[record.id])
FAMILY = SimpleNamespace(
    modalities=SEEN, packs_trees=True, encode_reply=lambda text: [len(text), *text.encode()[-1:], 1]
)


def config(tmp_path, **changes: object) -> RunConfig:
    return load_config(write_config(tmp_path, train__max_steps=10, **changes))


def decision(*modes: Mode, share: float = 1.0) -> ModeDecision:
    ones = torch.ones(len(modes), dtype=torch.float64)
    mode = torch.tensor([int(mode) for mode in modes])
    return ModeDecision(mode, ones, share * ones, torch.zeros_like(mode))


def gathered(correct: list[float], **changes: list[float]) -> RolloutColumns:
    """Columns of nine rows that are all scored, of 2 tokens each; entropy is known."""
    columns = {"correct": correct, "reward": correct, "format": [1.0] * 9, "scored": [1.0] * 9}
    columns |= {"length": [2.0] * 9, "truncated": [0.0] * 9, "entropy": [0.5] * 9, "thinking": [0.0] * 9}
    named = {name: torch.tensor(values, dtype=torch.float64) for name, values in (columns | changes).items()}
    return RolloutColumns(named)


def test_prompts_are_encoded_by_their_owner_and_known_everywhere():
    encoded: dict[int, list[str]] = {0: [], 1: []}

    def stage(engine: FakeEngine) -> stages.PromptTable:
        def encode(record: Record) -> Prompt | None:
            encoded[engine.rank].append(record.id)
            return PROMPTS[record.id]

        return stages.prompts(engine, SimpleNamespace(encode=encode), RECORDS, BATCH)

    for table in on_ranks(2, stage, family=FAMILY):
        assert table.readable.tolist() == [True, True, False]
        assert table.lengths == [5, 8, 0] and table.modalities == [SEEN, LONG, LONG]
    assert encoded == {0: ["seen", "long"], 1: ["broken"]}


def scoring(rank: int, failures: Failures) -> SimpleNamespace:
    """Rows of "broken" have no completion; row 4, on rank 1, could not be verified."""
    rows = {0: [0, 1, 2, 3], 1: [4, 5]}[rank]
    scored = np.array([row != 4 for row in rows])
    correct = np.where(scored, [float(row % 2) for row in rows], np.nan)
    scores = Scores(np.ones(len(rows)), np.full(len(rows), 0.25), correct, correct + 1, correct, scored, {})
    user = UserScores(np.array([[10.0 * row] for row in rows]), np.zeros((len(rows), 1), dtype=bool), (1.0,))
    if not scored.all():
        failures.note({"verifier: ValueError": 1}, {"verifier: ValueError": "no number"})
    return SimpleNamespace(
        rollouts={row: Rollout((1, 2, 3)[: 1 + row % 2], truncated=row == 5) for row in rows},
        result=lambda: (rows, scores, user),
        scorer=SimpleNamespace(user_rewards=SimpleNamespace(titles=("own",))),
    )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_every_rank_gathers_the_scores_of_all_rows(tmp_path, weight):
    cfg = config(tmp_path, reward={"length": weight})
    failures, said = [Failures(), Failures()], [[], []]

    def stage(engine: FakeEngine) -> RolloutColumns:
        own = scoring(engine.rank, failures[engine.rank])
        own.scorer.failures, own.scorer.cfg = failures[engine.rank], cfg
        local = stages.score(BATCH, engine.rank, own)
        return stages.gather(engine, own.scorer, RECORDS, BATCH, local, said[engine.rank].append)

    for columns in on_ranks(2, stage):
        assert columns["scored"].tolist() == [1, 1, 1, 1, 0, 1, 0, 0, 0]
        assert columns["correct"].nan_to_num(-1).tolist() == [0, 1, 0, 1, -1, 1, 0, 0, 0]
        assert columns["length"].tolist() == [1, 2, 1, 2, 1, 2, 0, 0, 0]
        assert columns["truncated"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]
        assert columns["stopped"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0]
        assert columns["thinking"].tolist() == [0.25] * 6 + [0] * 3
        assert columns["user/own"].nan_to_num(-1).tolist() == [0, 10, 20, 30, 40, 50, -1, -1, -1]
        assert columns.kinds == ("value",) * 3 + ("count",) * 3 + ("",) * 3
        assert ("length_reward" in columns.values) == (weight > 0)
    assert [f.counts for f in failures] == [{"verifier: ValueError": 1}] * 2
    assert all("no number" in lines[0] and len(lines) == 1 for lines in said)


def select(cfg, selector, *columns, batch=BATCH) -> list[tuple]:
    """Decision and statistics of every rank, each with columns of its own."""

    def stage(engine: FakeEngine) -> tuple:
        return stages.select(cfg, engine, selector, RECORDS, batch, columns[engine.rank], TABLE)

    return on_ranks(len(columns), stage)


def test_rank_0_decides_where_ranks_compute_otherwise(tmp_path):
    cfg = config(tmp_path)
    first, second = gathered([1.0, 0.0, 0.0] + [0.0] * 6), gathered([0.0] * 3 + [1.0] * 6)
    (chosen, stats), (other, others) = select(cfg, make_selector(cfg.selector), first, second)
    assert chosen.mode.tolist() == other.mode.tolist() == [Mode.EXPLORE, Mode.MEMORIZE, Mode.SKIP]
    assert torch.equal(stats.advantages, others.advantages) and stats.advantages[0] > 0


def test_modes_come_from_gathered_numbers(tmp_path):
    cfg = config(tmp_path)
    selector = make_selector(cfg.selector)
    columns = gathered([1.0, 0.0, 0.0] + [0.0] * 6, entropy=[0.5, 1.5, 1.0] + [0.25] * 6)
    chosen, stats = select(cfg, selector, columns)[0]
    assert chosen.mode.tolist() == [Mode.EXPLORE, Mode.MEMORIZE, Mode.SKIP]
    assert chosen.reason[2] == Reason.UNSCORED  # its prompt could not be read, whatever the columns say
    assert stats is not None
    assert (stats.records, stats.step) == (BATCH.records, 5)
    assert stats.has_demonstration.tolist() == [True, True, False]
    assert stats.num_scored.tolist() == [3, 3, 0] and stats.num_correct.tolist() == [1, 0, 0]
    assert stats.entropy is not None and stats.entropy.tolist() == [1.0, 0.25, 0.25]


def test_the_selector_is_told_the_progress_of_the_run(tmp_path):
    asked: list[float] = []
    selector = SimpleNamespace(select=lambda stats, progress: asked.append(progress))
    select(config(tmp_path), selector, gathered([1.0] * 9))
    assert asked == [0.5]


@pytest.mark.parametrize(("missing", "modes"), [("skip", "MSS"), ("answer", "MMS")])
def test_without_rollouts_every_demonstration_is_memorized(tmp_path, missing, modes):
    """One without a trace is the answer alone, where that is allowed; a record without a prompt never is one."""
    cfg = config(tmp_path, memorize={"on_missing_trace": missing})
    batch = replace(BATCH, records=(2, 3, 1), group_size=1, starts=(0, 1, 3))
    chosen, stats = select(cfg, make_selector(cfg.selector), RolloutColumns(), batch=batch)[0]
    assert stats is None
    assert "".join(Mode(mode).name[0] for mode in chosen.mode.tolist()) == modes


def test_extra_records_join_as_groups_without_rows():
    """Each of the two ranks owns one of them."""
    owned = replace(decision(Mode.EXPLORE, Mode.SKIP, Mode.SKIP), extra_records=(1, 3))

    def stage(engine: FakeEngine) -> tuple[StepBatch, stages.PromptTable, ModeDecision]:
        return stages.join_extra(engine, CACHE, RECORDS, BATCH, TABLE, owned)

    for batch, table, joined in on_ranks(2, stage, family=FAMILY):
        assert batch.records == (2, 0, 1, 1, 3) and batch.num_rows == 9 and batch.starts == BATCH.starts
        assert (batch.owner(3), batch.owner(4)) == (0, 1)
        assert table.readable.tolist() == [True, True, False, False, True] and table.lengths == [5, 8, 0, 0, 3]
        assert table.modalities == [SEEN, LONG, LONG, LONG, LONG]
        assert joined.mode.tolist() == [Mode.EXPLORE, Mode.SKIP, Mode.SKIP, Mode.SKIP, Mode.MEMORIZE]


def test_a_step_without_extra_records_stays_as_it_is():
    chosen = decision(Mode.EXPLORE, Mode.SKIP, Mode.SKIP)
    assert stages.join_extra(None, CACHE, RECORDS, BATCH, TABLE, chosen) == (BATCH, TABLE, chosen)  # no collective


def kept(found: TrainSequences) -> list[tuple[int, int]]:
    return [(each.group, each.completion) for each in found.trained]


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({}, [(0, 0), (0, 2), (1, -1)]),  # row 1 has no advantage, group 2 is skipped
        ({"rollout__truncated": "mask"}, [(0, 0), (1, -1)]),
        ({"objective": {"entropy_coef": 0.1}}, [(0, 0), (0, 1), (0, 2), (1, -1)]),
        ({"objective": {"beta": 0.1}}, [(0, 0), (0, 1), (0, 2), (1, -1)]),
    ],
)
def test_what_trains(tmp_path, changes, trained):
    cfg = config(tmp_path, **changes)
    columns = gathered([0.0] * 9, truncated=[0.0, 0.0, 1.0] + [0.0] * 6)
    advantages = torch.tensor([1.0, 0.0, -1.0] + [0.5] * 6, dtype=torch.float64)
    stats = SimpleNamespace(advantages=advantages)
    found = stages.sequences(cfg, BATCH, columns, decision(Mode.EXPLORE, Mode.MEMORIZE, Mode.SKIP), stats)
    assert kept(found) == trained
    assert len(found.counted) == (3 if "rollout__truncated" in changes else 4)
    assert kept(stages.sequences(cfg, BATCH, RolloutColumns(), decision(*[Mode.MEMORIZE] * 3), None)) == [
        (0, -1),
        (1, -1),
        (2, -1),
    ]


SEQUENCES = (
    TrainSequence(0, 1, -1.0, 1.0),
    TrainSequence(1, 3, 0.5, 1.0),
    TrainSequence(1, 5, -0.5, 1.0),
    TrainSequence(1, -1, 1.0, 0.5),
    TrainSequence(2, -1, 1.0, 1.0),
)
TRAINED = TrainSequences(SEQUENCES, SEQUENCES)


def test_the_owner_of_a_record_refines_its_demonstration():
    for rank, expected in ((0, {1: "long!"}), (1, {2: "broken!"})):
        supervisor = SimpleNamespace(refine=lambda records: [SimpleNamespace(trace=f"{r.id}!") for r in records])
        assert stages.refine(supervisor, RECORDS, BATCH, rank, TRAINED) == expected


def test_tokens_reach_all_ranks_from_those_that_hold_them(tmp_path):
    cfg = config(tmp_path)
    rollouts = [{1: Rollout((11, 12), False), 3: Rollout((31,), False)}, {5: Rollout((51, 52, 53), False)}]
    traces = [{1: "It is."}, {2: "Look."}]

    def stage(engine: FakeEngine) -> dict[TrainSequence, list[int]]:
        own = rollouts[engine.rank], traces[engine.rank]
        return stages.exchange(cfg.prompt, engine, RECORDS, BATCH, *own, TRAINED)

    first, second = on_ranks(2, stage, family=FAMILY)
    assert first == second and list(first) == list(SEQUENCES)
    assert list(first.values()) == [
        [11, 12],
        [31],
        [51, 52, 53],
        [len("It is.\nAnswer: 4"), ord("4"), 1],
        [len("Look.\nAnswer: 7"), ord("7"), 1],
    ]


def test_a_demonstration_that_cannot_be_encoded_is_left_out_on_all_ranks(tmp_path):
    cfg = config(tmp_path)
    rollouts = [{1: Rollout((11, 12), False), 3: Rollout((31,), False)}, {5: Rollout((51, 52, 53), False)}]
    traces = [{1: "\ud83d"}, {2: "Look."}]

    def encode(text: str) -> list[int]:
        text.encode()
        return FAMILY.encode_reply(text)

    def stage(engine: FakeEngine) -> tuple[list[TrainSequence], list[str]]:
        said: list[str] = []
        own = rollouts[engine.rank], traces[engine.rank]
        tokens = stages.exchange(cfg.prompt, engine, RECORDS, BATCH, *own, TRAINED, said.append)
        return list(tokens), said

    (first, said), (second, _) = on_ranks(2, stage, family=SimpleNamespace(encode_reply=encode))
    left = (*SEQUENCES[:3], SEQUENCES[4])
    assert first == second == list(left)
    assert said[0].startswith("demonstration of record ") and "UnicodeEncodeError" in said[0]
    assert TRAINED.without({SEQUENCES[3]}) == TrainSequences(left, left)
    assert TRAINED.without(set()) is TRAINED


def test_the_plan_is_the_same_on_both_ranks(tmp_path):
    """Weights are over all rows of the step, 9, but one of the four that count has no gradient and is not planned."""
    cfg = config(tmp_path, objective={"normalization": "row"})
    idle = TrainSequence(0, 0, 0.0, 1.0)
    chosen = TrainSequences(SEQUENCES[:4], (idle, *SEQUENCES[:4]))
    tokens = {each: [7] * n for each, n in zip(SEQUENCES, (2, 1, 3, 4))}

    def stage(engine: FakeEngine) -> stages.TrainBatch:
        columns = gathered([0.0] * 9)
        modes = decision(Mode.EXPLORE, Mode.JOINT, Mode.SKIP)
        return stages.plan(cfg, engine, CACHE, RECORDS, BATCH, columns, modes, chosen, tokens, TABLE)

    first, second = on_ranks(2, stage, family=FAMILY, trainable_modalities=SEEN, joined=False)
    assert first.plan == second.plan and first.weights == second.weights
    assert first.sequences == SEQUENCES[:4] and list(map(len, first.tokens)) == [2, 1, 3, 4]
    assert first.weights == pytest.approx([1 / (9 * 2), 1 / 9, 1 / (9 * 3), 0.5 / (9 * 4)])
    placed = [[(i.group, i.sequences, i.tokens) for m in rank for i in m] for rank in first.plan.micro_batches]
    assert placed == [[(1, (1, 2, 3), 16)], [(0, (0,), 7)]]
    assert first.plan.modules == (SEEN,)
    assert first.encode(0) is PROMPTS["seen"] and first.encode(2) is None


def test_the_idle_weigh_in_a_mean_over_tokens(tmp_path):
    cfg = config(tmp_path, objective={"normalization": "token"})
    one, idle = SEQUENCES[0], TrainSequence(0, 0, 0.0, 1.0)
    engine = SimpleNamespace(family=FAMILY, trainable_modalities=LONG, joined=False, world_size=1)
    columns = gathered([0.0] * 9, length=[6.0] + [2.0] * 8)
    chosen = TrainSequences((one,), (idle, one))
    train_batch = stages.plan(
        cfg, engine, CACHE, RECORDS, BATCH, columns, decision(Mode.EXPLORE), chosen, {one: [7, 7]}, TABLE
    )
    assert train_batch.weights == [1 / 8]


def test_templates_come_from_the_best_right_trace_of_a_group():
    learned: list[tuple[list, int]] = []
    supervisor = SimpleNamespace(learn=lambda traces, step: learned.append((list(traces), step)))
    correct, thinking = [1.0] * 9, [0.1, 0.9, 0.3] + [0.5] * 6
    correct[1] = 0.0
    said = {0: "poor", 1: "wrong", 2: "good", 3: "memorized", 6: " "}
    modes = decision(Mode.EXPLORE, Mode.MEMORIZE, Mode.SKIP)
    stages.learn(supervisor, RECORDS, BATCH, gathered(correct, thinking=thinking), modes, said)
    assert learned == [([("good", RECORDS[2], 0.3)], 5)]
