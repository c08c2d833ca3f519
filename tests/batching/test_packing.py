"""Groups packed as trees equal separate rows: log-probabilities and the gradient of every parameter, in float64."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dyme.batching.packing import bucket_length, pack
from dyme.families import IMAGE, Family, Prompt, build_family
from dyme.families.causal_lm import CausalLM
from tests.helpers.packed import assert_close, gradients, packed_logprobs, separate_logprobs

TEXTS = ["What is the value of bar one?", "the red bar is 4. Answer: 4"]
ALL, NONE = frozenset({IMAGE}), frozenset()


@pytest.fixture(scope="module", params=["idefics3", "causal_lm"])
def setting(request, tiny_spec) -> tuple[Family, nn.Module]:
    torch.manual_seed(0)
    family, model = build_family(request.param, tiny_spec, TEXTS)
    model = model.double().eval()
    for p in model.parameters():  # biases and norms start at 0 and 1, where a mix-up would not show
        p.data.add_(torch.randn_like(p) * 0.05)
    return family, model


def picture(seed: int) -> Image.Image:
    rng = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (24, 32, 3), generator=rng, dtype=torch.uint8).numpy())


def groups(family: Family) -> list[tuple[Prompt, list[list[int]]]]:
    """Two groups with different pictures, a text-only one between them; one-token branches and equal branches."""

    def see(seed: int) -> list[Image.Image]:
        return [picture(seed)] if IMAGE in family.modalities else []

    return [
        (family.encode("What is it?", see(1)), [[70, 80, 90, 85], [71], [70, 80, 91]]),
        (family.encode("Say a number"), [[60, 61, 62, 63, 64, 65]]),
        (family.encode("What is the value of bar two, then?", see(2)), [[75, 76], [90, 88, 77, 66, 55], [75, 76]]),
    ]


def test_trees_equal_separate_rows(setting):
    family, model = setting
    sequences = groups(family)
    together = packed_logprobs(family, model, pack(family, sequences, NONE))
    apart = torch.cat([separate_logprobs(family, model, p, b) for p, branches in sequences for b in branches])
    assert together.shape == apart.shape == (23,)
    assert (together - apart).abs().max() < 1e-6
    weights = torch.linspace(-1.0, 1.0, len(together), dtype=torch.float64)
    expected = gradients(model, (weights * apart).sum())
    assert set(expected) == {name for name, _ in model.named_parameters()}
    assert_close(gradients(model, (weights * together).sum()), expected)


def test_one_branch_per_sequence_is_the_same(setting):
    """Families that cannot pack trees train padded rows."""
    family, model = setting
    sequences = groups(family)
    rows = [(prompt, [branch]) for prompt, branches in sequences for branch in branches]
    trees, padded = (packed_logprobs(family, model, pack(family, s, NONE)) for s in (sequences, rows))
    assert (trees - padded).abs().max() < 1e-6


def test_branches_do_not_see_each_other(setting):
    family, model = setting
    prompt = groups(family)[0][0]
    first, other = ([[70, 80, 90], tail] for tail in ([71, 72], [99, 98, 97, 96]))
    a, b = (packed_logprobs(family, model, pack(family, [(prompt, x)], NONE))[:3] for x in (first, other))
    assert (a - b).abs().max() < 1e-9
    swapped = packed_logprobs(family, model, pack(family, [(prompt, first[::-1])], NONE))[2:]
    assert (a - swapped).abs().max() < 1e-6


def test_padding_does_not_leak(setting):
    family, model = setting
    sequences = groups(family)
    batch = pack(family, sequences, NONE)
    lengths = [len(p) + sum(map(len, b)) for p, b in sequences]
    assert len(set(lengths)) > 1
    clean = packed_logprobs(family, model, batch)
    for row, length in enumerate(lengths):
        assert (batch.input_ids[row, length:] == family.pad_id).all()
        batch.input_ids[row, length:] = 42
        batch.position_ids[row, length:] = 7
    dirty = packed_logprobs(family, model, batch)
    assert torch.isfinite(clean).all() and torch.equal(clean, dirty)
    grads = gradients(model, dirty.sum())
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_live_positions(setting):
    family, _ = setting
    sequences = groups(family)
    batch = pack(family, sequences, NONE)
    assert batch.targets.tolist() == [t for _, branches in sequences for b in branches for t in b]
    length = batch.input_ids.shape[1]
    prompt, branches = sequences[2]
    P, base = len(prompt), 2 * length
    assert batch.select[-9:].tolist() == [
        base + at for at in (P - 1, P, P - 1, P + 2, P + 3, P + 4, P + 5, P - 1, P + 7)
    ]
    assert batch.position_ids[2, : P + 9].tolist() == [*range(P), P, P + 1, *range(P, P + 5), P, P + 1]
    assert sum(map(len, branches)) == 9


# --- anchors ----------


@pytest.mark.parametrize("have", ["nothing", "text"])
def test_an_anchor_touches_every_parameter_and_changes_nothing(setting, have):
    family, model = setting
    prompt, branches = groups(family)[1]
    sequences = [] if have == "nothing" else [(prompt, branches)]
    batch = pack(family, sequences, family.modalities)
    assert len(batch.input_ids) == len(sequences) + (not sequences or IMAGE in family.modalities)
    logprobs = packed_logprobs(family, model, batch)
    grads = gradients(model, logprobs.sum())
    assert set(grads) == {name for name, _ in model.named_parameters()}, "a parameter is not in the graph"
    assert all(torch.isfinite(g).all() for g in grads.values())
    vision = {n: g for n, g in grads.items() if "vision" in n or "connector" in n}
    assert all((g == 0).all() for g in (vision if have == "text" else grads).values())
    assert bool(vision) == (IMAGE in family.modalities)
    if have == "text":
        alone = separate_logprobs(family, model, prompt, branches[0])
        assert (logprobs - alone).abs().max() < 1e-6


def test_no_anchor_where_the_modules_run_anyway(setting):
    family, _ = setting
    sequences = groups(family)
    assert len(pack(family, sequences, family.modalities).input_ids) == 3
    assert bool(pack(family, sequences[:1], family.modalities).pixels) == (IMAGE in family.modalities)
    assert not pack(family, [], NONE).pixels and len(pack(family, [], NONE).input_ids) == 1


# --- positions in three rows ----------


class Rope3(CausalLM):
    """A family with M-RoPE: three rows of positions, and replies that start elsewhere than after the prompt."""

    pad_id = 0

    def __init__(self) -> None:
        pass

    def prompt_positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        n = len(prompt)
        return torch.stack([torch.arange(n), torch.arange(n) // 2, torch.zeros(n, dtype=torch.int64)]), n - 2


def test_three_rows_of_positions():
    family = Rope3()
    batch = pack(family, [(Prompt(torch.arange(4)), [[5, 6], [7]]), (Prompt(torch.arange(3)), [[8]])], NONE)
    assert batch.position_ids.shape == (3, 2, 7)
    assert batch.position_ids[:, 0].tolist() == [[0, 1, 2, 3, 2, 3, 2], [0, 0, 1, 1, 2, 3, 2], [0, 0, 0, 0, 2, 3, 2]]
    assert batch.position_ids[:, 1].tolist() == [[0, 1, 2, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0]]
    moved = batch.to(torch.device("cpu"), torch.float32)
    assert moved.layout.depth[0].tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert moved.select.tolist() == [3, 4, 3, 9]


def test_joined_rows():
    trees = [
        (Prompt(torch.arange(4)), [[5, 6], [7]]),
        (Prompt(torch.arange(3)), [[8, 9]]),
        (Prompt(torch.arange(2)), []),
    ]
    batch = pack(Rope3(), trees, NONE, joined=True)
    assert batch.input_ids.shape == (1, 128) and batch.position_ids.shape == (3, 1, 128)
    assert batch.input_ids[0, :15].tolist() == [0, 1, 2, 3, 5, 6, 7, 0, 1, 2, 8, 9, 0, 1, 0]
    assert batch.position_ids[1, 0, :15].tolist() == [0, 0, 1, 1, 2, 3, 2, 0, 0, 1, 1, 2, 0, 0, 0]
    layout = batch.to(torch.device("cpu"), torch.float32).layout
    assert layout.tree[0, :15].tolist() == [0] * 7 + [1] * 5 + [2] * 2 + [-1]
    assert layout.branch[0, :15].tolist() == [-1, -1, -1, -1, 0, 0, 1, -1, -1, -1, 0, 0, -1, -1, -2]
    assert layout.depth[0, :15].tolist() == [0, 1, 2, 3, 4, 5, 4, 0, 1, 2, 3, 4, 0, 1, 0]
    assert batch.select.tolist() == [3, 4, 3, 9, 10] and batch.targets.tolist() == [5, 6, 7, 8, 9]


def test_joined_sequences_have_few_lengths():
    lengths = [bucket_length(n) // 128 for n in range(16 * 1024)]
    assert lengths == sorted(lengths)
    rungs = sorted(set(lengths))
    assert rungs == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128]
    for n, blocks in enumerate(lengths):
        assert n <= blocks * 128 < 1.25 * n + 129


def test_joined_padding_and_neighbours_do_not_leak(setting):
    family, model = setting
    sequences = groups(family)
    clean = packed_logprobs(family, model, pack(family, sequences, NONE, joined=True))
    (prompt, branches), *rest = sequences
    other = packed_logprobs(family, model, pack(family, [(prompt, branches[:1]), *rest], NONE, joined=True))
    assert (clean[8:] - other[4:]).abs().max() < 1e-9, "a tree sees another one"
    batch = pack(family, sequences, NONE, joined=True)
    end = sum(len(p) + sum(map(len, b)) for p, b in sequences)
    batch.input_ids[0, end:] = 42
    batch.position_ids[0, end:] = 7
    dirty = packed_logprobs(family, model, batch)
    assert torch.equal(clean, dirty)
    assert all(torch.isfinite(g).all() for g in gradients(model, dirty.sum()).values())


def test_the_tree_mask():
    batch = pack(Rope3(), [(Prompt(torch.arange(2)), [[5, 6], [7]]), (Prompt(torch.arange(2)), [[8]])], NONE)
    allow = batch.layout.dense()[:, 0].int().tolist()
    assert allow[0] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert allow[1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
