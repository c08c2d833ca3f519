"""Rollouts: the tokens of a row are a function of its key alone, and they follow the model's distribution."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dyme.families import Family, build_family
from dyme.rollout.hf import KeyedSampler
from dyme.rollout.noise import gumbel, row_key
from dyme.rollout.types import Rollout, RolloutRequest, Sampling
from tests.helpers.generating import generate

TEXTS = ["What is the value of bar one?", "the red bar is 4. Answer: 4"]


def build(name: str, spec: SimpleNamespace) -> tuple[Family, nn.Module]:
    torch.manual_seed(0)
    family, model = build_family(name, spec, TEXTS)
    for p in model.parameters():  # a fresh model is nearly uniform; this one has opinions
        p.data.add_(torch.randn_like(p) * 0.1)
    return family, model.eval()


@pytest.fixture(scope="module")
def vlm(tiny_spec) -> tuple[Family, nn.Module]:
    return build("idefics3", tiny_spec)


@pytest.fixture(scope="module")
def llama(tiny_spec) -> tuple[Family, nn.Module]:
    return build("causal_lm", tiny_spec)


@pytest.fixture(params=["hf", "shared_prefix"])
def engine(request) -> str:
    return request.param


def rows_of(family: Family, completions: int = 3) -> list[RolloutRequest]:
    """Prompts of different lengths, with and without pictures, a few completions each."""
    questions = ["What?", "What is the value of bar one?", "Is the red bar, of all the bars, the longest bar of all?"]
    pictures = [[]] + ([[Image.new("RGB", (40, 30), c)] for c in ("red", "blue")] if family.modalities else [])
    prompts = [family.encode(q, picture) for q in questions for picture in pictures]
    keys = [row_key(0, 5, f"r{i}", k) for i in range(len(prompts)) for k in range(completions)]
    return [RolloutRequest(prompts[i // completions], key) for i, key in enumerate(keys)]


# --- the same tokens however the rows are batched ----------


@pytest.mark.parametrize("name", ["vlm", "llama"])
def test_tokens_do_not_depend_on_the_batch(name, request, engine):
    family, model = request.getfixturevalue(name)
    rows = rows_of(family)
    whole = generate(family, model, rows, Sampling(12), engine=engine)
    assert len({r.tokens for r in whole}) > len(rows) // 2  # they are samples, not one answer
    for size in (1, 4, 7):
        assert generate(family, model, rows, Sampling(12, batch_size=size), engine=engine) == whole
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    assert generate(family, model, [rows[i] for i in order], Sampling(12), engine=engine) == [whole[i] for i in order]
    assert generate(family, model, rows[3:5], Sampling(12), engine=engine) == whole[3:5]  # another rank's share


def test_batches_hold_at_most_batch_size_rows(llama, monkeypatch):
    family, model = llama
    sizes = []
    plain = type(model).generate
    monkeypatch.setattr(
        type(model), "generate", lambda self, **kw: sizes.append(len(kw["input_ids"])) or plain(self, **kw)
    )
    out = generate(family, model, rows_of(family), Sampling(2, batch_size=4), engine="hf")
    assert len(out) == 9 and sizes == [4, 4, 1]
    assert generate(family, model, [], Sampling(2), engine="hf") == []


@pytest.mark.parametrize("name", ["vlm", "llama"])
def test_greedy_is_transformers_greedy(name, request, engine):
    family, model = request.getfixturevalue(name)
    rows = rows_of(family, completions=1)
    for row, rollout in zip(
        rows, generate(family, model, rows, Sampling(10, temperature=0.0), engine=engine), strict=True
    ):
        plain = model.generate(
            input_ids=row.prompt.input_ids[None],
            attention_mask=torch.ones(1, len(row.prompt), dtype=torch.int64),
            **row.prompt.pixels,
            max_new_tokens=10,
            do_sample=False,
            suppress_tokens=list(family.forbidden_ids),
            eos_token_id=list(family.stop_ids),
        )[0, len(row.prompt) :]
        assert rollout.tokens == tuple(plain.tolist())


@pytest.mark.parametrize("name", ["vlm", "llama"])
def test_samples_come_from_the_policy(name, request, engine):
    """Token by token: the arg-max of the plain forward's log-probabilities plus the noise of that place."""
    family, model = request.getfixturevalue(name)
    rows = rows_of(family, completions=1)
    banned = list(family.forbidden_ids)
    for row, rollout in zip(
        rows, generate(family, model, rows, Sampling(8, temperature=1.7), engine=engine), strict=True
    ):
        ids = torch.cat([row.prompt.input_ids, torch.tensor(rollout.tokens)])[None]
        with torch.no_grad():
            logits = model(input_ids=ids, **row.prompt.pixels).logits[0, len(row.prompt) - 1 : -1]
        logits[:, banned] = -torch.inf
        noise = torch.cat([gumbel(torch.tensor([row.key]), t, logits.shape[1]) for t in range(len(logits))])
        assert tuple((logits / 1.7 + noise).argmax(-1).tolist()) == rollout.tokens


def test_settings_of_the_checkpoint_do_not_change_the_samples(llama, engine):
    """Many checkpoints ship a generation_config with penalties and cut-offs, unknown to the log-probs of training."""
    family, model = llama
    rows = rows_of(family)
    before = generate(family, model, rows, Sampling(10), engine=engine)
    own = model.generation_config
    model.generation_config = type(own)(
        repetition_penalty=5.0, temperature=0.1, top_k=2, top_p=0.1, no_repeat_ngram_size=1, min_new_tokens=9,
        suppress_tokens=[70, 71, 72, 73], max_length=20, do_sample=True, num_beams=1,
    )  # fmt: skip
    try:
        assert generate(family, model, rows, Sampling(10), engine=engine) == before
        assert model.generation_config.repetition_penalty == 5.0  # left as it was
    finally:
        model.generation_config = own


# --- ends ----------


def force(model: nn.Module, monkeypatch, wants: dict[int, float]) -> None:
    """Adds to the logits of some tokens, whatever the model says."""
    head = model.get_output_embeddings()
    plain = head.forward

    def forward(hidden: Tensor) -> Tensor:
        logits = plain(hidden).clone()
        for token, bonus in wants.items():
            logits[..., token] += bonus
        return logits

    monkeypatch.setattr(head, "forward", forward)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_sampled(vlm, monkeypatch, temperature, engine):
    family, model = vlm
    image = family.config.image_token_id
    assert image in family.forbidden_ids and family.pad_id in family.forbidden_ids
    force(model, monkeypatch, dict.fromkeys(family.forbidden_ids, 1e4))
    out = generate(
        family, model, rows_of(family), Sampling(6, temperature=temperature, top_k=3, top_p=0.9), engine=engine
    )
    assert not {t for r in out for t in r.tokens} & set(family.forbidden_ids)


def test_the_stop_token_is_kept_and_ends_the_row(llama, monkeypatch, engine):
    family, model = llama
    rows = rows_of(family)
    free = generate(family, model, rows, Sampling(6), engine=engine)
    assert all(r.truncated == (r.tokens[-1] != family.end_of_turn) for r in free)
    force(model, monkeypatch, {family.end_of_turn: 1e4})
    assert set(generate(family, model, rows, Sampling(6), engine=engine)) == {
        Rollout((family.end_of_turn,), truncated=False)
    }


def test_rows_that_end_early_are_not_padded(llama, monkeypatch, engine):
    family, model = llama
    force(model, monkeypatch, {family.end_of_turn: 3.0})
    out = generate(family, model, rows_of(family, 6), Sampling(20), engine=engine)
    assert len({len(r.tokens) for r in out}) > 3
    for r in out:
        assert family.end_of_turn not in r.tokens[:-1] and family.pad_id not in r.tokens
        assert r.truncated == (r.tokens[-1] != family.end_of_turn) and (len(r.tokens) == 20 or not r.truncated)


def test_truncated(llama, monkeypatch, engine):
    family, model = llama
    force(model, monkeypatch, {family.end_of_turn: -1e4})
    out = generate(family, model, rows_of(family), Sampling(5), engine=engine)
    assert all(r.truncated and len(r.tokens) == 5 for r in out)


# --- noise ----------

V, N = 50, 20_000


def keys(n: int = N, step: int = 0, seed: int = 0) -> Tensor:
    return torch.tensor([row_key(seed, step, f"record-{i // 8}", i % 8) for i in range(n)])


def test_samples_follow_the_softmax():
    logits = torch.randn(V, generator=torch.Generator().manual_seed(0)) * 2
    for position in (0, 1, 700):
        counts = (logits + gumbel(keys(), position, V)).argmax(-1).bincount(minlength=V).double()
        expected = logits.double().softmax(-1) * N
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert chi2 < (V - 1) + 4 * math.sqrt(2 * (V - 1)), f"chi-square {chi2:.0f} with {V - 1} degrees of freedom"


def test_noise_is_standard_gumbel():
    noise = gumbel(keys(2000), 3, 1000).double()
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.005)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.01)


def test_every_part_of_the_key_counts():
    base = (3, 7, "a", 2)
    others = [(4, 7, "a", 2), (3, 8, "a", 2), (3, 7, "b", 2), (3, 7, "a", 3), (37, 7, "a", 2), (3, 7, "a2", 2)]
    hashes = [row_key(*k) for k in (base, *others)]
    assert len(set(hashes)) == len(hashes) and row_key(*base) == hashes[0]
    assert all(-(2**63) <= h < 2**63 for h in hashes)
    first, *rest = (gumbel(torch.tensor([h]), 0, 1000)[0] for h in hashes)
    for other in rest:
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.15
    assert torch.equal(first, gumbel(torch.tensor([hashes[0]]), 0, 1000)[0])


def test_positions_rows_and_entries_are_independent():
    noise = torch.stack([gumbel(keys(4000), t, 6) for t in range(4)], dim=1).flatten(1)  # [rows, positions x entries]
    off = torch.corrcoef(noise.T) - torch.eye(noise.shape[1])
    assert off.abs().max() < 4.5 / math.sqrt(4000)
    neighbours = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 4 / math.sqrt(noise[1:].numel())


def test_noise_of_a_row_does_not_depend_on_its_batch_or_the_vocabulary():
    ks = keys(10)
    whole = gumbel(ks, 4, 60)
    assert torch.equal(gumbel(ks[3:4], 4, 60)[0], whole[3]) and torch.equal(gumbel(ks, 4, 20), whole[:, :20])


# --- top-k and top-p ----------


def sampled(logits: Tensor, **settings) -> Tensor:
    """Tokens drawn for every key, through the sampler itself."""
    sampler = KeyedSampler(keys(), 4, torch.tensor([0]), Sampling(1, **settings))
    return sampler(torch.zeros(N, 4, dtype=torch.int64), logits.expand(N, -1)).argmax(-1)


LOGITS = torch.tensor([9.0, 0.5, 0.3, 0.2, 0.4, -1.0]) * 2  # token 0 is banned


@pytest.mark.parametrize(
    ("k", "support"), [(1, {1}), (2, {1, 4}), (3, {1, 2, 4}), (0, {1, 2, 3, 4, 5}), (99, {1, 2, 3, 4, 5})]
)
def test_top_k(k, support):
    assert set(sampled(LOGITS, top_k=k).tolist()) == support


@pytest.mark.parametrize(
    ("p", "support"), [(0.1, {1}), (0.35, {1, 4}), (0.6, {1, 2, 4}), (0.95, {1, 2, 3, 4}), (1.0, {1, 2, 3, 4, 5})]
)
def test_top_p_keeps_the_token_that_crosses(p, support):
    probability = LOGITS[1:].softmax(-1).sort(descending=True).values  # 0.34, 0.28, 0.23, 0.19, 0.02 or so
    assert len(support) == 5 or int((probability.cumsum(-1) < p).sum()) + 1 == len(support)
    assert set(sampled(LOGITS, top_p=p).tolist()) == support


def test_temperature_and_cuts_keep_the_proportions():
    tokens = sampled(LOGITS, temperature=2.0, top_k=3)
    share = tokens.bincount(minlength=6)[[1, 2, 4]].double() / N
    expected = (LOGITS[[1, 2, 4]].double() / 2.0).softmax(-1)
    assert (share - expected).abs().max() < 4 * 0.5 / math.sqrt(N)
