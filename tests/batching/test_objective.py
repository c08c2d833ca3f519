"""Token weights of every normalization, worked out by hand, and the gradients they give."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from dyme.batching.objective import (
    TrainSequence,
    TrainSequences,
    kl_share,
    loss_inputs,
    resolve,
    token_weights,
    train_sequences,
)
from dyme.config import RunConfig, load_config
from dyme.selectors.base import Mode, ModeDecision
from dyme.settings.errors import ConfigError
from dyme_kernels import LossSpec, policy_loss

S, E, M, J = Mode.SKIP, Mode.EXPLORE, Mode.MEMORIZE, Mode.JOINT
NORMALIZATIONS = ("group", "row", "token", "component", "constant")

# four groups of three rows: explore (one row without advantage, one that does not train), memorize, skip, joint
MODES = [E, M, S, J]
OFFSETS = [0, 3, 6, 9, 12]
ADVANTAGES = [1.0, 0.0, -1.0, 0.5, -0.5, 0.1, 0.2, 0.3, -0.4, 0.7, -0.7, 0.6]
TRAINS = [True] * 11 + [False]
RL, SFT = [1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.25]
LENGTHS = {(0, 0): 2, (0, 1): 4, (0, 2): 5, (1, -1): 10, (3, 9): 3, (3, 10): 1, (3, -1): 8}


def decision(modes=MODES, rl=RL, sft=SFT) -> ModeDecision:
    mode = torch.tensor([int(m) for m in modes])
    return ModeDecision(mode, torch.tensor(rl, dtype=torch.float64), torch.tensor(sft, dtype=torch.float64), mode)


def live(**keep) -> TrainSequences:
    return train_sequences(
        decision(), torch.tensor(ADVANTAGES, dtype=torch.float64), torch.tensor(TRAINS), OFFSETS, **keep
    )


def lengths_of(rows: TrainSequences) -> dict[TrainSequence, int]:
    return {row: LENGTHS[row.group, row.completion] for row in rows.counted}


def weights(rows: TrainSequences, normalization: str) -> dict[tuple[int, int], float]:
    values = token_weights(
        rows, lengths_of(rows), normalization, groups=4, rows=12, max_new_tokens=20, memorize_weight=0.3
    )
    return {(row.group, row.completion): w for row, w in zip(rows.trained, values, strict=True)}


def test_live_rows():
    rows = live()
    assert [(r.group, r.completion) for r in rows.counted] == list(LENGTHS)
    assert [(r.group, r.completion) for r in rows.trained] == [
        k for k in LENGTHS if k != (0, 1)
    ]  # nothing to learn from A = 0
    assert [(r.advantage, r.share) for r in rows.trained] == [
        (1.0, 1.0),
        (-1.0, 1.0),
        (1.0, 1.0),
        (0.7, 0.5),
        (-0.7, 0.5),
        (1.0, 0.25),
    ]
    assert [r.memorize for r in rows.trained] == [False, False, True, False, False, True]
    assert live(keep_zero=True).trained == live(keep_zero=True).counted == rows.counted


def test_rows_of_no_share_are_not_run_but_counted():
    rows = train_sequences(
        decision([J], [0.0], [1.0]), torch.tensor([1.0, -1.0]).double(), torch.tensor([True, True]), [0, 2]
    )
    assert [r.completion for r in rows.trained] == [-1] and [r.completion for r in rows.counted] == [0, 1, -1]


def test_a_step_in_which_nothing_lives():
    rows = train_sequences(decision([S, S], [1, 1], [1, 1]), torch.zeros(4).double(), torch.ones(4).bool(), [0, 2, 4])
    assert rows == TrainSequences((), ())
    for normalization in NORMALIZATIONS:
        assert weights(rows, normalization) == {}


EXPECTED = {
    # 1/G, rows of a kind averaged (three explored ones in group 0, dead ones of group 1 not), tokens averaged
    "group": [1 / (4 * 3 * 2), 1 / (4 * 3 * 5), 1 / (4 * 10), 0.5 / (4 * 2 * 3), 0.5 / (4 * 2 * 1), 0.25 / (4 * 8)],
    "row": [1 / (12 * 2), 1 / (12 * 5), 1 / (12 * 10), 0.5 / (12 * 3), 0.5 / 12, 0.25 / (12 * 8)],
    "token": [1 / 33, 1 / 33, 1 / 33, 0.5 / 33, 0.5 / 33, 0.25 / 33],  # 2 + 4 + 5 + 10 + 3 + 1 + 8
    "component": [1 / 15, 1 / 15, 0.3 / 18, 0.5 / 15, 0.5 / 15, 0.3 * 0.25 / 18],
    "constant": [1 / 240, 1 / 240, 1 / 240, 0.5 / 240, 0.5 / 240, 0.25 / 240],
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_token_weights(normalization):
    assert list(weights(live(), normalization).values()) == pytest.approx(EXPECTED[normalization], rel=1e-12)


def test_a_memorized_group_weighs_as_an_explored_one_or_1_over_k():
    rows = train_sequences(
        decision([E, M], [1, 1], [1, 1]), torch.tensor([1.0, -1.0, 1.0, -1.0]).double(), torch.ones(4).bool(), [0, 2, 4]
    )
    lengths = dict.fromkeys(rows.counted, 5)

    def of_groups(normalization: str) -> list[float]:
        w = token_weights(rows, lengths, normalization, groups=2, rows=4, max_new_tokens=9, memorize_weight=1.0)
        return [sum(5 * x for x, row in zip(w, rows.trained) if row.group == g) for g in (0, 1)]

    assert of_groups("group") == pytest.approx([0.5, 0.5])  # the paper's formula
    assert of_groups("row") == pytest.approx([0.5, 0.25])  # the published code, K = 2


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("surrogate", ["clip", "cispo", "gspo", "sapo"])
def test_rows_give_the_gradient_of_all_counted_rows(normalization, surrogate):
    """Rows without an advantage weigh in the means, but leaving out their forward pass changes no gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = {row: torch.randn(n, 11, generator=generator).double() for row, n in lengths_of(live()).items()}
    targets = {row: torch.randint(0, 11, (n,), generator=generator) for row, n in lengths_of(live()).items()}

    def gradient(rows: TrainSequences) -> dict[TrainSequence, torch.Tensor]:
        leaves = {row: logits[row].clone().requires_grad_() for row in rows.trained}
        lengths = [LENGTHS[row.group, row.completion] for row in rows.trained]
        inputs = loss_inputs(rows.trained, list(weights(rows, normalization).values()), lengths)
        out = policy_loss(
            torch.cat(list(leaves.values())),
            torch.cat([targets[row] for row in rows.trained]),
            inputs.advantages.double(),
            inputs.weights.double(),
            memorize=inputs.memorize,
            spec=LossSpec(surrogate=surrogate, temperature=1.3),
        )
        out.loss.backward()
        return {row: leaf.grad for row, leaf in leaves.items()}

    some, every = gradient(live()), gradient(live(keep_zero=True))
    assert len(every) == len(some) + 1
    for row, grad in every.items():
        assert torch.allclose(grad, some.get(row, torch.zeros_like(grad)), rtol=1e-6, atol=1e-12)
        assert (grad.abs().max() > 1e-6) == (row in some)


def test_loss_inputs_spread_over_tokens():
    rows = [TrainSequence(0, 4, -0.5, 1.0), TrainSequence(2, -1, 1.0, 1.0)]
    inputs = loss_inputs(rows, [0.25, 0.125], [2, 3])
    assert inputs.advantages.tolist() == [-0.5, -0.5, 1.0, 1.0, 1.0]
    assert inputs.weights.tolist() == [0.25, 0.25, 0.125, 0.125, 0.125]
    assert inputs.memorize.tolist() == [False, False, True, True, True]


def test_a_later_epoch_knows_old_logprobs_and_rows():
    inputs = loss_inputs([TrainSequence(0, 4, -0.5, 1.0), TrainSequence(2, -1, 1.0, 1.0)], [0.25, 0.125], [2, 3])
    old = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
    later = inputs.off_policy(old, [2, 3]).to(torch.device("cpu"))
    assert torch.equal(later.old_logprobs, old) and later.segments.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(later.advantages, inputs.advantages) and later.ref_logprobs is None


def test_loss_inputs_of_an_anchor():
    inputs = loss_inputs([], [], [])
    assert [t.shape for t in (inputs.advantages, inputs.weights, inputs.memorize)] == [(0,)] * 3
    assert inputs.memorize.dtype == torch.bool


# --- the loss a configuration asks for ----------


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    tree = {"model": {"path": "x"}, "data": {"train": {"source": "charts", "count": 1}}}
    path.write_text(yaml.safe_dump(tree))

    def make(**sections) -> RunConfig:
        return load_config(path, [f"{name}={json.dumps(values)}" for name, values in sections.items()])

    return make


@pytest.mark.parametrize(
    ("name", "surrogate", "normalization"),
    [
        ("grpo", "clip", "row"),
        ("dapo", "clip", "token"),
        ("dr_grpo", "clip", "constant"),
        ("bnpo", "clip", "token"),
        ("cispo", "cispo", "token"),
        ("sapo", "sapo", "row"),
        ("gspo", "gspo", "row"),
    ],
)
def test_presets(config, name, surrogate, normalization):
    spec, resolved = resolve(config(objective={"preset": name}, rollout={"temperature": 0.7}))
    assert (spec.surrogate, resolved, spec.temperature, spec.memorize_temperature) == (
        surrogate,
        normalization,
        0.7,
        1.0,
    )


def test_a_presets_clip_range_can_be_set(config):
    spec, _ = resolve(config(objective={"preset": "dapo", "epsilon_high": 0.28, "beta": 0.04}))
    assert (spec.epsilon_low, spec.epsilon_high, spec.beta) == (0.2, 0.28, 0.04)


def test_single_settings(config):
    spec, normalization = resolve(
        config(objective={"surrogate": "sapo", "normalization": "component", "epsilon_low": 0.1, "entropy_coef": 0.01})
    )
    assert normalization == "component"
    assert (spec.surrogate, spec.epsilon_low, spec.epsilon_high, spec.entropy_coef) == ("sapo", 0.1, 0.2, 0.01)
    assert resolve(config()) == (LossSpec(), "group")  # the paper's formula is the default


def test_memorize_temperature(config):
    hot = {"temperature": 1.5}
    assert resolve(config(rollout=hot))[0].memorize_temperature == 1.0
    spec, _ = resolve(config(rollout=hot, memorize={"temperature": "sampling"}))
    assert (spec.temperature, spec.memorize_temperature) == (1.5, 1.5)


def test_a_preset_and_a_single_setting_contradict(config):
    with pytest.raises(ConfigError, match=r"objective\.preset replaces"):
        config(objective={"preset": "grpo", "surrogate": "clip"})


def test_scheduled_kl_weight(tmp_path):
    """From 0.1 to 0.4 over 3 steps: 0.1, 0.2, 0.3, 0.4 of a highest weight of 0.4."""
    tree = {"model": {"path": "m"}, "data": {"train": {"source": "charts", "count": 4}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    cfg = load_config(tmp_path / "c.yaml", ["objective.beta={start: 0.1, end: 0.4, steps: 3}"])
    assert resolve(cfg)[0].beta == 0.4
    assert [0.4 * kl_share(cfg, step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    constant = load_config(tmp_path / "c.yaml", ["objective.beta=0.3"])
    assert resolve(constant)[0].beta == 0.3 and kl_share(constant, 7) == 1.0
    assert kl_share(load_config(tmp_path / "c.yaml"), 0) == 1.0
