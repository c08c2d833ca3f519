"""Engine shared_prefix: the tokens of engine hf, each prompt once, and log-probabilities as training takes them."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import weakref
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from packed import packed_logprobs
from PIL import Image

from dyme.config import load_config
from dyme.families import IMAGE, Family, ModelError, Prompt, build_family
from dyme.packing import pack
from dyme.rollout import Rollout, RolloutRow, Sampling, generate, row_key, sampling_of, shared_prefix
from dyme.rollout.cache import column_bucket, row_bucket
from dyme.rollout.graphs import StepGraphs
from dyme.rollout.sampler import draw, restrict, seen_tokens

TEXTS = ["What is the value of bar one?", "the red bar is 4. Answer: 4"]
CUTS = {"temperature": 1.4, "top_k": 60, "top_p": 0.9, "min_p": 0.002, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def vlm(tiny_spec):
    torch.manual_seed(0)
    family, model = build_family("idefics3", tiny_spec, TEXTS)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.1)
    return family, model.eval()


def picture(seed: int, size: tuple[int, int] = (40, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def prompts_of(family: Family) -> list[Prompt]:
    """Text, one picture, two pictures, of different lengths."""
    if IMAGE not in family.modalities:
        return [family.encode(q) for q in ("Which?", "What is the value of bar one?", "a longer one, of the bars")]
    both = [picture(2), picture(3, (70, 20))]
    return [family.encode("Which of the bars?"), family.encode("Which?", [picture(1)]), family.encode("And?", both)]


def rows_of(prompts: list[Prompt], completions: int = 3) -> list[RolloutRow]:
    return [RolloutRow(p, row_key(0, 1, str(i), k)) for i, p in enumerate(prompts) for k in range(completions)]


@contextlib.contextmanager
def liked(family: Family, model, bonus: float):
    """In here the model likes to end its turn, so that rows leave early."""

    def more(module, inputs, logits):
        logits = logits.clone()
        logits[..., family.end_of_turn] += bonus
        return logits

    handle = family.head(model).register_forward_hook(more)
    try:
        yield
    finally:
        handle.remove()


# --- the same tokens as engine hf ----------


@pytest.mark.feature("rollout")
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, CUTS], ids=["greedy", "sampled"])
def test_the_tokens_of_engine_hf(opened, settings):
    """Text and pictures in one call; with 4 places for 9 rows, groups enter late, and the batch shrinks at the end."""
    family, model = opened
    rows = rows_of(prompts_of(family))
    with liked(family, model, 2.5):
        expected = generate(family, model, rows, Sampling(12, engine="hf", **settings))
        for size in (4, 64):
            assert generate(family, model, rows, Sampling(12, engine="shared_prefix", batch_size=size, **settings)) == (
                expected
            )
    assert settings["temperature"] == 0.0 or len({r.tokens for r in expected}) > 4, "they are all the same"


def test_long_rollouts_enter_leave_and_move(vlm):
    """Rows of all lengths through few places: columns fall away on the left, the cache grows, rows enter at any time,
    and the tokens are those of each row alone."""
    family, model = vlm
    questions = ["What?", "Is the red bar, of all the bars, the longest bar of all? " * 3, "one two three " * 7]
    rows = rows_of([*prompts_of(family), *(family.encode(q, [picture(7)]) for q in questions)], 4)
    sampling = Sampling(90, engine="shared_prefix")
    with liked(family, model, 3.0):
        expected = generate(family, model, rows, replace(sampling, engine="hf"))
        lengths = sorted(len(r.tokens) for r in expected)
        assert lengths[0] < 12 and lengths[-1] > 60, lengths
        for size in (1, 5, 24):
            assert generate(family, model, rows, replace(sampling, batch_size=size)) == expected
        order = torch.randperm(len(rows)).tolist()
        mixed = generate(family, model, [rows[i] for i in order], replace(sampling, batch_size=7))
        assert mixed == [expected[i] for i in order]


def test_all_rows_end_at_once(vlm):
    family, model = vlm
    with liked(family, model, 1e4):
        out = generate(family, model, rows_of(prompts_of(family)), Sampling(8, batch_size=4, engine="shared_prefix"))
    assert out == [Rollout((family.end_of_turn,), truncated=False)] * 9


@pytest.mark.parametrize("length", [1, 2, 8, 9])
def test_rows_cut_at_the_limit(vlm, length):
    family, model = vlm
    with liked(family, model, -1e4):
        out = generate(family, model, rows_of(prompts_of(family)), Sampling(length, engine="shared_prefix"))
    assert all(r.truncated and len(r.tokens) == len(r.logprobs) == length for r in out)


# --- log-probabilities ----------


@pytest.mark.feature("rollout")
def test_logprobs_are_those_of_training(opened):
    """Of the policy, whatever was cut, banned or penalized when it was sampled."""
    family, model = opened
    prompts = prompts_of(family)
    for settings in ({}, CUTS | {"temperature": 1.0}):
        rollouts = generate(family, model, rows_of(prompts), Sampling(8, engine="shared_prefix", **settings))
        branches = [[list(r.tokens) for r in rollouts[3 * i : 3 * i + 3]] for i in range(len(prompts))]
        with torch.no_grad():
            batch = pack(family, list(zip(prompts, branches)), frozenset())
            expected = packed_logprobs(family, model, batch)
        got = torch.tensor([x for r in rollouts for x in r.logprobs])
        assert (got - expected).abs().max() < 1e-4


def test_logprobs_at_a_temperature(vlm):
    logits, tokens = torch.randn(3, 50), torch.tensor([4, 5])
    args = torch.zeros(3, dtype=torch.int64), torch.arange(3), tokens
    for temperature, sampling in ((1.7, Sampling(1, temperature=1.7, top_k=3)), (1.0, Sampling(1, temperature=0.0))):
        drawn, logprobs = draw(logits, None, *args, sampling)
        expected = (logits / temperature).log_softmax(-1).gather(1, drawn[:, None])[:, 0]
        assert (logprobs - expected).abs().max() < 1e-5


# --- the sampler ----------


def test_samples_follow_the_policy(vlm):
    """First tokens of many rows of one prompt, in batches that rows enter late: chi-square on the twelve likeliest."""
    family, model = vlm
    prompt, count, k = prompts_of(family)[1], 6000, 12
    rows = [RolloutRow(prompt, row_key(3, 0, "r", i)) for i in range(count)]
    out = generate(family, model, rows, Sampling(1, temperature=1.5, top_k=k, batch_size=512, engine="shared_prefix"))
    with torch.no_grad():
        logits = model(input_ids=prompt.input_ids[None], **prompt.pixels).logits[0, -1]
    logits[list(family.forbidden_ids)] = -torch.inf
    top = logits.topk(k)
    expected = (top.values.double() / 1.5).softmax(-1) * count
    drawn = Counter(r.tokens[0] for r in out)
    assert set(drawn) <= set(top.indices.tolist())
    counts = torch.tensor([drawn[t] for t in top.indices.tolist()], dtype=torch.float64)
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < (k - 1) + 4 * math.sqrt(2 * (k - 1)), f"chi-square {chi2:.0f} with {k - 1} degrees of freedom"


@pytest.mark.parametrize(
    ("settings", "warper"),
    [
        ({"top_k": 5}, transformers.TopKLogitsWarper(5)),
        ({"top_p": 0.6}, transformers.TopPLogitsWarper(0.6)),
        ({"min_p": 0.2}, transformers.MinPLogitsWarper(0.2)),
        ({"repetition_penalty": 1.8}, transformers.RepetitionPenaltyLogitsProcessor(1.8)),
        ({"temperature": 2.5}, transformers.TemperatureLogitsWarper(2.5)),
    ],
)
def test_restrictions_are_those_of_transformers(settings, warper):
    logits, ids = torch.randn(20, 40) * 2, torch.randint(0, 40, (20, 9))
    seen = seen_tokens(ids, torch.ones_like(ids, dtype=torch.bool), 40) if "repetition_penalty" in settings else None
    got = restrict(logits, seen, torch.tensor([], dtype=torch.int64), Sampling(1, **settings))
    expected = warper(ids, logits.clone())
    assert torch.equal(got.isinf(), expected.isinf())
    assert torch.allclose(got, expected) and not torch.equal(got, logits)


def test_the_penalty_counts_no_padding_and_nothing_of_others():
    ids = torch.tensor([[0, 0, 3, 4], [5, 0, 5, 6]])
    seen = seen_tokens(ids, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool(), 8)
    assert [row.nonzero()[:, 0].tolist() for row in seen] == [[3, 4], [0, 5, 6]]


# --- each prompt once ----------


def test_prompts_run_once(vlm):
    """However many rows, entries and equal copies of a prompt there are."""
    family, model = vlm
    first, again = prompts_of(family), prompts_of(family)
    rows = rows_of(first) + rows_of(again)
    pictures, prefilled, steps = [], [], []

    def see(module, args, kwargs):
        ids = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        (prefilled if ids.shape[1] > 1 else steps).append(len(ids))

    handles = [
        model.model.vision_model.register_forward_pre_hook(
            lambda m, a, k: pictures.append(len(k["pixel_values"])), with_kwargs=True
        ),
        family.decoder_layers(model)[0].register_forward_pre_hook(see, with_kwargs=True),
    ]
    out = generate(family, model, rows, Sampling(6, batch_size=4, engine="shared_prefix"))
    for handle in handles:
        handle.remove()
    assert sum(pictures) == 3 and sum(prefilled) == 3
    assert max(steps) == 4, "more rows than batch_size at once"
    assert out[:9] == out[9:]


# --- static buffers and graphs ----------


def test_a_step_keeps_its_addresses(vlm, monkeypatch):
    """Within a shape of the batch, whatever came between: what a captured graph relies on."""
    family, model = vlm
    seen = defaultdict(set)
    plain = shared_prefix.DecodeBatch.step

    def step(self):
        state = [t for t in vars(self).values() if isinstance(t, torch.Tensor)]
        cache = [t for layer in self.cache.layers for t in vars(layer).values() if isinstance(t, torch.Tensor)]
        state += [*cache, *(t for t in vars(self.cache).values() if isinstance(t, torch.Tensor))]
        assert len(cache) == 4 * len(self.cache.layers) and self.cache.turn is self.turn
        before = tuple(t.data_ptr() for t in state)
        plain(self)
        assert before == tuple(t.data_ptr() for t in state)
        seen[self.cache.shape].add(before)

    monkeypatch.setattr(shared_prefix.DecodeBatch, "step", step)
    sampling = Sampling(70, batch_size=8, repetition_penalty=1.1, engine="shared_prefix")
    with liked(family, model, 3.0):
        generate(family, model, rows_of(prompts_of(family), 6), sampling)
    assert len(seen) > 3 and all(len(addresses) == 1 for addresses in seen.values())


def test_the_same_tokens_from_whole_buckets(vlm, monkeypatch):
    """With graphs attention gets empty columns too."""
    family, model = vlm
    rows, sampling = rows_of(prompts_of(family)), Sampling(40, batch_size=4, engine="shared_prefix")
    expected = generate(family, model, rows, sampling)
    shapes = set()

    class Whole(StepGraphs):
        def run(self, shape, step):
            shapes.add(shape)
            step()

        on = property(lambda self: True, lambda self, value: None)

    monkeypatch.setattr(shared_prefix, "StepGraphs", Whole)
    assert generate(family, model, rows, sampling) == expected
    assert all(shape.rows in (1, 2, 3, 4) and shape.columns == 64 and shape.prompt % 64 == 0 for shape in shapes)


class FakeGraph:
    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1

    def pool(self):
        return "pool"


def test_shapes_are_captured_once(monkeypatch):
    ran = []
    made, pools = [], []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(FakeGraph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", lambda g, pool, **_: pools.append(pool) or contextlib.nullcontext())
    graphs = StepGraphs(torch.device("cuda"), 64)
    for shape, times in (("a", 5), ("b", 4), ("a", 2)):
        for _ in range(times):
            graphs.run(shape, lambda: ran.append(1))
    assert [g.replays for g in made] == [5, 2] and pools == [None, "pool"]
    assert len(ran) == 6  # two steps and one capture for each shape
    assert not StepGraphs(torch.device("cuda"), 4).on
    assert not StepGraphs(torch.device("cpu"), 64).on


def test_a_capture_that_fails_is_said_once(monkeypatch, capsys):
    def fail(graph, **_):
        raise RuntimeError("operation not permitted\nmore")

    ran = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    graphs = StepGraphs(torch.device("cuda"), 64)
    for _ in range(9):
        graphs.run("a", lambda: ran.append(1))
    assert len(ran) == 9
    assert capsys.readouterr().err.splitlines() == [
        "[rollout] decoding goes on without CUDA graphs: operation not permitted"
    ]


def test_buckets():
    assert [row_bucket(n, 100) for n in (1, 2, 3, 4, 5, 7, 9, 13, 33, 49, 65, 97, 100)] == [
        1, 2, 3, 4, 6, 8, 12, 16, 48, 64, 96, 100, 100,
    ]  # fmt: skip
    assert [column_bucket(n) for n in (1, 64, 65, 512, 513, 1000)] == [64, 64, 128, 512, 768, 1024]


def test_the_storage_goes_with_the_call(vlm, monkeypatch):
    """A cycle of references would keep it through the update."""
    family, model = vlm
    held = []
    plain = shared_prefix.GroupCache.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        held.append(weakref.ref(self))

    monkeypatch.setattr(shared_prefix.GroupCache, "__init__", init)
    gc.collect()
    gc.disable()
    try:
        generate(family, model, rows_of(prompts_of(family)), Sampling(5, engine="shared_prefix"))
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()


# --- engines ----------


def test_bf16(vlm):
    family, model = vlm
    half = copy.deepcopy(model).bfloat16()
    out = generate(family, half, rows_of(prompts_of(family)), Sampling(9, batch_size=4, engine="shared_prefix"))
    assert all(math.isfinite(x) and x < 0 for r in out for x in r.logprobs)


@pytest.mark.parametrize("attention", ["flash_attention_2", "eager"])
def test_the_attention_of_the_copy_is_given_back(vlm, attention):
    """These take no masks of ours."""
    family, model = vlm
    rows, sampling = rows_of(prompts_of(family)), Sampling(5, engine="shared_prefix")
    expected = generate(family, model, rows, sampling)
    config = model.config.get_text_config()
    own = config._attn_implementation
    try:
        config._attn_implementation = attention
        assert generate(family, model, rows, sampling) == expected
        assert config._attn_implementation == attention
    finally:
        config._attn_implementation = own


def test_families_without_trees_take_engine_hf(vlm, monkeypatch):
    family, model = vlm
    rows = rows_of(prompts_of(family))
    assert all(r.logprobs for r in generate(family, model, rows, Sampling(2)))
    monkeypatch.setattr(type(family), "packs_trees", False)
    assert not any(r.logprobs for r in generate(family, model, rows, Sampling(2)))
    with pytest.raises(ModelError, match="set it to hf or auto"):
        generate(family, model, rows, Sampling(2, engine="shared_prefix"))


def test_settings_reach_the_engine():
    overrides = ["temperature=0.7", "top_p=0.8", "top_k=9", "min_p=0.1", "repetition_penalty=1.2", "engine=hf"]
    cfg = load_config("configs/quickstart.yaml", [f"rollout.{item}" for item in [*overrides, "batch_size=5"]])
    assert sampling_of(cfg.rollout) == Sampling(40, 0.7, 0.8, 9, 5, 0.1, 1.2, "hf")
    assert sampling_of(cfg.rollout, 7, greedy=True) == Sampling(7, temperature=0.0, batch_size=5, engine="hf")
