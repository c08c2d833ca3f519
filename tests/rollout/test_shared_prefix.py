"""Engine shared_prefix: the tokens of engine hf, each prompt once, and log-probabilities as training takes them."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
import traceback
import weakref
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dyme.batching.packing import pack
from dyme.config import load_config
from dyme.families import IMAGE, Family, ModelError, Prompt, build_family
from dyme.rollout import shared_prefix
from dyme.rollout.attention import attend, attention, decoding, merge, plain
from dyme.rollout.cache import GroupCache, Shape, column_bucket, group_places, reply_bucket, row_bucket
from dyme.rollout.graphs import StepGraphs
from dyme.rollout.noise import row_key
from dyme.rollout.sampling import draw, restrict, seen_tokens
from dyme.rollout.types import Rollout, RolloutRequest, Sampling, sampling_of
from dyme.tools import footprint as mem
from dyme.tools.check.report import decoder_sizes
from tests.helpers.generating import generate
from tests.helpers.packed import packed_logprobs

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


def rows_of(prompts: list[Prompt], completions: int = 3) -> list[RolloutRequest]:
    return [RolloutRequest(p, row_key(0, 1, str(i), k)) for i, p in enumerate(prompts) for k in range(completions)]


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
        expected = generate(family, model, rows, Sampling(12, **settings), engine="hf")
        for size in (4, 64):
            assert generate(family, model, rows, Sampling(12, batch_size=size, **settings), engine="shared_prefix") == (
                expected
            )
    assert settings["temperature"] == 0.0 or len({r.tokens for r in expected}) > 4, "they are all the same"


def test_long_rollouts_enter_leave_and_move(vlm):
    """Rows of all lengths through few places: columns fall away on the left, the cache grows, rows enter at any time,
    and the tokens are those of each row alone."""
    family, model = vlm
    questions = ["What?", "Is the red bar, of all the bars, the longest bar of all? " * 3, "one two three " * 7]
    rows = rows_of([*prompts_of(family), *(family.encode(q, [picture(7)]) for q in questions)], 4)
    sampling = Sampling(90)
    with liked(family, model, 3.0):
        expected = generate(family, model, rows, sampling, engine="hf")
        lengths = sorted(len(r.tokens) for r in expected)
        assert lengths[0] < 12 and lengths[-1] > 60, lengths
        for size in (1, 5, 24):
            assert generate(family, model, rows, replace(sampling, batch_size=size)) == expected
        order = torch.randperm(len(rows)).tolist()
        mixed = generate(family, model, [rows[i] for i in order], replace(sampling, batch_size=7))
        assert mixed == [expected[i] for i in order]


@pytest.mark.parametrize("engine", ["shared_prefix", "hf"])
def test_rows_are_told_as_they_finish(vlm, engine):
    """Each once, with its completion; the first ones before the last ones have entered."""
    family, model = vlm
    rows = rows_of(prompts_of(family), 4)
    told: list[tuple[int, Rollout]] = []
    steps: list[int] = []
    counter = family.head(model).register_forward_pre_hook(lambda *_: steps.append(len(told)))
    sampling = Sampling(12, temperature=1.0, batch_size=4)
    out = generate(family, model, rows, sampling, lambda i, rollout: told.append((i, rollout)), engine)
    counter.remove()
    assert sorted(i for i, _ in told) == list(range(len(rows))) and all(out[i] is rollout for i, rollout in told)
    assert steps[0] == 0 < steps[-1] < len(rows)


def test_all_rows_end_at_once(vlm):
    family, model = vlm
    with liked(family, model, 1e4):
        out = generate(family, model, rows_of(prompts_of(family)), Sampling(8, batch_size=4), engine="shared_prefix")
    assert out == [Rollout((family.end_of_turn,), truncated=False)] * 9


@pytest.mark.parametrize("length", [1, 2, 8, 9])
def test_rows_cut_at_the_limit(vlm, length):
    family, model = vlm
    with liked(family, model, -1e4):
        out = generate(family, model, rows_of(prompts_of(family)), Sampling(length), engine="shared_prefix")
    assert all(r.truncated and len(r.tokens) == len(r.logprobs) == length for r in out)


# --- log-probabilities ----------


@pytest.mark.feature("rollout")
def test_logprobs_are_those_of_training(opened):
    """Of the policy, whatever was cut, banned or penalized when it was sampled."""
    family, model = opened
    prompts = prompts_of(family)
    for settings in ({}, CUTS | {"temperature": 1.0}):
        rollouts = generate(family, model, rows_of(prompts), Sampling(8, **settings), engine="shared_prefix")
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
    rows = [RolloutRequest(prompt, row_key(3, 0, "r", i)) for i in range(count)]
    out = generate(family, model, rows, Sampling(1, temperature=1.5, top_k=k, batch_size=512), engine="shared_prefix")
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
    out = generate(family, model, rows, Sampling(6, batch_size=4), engine="shared_prefix")
    for handle in handles:
        handle.remove()
    assert sum(pictures) == 3 and sum(prefilled) == 3
    assert max(steps) == 4, "more rows than batch_size at once"
    assert out[:9] == out[9:]


# --- attention to prompt and reply ----------


def test_parts_merge_into_one_softmax():
    """In float64 to its rounding; a part of weight zero (a window that sees nothing of it) counts for nothing."""
    query, key, value = (torch.randn(3, 2, n, 8, dtype=torch.float64) * 3 for n in (4, 30, 30))
    expected = (query @ key.mT * 0.3).softmax(-1) @ value
    scores = [query @ key[:, :, part].mT * 0.3 for part in (slice(0, 7), slice(7, 30))]
    parts = [x.softmax(-1) @ value[:, :, part] for x, part in zip(scores, (slice(0, 7), slice(7, 30)))]
    first, second = (x.logsumexp(-1) for x in scores)
    weight = torch.sigmoid(second - first)[..., None]
    assert (parts[0] * (1 - weight) + parts[1] * weight - expected).abs().max() < 1e-12
    got = merge(parts[0].float(), first.float(), parts[1].float(), second.float())
    assert (got - expected).abs().max() < 2e-6
    nothing = torch.full_like(first.float(), torch.finfo(torch.float32).min / 2)
    assert torch.equal(merge(parts[0].float(), first.float(), parts[1].float(), nothing), parts[0].float())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_attention_is_that_of_matrix_products(dtype, bound):
    """The fused kernel of the CPU, keys in storage that is wider than what is seen, and a bias that masks."""
    query = torch.randn(3, 2, 4, 12).to(dtype)
    key, value = (torch.randn(3, 2, 64, 12).to(dtype)[:, :, :37] for _ in range(2))
    low = torch.finfo(dtype).min / 2
    for shape in ((3, 1, 1, 37), (3, 1, 4, 37)):
        bias = torch.zeros(shape, dtype=dtype).masked_fill_(torch.rand(shape) < 0.5, low)
        bias[0] = low  # nothing to see
        out, total = attention(query, key, value, bias, 0.4)
        expected, sums = plain(query, key, value, bias, 0.4)
        assert (out.transpose(1, 2) - expected).abs().max() < bound
        assert torch.allclose(total.transpose(1, 2), sums, rtol=bound, atol=bound) and (total[0] < -1e30).all()
        assert out.is_contiguous() and total.is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_on_a_gpu(dtype):
    query = torch.randn(8, 2, 56, 64, device="cuda").to(dtype)
    key, value = (torch.randn(8, 2, 1536, 64, device="cuda").to(dtype)[:, :, :1280] for _ in range(2))
    length = torch.randint(1, 1280, (8, 1, 1, 1), device="cuda")
    low = torch.finfo(dtype).min / 2
    bias = torch.zeros(8, 1, 1, 1280, dtype=dtype, device="cuda")
    bias.masked_fill_(torch.arange(1280, device="cuda") >= length, low)
    out, total = attention(query, key, value, bias, 0.125)
    expected, sums = plain(query, key, value, bias, 0.125)
    assert (out.transpose(1, 2) - expected).abs().max() < 2e-2
    assert (total.transpose(1, 2) - sums).abs().max() < 2e-2


class Layer(torch.nn.Module):
    layer_idx = 0


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_see_their_prompt_and_their_reply(window, whole):
    """Rows in any order, places without rows, prompts of unlike lengths, and windows that end in the reply or in the
    prompt: beside each row's own softmax over its prompt and reply."""
    heads, share, size = 2, 3, 8
    places, lengths, turns = [2, 0, None, 2, 0, 2, None], {0: 5, 2: 11, 1: 3}, [1, 4, 2, 6, 1, 3, 9]
    reply_lengths = torch.tensor([*turns, 1])
    made = [(torch.randn(heads, 1, size), torch.randn(heads, 1, size))]
    cache = GroupCache(made, reply_lengths, Shape(8, 64, 4, 4, 64), whole=whole)
    prompts = {place: [torch.randn(heads, n, size) for _ in range(2)] for place, n in lengths.items()}
    for place, (keys, values) in prompts.items():
        cache.put_prompt(place, [(keys, values)])
    replies = [torch.randn(7, heads, 64, size) for _ in range(2)]
    cache.layers[0].keys[:7], cache.layers[0].values[:7] = replies
    cache.arrange(places, lengths)
    cache.show(6)
    assert cache.shape == (Shape(7, 64, 3, 3, 64) if whole else Shape(7, 6, 3, 3, 11))
    query, key, value = (torch.randn(7, n, 1, size) for n in (heads * share, heads, heads))
    step = cache.begin()
    seen = cache.update(key, value, 0)
    config = transformers.PretrainedConfig()
    with decoding(config, cache):
        out, _ = attend(Layer(), query, *seen, step.dense(window), scaling=0.4)
    for row, place in enumerate(places):
        if place is None:
            assert out[row].isfinite().all()
            continue
        both = []
        for part, (reply, new) in enumerate(zip(replies, (key, value))):
            own = torch.cat([reply[row, :, : turns[row] - 1], new[row]], 1)
            both.append(torch.cat([prompts[place][part], own], 1)[:, -(window or 10**6) :].double())
        scores = query[row].double().view(heads, share, size) @ both[0].mT * 0.4
        expected = (scores.softmax(-1) @ both[1]).view(heads * share, size)
        assert (out[row, 0] - expected).abs().max() < 2e-6


def test_rows_and_prompts_move(vlm):
    reply_lengths = torch.tensor([3, 2, 1, 4])
    made = [(torch.randn(2, 1, 8), torch.randn(2, 1, 4))] * 2
    cache = GroupCache(made, reply_lengths, Shape(4, 64, 3, 2, 64), whole=False)
    prompts = [[(torch.randn(2, n, 8), torch.randn(2, n, 4)) for _ in made] for n in (7, 5, 3)]
    for place, prompt in enumerate(prompts):
        cache.put_prompt(place, prompt)
    cache.arrange([0, 1, 2, 2], {0: 7, 1: 5, 2: 3})
    cache.show(4)
    for layer in cache.layers:
        layer.keys[:], layer.values[:] = torch.randn(4, 2, 64, 8), torch.randn(4, 2, 64, 4)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    cache.move_rows(torch.tensor([1, 3]))
    cache.move_groups(torch.tensor([1, 2]))
    cache.arrange([0, 1], {0: 5, 1: 3})
    assert cache.prompt_lengths[:2].tolist() == [5, 3] and cache.shape == Shape(2, 4, 2, 1, 5)
    for at, (layer, (keys, values)) in enumerate(zip(cache.layers, before)):
        assert torch.equal(layer.keys[:2, :, :4], keys[[1, 3], :, :4])
        assert torch.equal(layer.values[:2, :, :4], values[[1, 3], :, :4])
        for place, prompt in enumerate(prompts[1:]):
            seen = cache.prompts(at)
            assert torch.equal(seen[0][place, :, : len(prompt[at][0][0])], prompt[at][0])
            assert torch.equal(seen[1][place, :, : len(prompt[at][1][0])], prompt[at][1])


def test_soft_caps_are_refused(vlm):
    with pytest.raises(ValueError, match="soft-capped"):
        attend(Layer(), *torch.randn(4, 1, 2, 1, 8), softcap=30.0)


def test_memory_is_what_the_estimate_says(opened, monkeypatch):
    """Prompts once per group: the cache that a rollout holds, and the formula of `python -m dyme.tools.memory`."""
    family, model = opened
    prompts, made = prompts_of(family), []
    prompts = [replace_ids(prompts[0], n) for n in range(6)]
    plain_init = shared_prefix.GroupCache.__init__

    def init(self, *args, **kwargs):
        plain_init(self, *args, **kwargs)
        made.append(sum(t.numel() * t.element_size() for layer in self.layers for t in vars(layer).values()
                        if isinstance(t, torch.Tensor)))  # fmt: skip

    monkeypatch.setattr(shared_prefix.GroupCache, "__init__", init)
    decoder, longest = decoder_sizes(family, model), len(prompts[0])
    for size in (4, 8, 24):
        generate(family, model, rows_of(prompts, 4), Sampling(5, batch_size=size), engine="shared_prefix")
        load = mem.Load(1, 4, 0, 0, 0, 0, size, longest, 5, prompt_columns=64 * -(-longest // 64), reply_columns=64)
        assert made.pop() == mem.generation(load, decoder, size, 4, 6)["KV cache"]


def replace_ids(prompt: Prompt, shift: int) -> Prompt:
    """Another prompt of the same length."""
    ids = prompt.input_ids.clone()
    ids[-1] -= shift
    return replace(prompt, input_ids=ids)


def test_prompts_wait_for_a_place(vlm):
    """With tails of many groups in the batch no place is left for another prompt, and rows wait."""
    family, model = vlm
    rows = rows_of([family.encode(f"Which of {'them ' * n}?") for n in range(9)], 4)
    sampling = Sampling(30, batch_size=8)
    with liked(family, model, 3.0):
        assert generate(family, model, rows, sampling) == generate(family, model, rows, sampling, engine="hf")
    assert group_places(8, 36, 9) == 4 < 8


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
        assert len(cache) == 4 * len(self.cache.layers) and self.cache.reply_lengths is self.reply_lengths
        before = tuple(t.data_ptr() for t in state)
        plain(self)
        assert before == tuple(t.data_ptr() for t in state)
        seen[self.cache.shape].add(before)

    monkeypatch.setattr(shared_prefix.DecodeBatch, "step", step)
    sampling = Sampling(70, batch_size=8, repetition_penalty=1.1)
    with liked(family, model, 3.0):
        generate(family, model, rows_of(prompts_of(family), 6), sampling)
    assert len(seen) > 3 and all(len(addresses) == 1 for addresses in seen.values())


def test_the_same_tokens_from_whole_buckets(vlm, monkeypatch):
    """With graphs attention gets empty columns too."""
    family, model = vlm
    rows, sampling = rows_of(prompts_of(family)), Sampling(40, batch_size=4)
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
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda g, pool, **_: pools.append(pool) or contextlib.nullcontext())
    graphs = StepGraphs(torch.device("cuda"), 64)
    for shape, times in (("a", 5), ("b", 4), ("a", 2)):
        for _ in range(times):
            graphs.run(shape, lambda: ran.append(1))
    assert [g.replays for g in made] == [5, 3] and pools == [None, "pool"]
    assert len(ran) == 5  # two steps and a capture, then one step and a capture
    assert not StepGraphs(torch.device("cuda"), 4).on
    assert not StepGraphs(torch.device("cpu"), 64).on


def test_a_capture_that_fails_is_said_once(monkeypatch, capsys):
    @contextlib.contextmanager
    def fail(graph, **_):
        stream.append("of the capture")
        try:
            yield
            raise RuntimeError("operation not permitted\nmore")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    ran = []
    stream = ["own"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", stream.append)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    graphs = StepGraphs(torch.device("cuda"), 64)
    for _ in range(9):
        graphs.run("a", lambda: ran.append(1))
    assert len(ran) == 9 + 1 and stream[-1] == "own"  # the capture runs nothing
    assert capsys.readouterr().err.splitlines() == [
        "[rollout] decoding goes on without CUDA graphs: operation not permitted"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"repetition_penalty": 1.3}, CUTS], ids=str)
def test_graphs_give_the_tokens_of_engine_hf_on_a_gpu(vlm, monkeypatch, capsys, settings):
    """Through captures and replays of several shapes, rows that enter, leave and move, and every way to sample."""
    family, model = vlm
    model, made = copy.deepcopy(model).cuda(), []

    class Kept(StepGraphs):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self.graphs)

    monkeypatch.setattr(shared_prefix, "StepGraphs", Kept)
    rows, sampling = rows_of(prompts_of(family), 6), Sampling(90, batch_size=8, **settings)
    with liked(family, model, 2.0):
        expected = generate(family, model, rows, sampling, engine="hf")
        assert generate(family, model, rows, sampling) == expected
    assert "without CUDA graphs" not in capsys.readouterr().err and len(made[0]) > 2


def test_a_step_takes_no_number_from_the_host(vlm, monkeypatch):
    """Assigning a number at places that a tensor names is a copy from the host, which no graph can hold."""
    family, model = vlm
    plain, at = torch.Tensor.__setitem__, []

    def setitem(self, index, value):
        names = index if isinstance(index, tuple) else (index,)
        if any(isinstance(name, torch.Tensor) for name in names) and not isinstance(value, torch.Tensor):
            at.append(traceback.extract_stack()[-2])
        plain(self, index, value)

    step = shared_prefix.DecodeBatch.step

    def watched(self):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "__setitem__", setitem)
            step(self)

    monkeypatch.setattr(shared_prefix.DecodeBatch, "step", watched)
    generate(family, model, rows_of(prompts_of(family)), Sampling(4, **CUTS), engine="shared_prefix")
    assert at == []


def test_buckets():
    assert [row_bucket(n, 100) for n in (1, 2, 3, 4, 5, 7, 9, 13, 33, 49, 65, 97, 100)] == [
        1, 2, 3, 4, 6, 8, 12, 16, 48, 64, 96, 100, 100,
    ]  # fmt: skip
    assert [column_bucket(n) for n in (1, 64, 65, 512, 513, 1000)] == [64, 64, 128, 512, 768, 1024]
    assert [reply_bucket(n) for n in (1, 64, 65, 256, 257)] == [64, 64, 128, 256, 512]
    assert [group_places(*n) for n in ((64, 64, 8), (64, 512, 64), (64, 64, 64), (5, 9, 3), (1, 9, 3))] == [
        8,
        16,
        64,
        3,
        1,
    ]


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
        generate(family, model, rows_of(prompts_of(family)), Sampling(5), engine="shared_prefix")
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()


# --- engines ----------


def test_bf16(vlm):
    family, model = vlm
    half = copy.deepcopy(model).bfloat16()
    out = generate(family, half, rows_of(prompts_of(family)), Sampling(9, batch_size=4), engine="shared_prefix")
    assert all(math.isfinite(x) and x < 0 for r in out for x in r.logprobs)


@pytest.mark.parametrize("attention", ["flash_attention_2", "eager"])
def test_the_attention_of_the_copy_is_given_back(vlm, attention):
    """These take no masks of ours."""
    family, model = vlm
    rows, sampling = rows_of(prompts_of(family)), Sampling(5)
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
        generate(family, model, rows, Sampling(2), engine="shared_prefix")


def test_settings_reach_the_engine():
    overrides = ["temperature=0.7", "top_p=0.8", "top_k=9", "min_p=0.1", "repetition_penalty=1.2", "engine=hf"]
    cfg = load_config("configs/quickstart.yaml", [f"rollout.{item}" for item in [*overrides, "batch_size=5"]])
    assert sampling_of(cfg.rollout) == Sampling(40, 0.7, 0.8, 9, 5, 0.1, 1.2)
    assert cfg.rollout.engine == "hf"
    assert sampling_of(cfg.rollout, 7, greedy=True) == Sampling(7, temperature=0.0, batch_size=5)
