"""Sampled tokens and their log-probabilities: the Triton kernels, on a GPU or interpreted, against PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dyme.rollout.noise import gumbel
from dyme.rollout.sampling import draw, draw_fused, seen_tokens
from dyme.rollout.types import Sampling
from dyme_kernels import gumbel_noise, sample_tokens

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
triton_sampling = pytest.importorskip("dyme_kernels.triton_sampling")
exact_noise, rough_noise = triton_sampling._exact_noise, triton_sampling._rough_noise
pytestmark = pytest.mark.filterwarnings("ignore:overflow")  # interpreted hashes wrap, as they should
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NONE = torch.tensor([], dtype=torch.int64, device=DEVICE)
INT64 = torch.iinfo(torch.int64)


def rows(count: int, vocabulary: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> tuple:
    """logits, keys of any sign and size, positions."""
    g = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(count, vocabulary, generator=g)).to(dtype)
    keys = torch.randint(INT64.min, INT64.max, (count,), generator=g)
    return tuple(x.to(DEVICE) for x in (logits, keys, torch.randint(0, 5000, (count,), generator=g)))


def check(logits: Tensor, keys: Tensor, positions: Tensor, **options: object) -> Tensor:
    """Both backends draw equal tokens; the log-probability is float64's to float32 rounding. -> tokens."""
    mine, logprobs = sample_tokens(logits, keys, positions, **options, backend="triton")
    theirs, other = sample_tokens(logits, keys, positions, **options, backend="torch")
    assert mine.dtype == torch.int64 and logprobs.dtype == torch.float32 and torch.equal(mine, theirs)
    policy = logits.double() / (options.get("temperature", 1.0) or 1.0)
    exact = policy.log_softmax(-1).gather(1, mine[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), exact, rtol=5e-7, atol=3e-6)
    # PyTorch's is a difference of numbers as large as the logits
    torch.testing.assert_close(other.double(), exact, rtol=5e-7, atol=3e-6 + 3e-7 * float(policy.abs().amax(1).mean()))
    return mine


# 1025 and wider: more than one slice; 32003: more than one block a slice, the last one ragged
@pytest.mark.parametrize("v", (1, 2, 257, 1024, 1025, 32003, 49280))
@pytest.mark.parametrize("temperature", (1.0, 0.7, 3.0, 0.0))
def test_tokens_are_those_of_the_torch_implementation(v, temperature):
    check(*rows(24 if v < 2000 else 3, v, seed=v), temperature=temperature)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("v", (257, 32003))
def test_narrow_logits(v, dtype):
    check(*rows(4, v, dtype=dtype), temperature=0.9)
    check(*rows(4, v, dtype=dtype), temperature=0.0)  # many equal logits


@pytest.mark.parametrize("scale", (0.0, 30.0, 1000.0))
def test_flat_and_peaked_rows(scale):
    check(*rows(12, 3000, scale=scale))


def test_many_rows():
    """All noise: what the float32 logarithms leave open shows most often where the logits decide nothing."""
    check(*rows(150, 600, scale=0.1))


@pytest.mark.parametrize("v", (1, 257, 151936))
def test_the_noise_is_the_rollouts(v):
    _, keys, positions = rows(4, v)
    assert torch.equal(gumbel_noise(keys, positions, v), gumbel(keys, positions, v))


@triton.jit
def both_noises(bits, exact, rough, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    x = tl.load(bits + lanes).to(tl.uint64)
    tl.store(exact + lanes, exact_noise(x))
    tl.store(rough + lanes, rough_noise(x))


@triton.jit
def wrong_noise(bits):
    return exact_noise(bits) + tl.where((bits & 1) == 1, 1.9e-4, -1.9e-4).to(tl.float32)


def test_rough_noise_keeps_its_margin():
    """At both ends of the uniform numbers, at the seam of the two formulas, and at any number between."""
    whole, block = 2**52, 8192
    near = torch.arange(64)
    seam = whole - whole // 64
    ends = [near, whole - 1 - near, seam - 32 + near, whole // 2 - 32 + near]
    ends += [whole - 1 - 2 ** torch.arange(52), 2 ** torch.arange(52)]
    picked = torch.cat(ends)
    g = torch.Generator().manual_seed(0)
    bits = torch.cat([picked, torch.randint(0, whole, (block - len(picked),), generator=g)]).to(DEVICE)
    exact, rough = (torch.empty(block, device=DEVICE) for _ in range(2))
    both_noises[(1,)](bits, exact, rough, BLOCK=block)
    truth = -torch.log(-torch.log((bits.double() + 0.5) * 2.0**-52))
    assert (exact.double() - truth).abs().max() < 3e-6 and exact.isfinite().all()  # a rounding at 36
    assert (rough.double() - truth).abs().max() < triton_sampling.MARGIN.value / 4


CLOSE = {"anywhere": torch.arange(20) * 971, "in a lane": torch.tensor([5000, 6024]), "in a block": torch.arange(4, 24)}


@pytest.mark.skipif(DEVICE == "cuda", reason="changes a function of the kernel, which is interpreted on the CPU only")
@pytest.mark.parametrize("temperature", (1.0, 0.25))
@pytest.mark.parametrize("where", CLOSE)
def test_close_scores_are_decided_exactly(monkeypatch, where, temperature):
    """A few entries lead by steps of 1e-5, in an order of their own for each row, and the rough noise is as wrong as it
    may be. The best of the first row is banned."""
    v, count, close = 20000, 4, CLOSE[where]
    assert triton_sampling.slices(v)[1] == 2 * triton_sampling.BLOCK == 2048
    _, keys, positions = rows(count, v)
    g = torch.Generator().manual_seed(1)
    noise = gumbel_noise(keys, positions, v)
    logits = -noise - 1.0
    best = []
    for row in range(count):
        order = close[torch.randperm(len(close), generator=g)]
        logits[row, order] = 1e-5 * torch.arange(len(order)) - noise[row, order]
        best.append(int(order[-1]))
    monkeypatch.setattr(triton_sampling, "_rough_noise", wrong_noise)
    assert check(logits * temperature, keys, positions, temperature=temperature).tolist() == best
    banned = torch.tensor(best[:1])
    tokens = check(logits * temperature, keys, positions, temperature=temperature, banned=banned)
    assert tokens[0] != best[0] and torch.isin(tokens, close).all()


@pytest.mark.parametrize("temperature", (1.0, 0.6, 0.0))
@pytest.mark.parametrize("v", (257, 32003))
def test_banned_tokens(v, temperature):
    logits, keys, positions = rows(8 if v < 2000 else 3, v)
    first = check(logits, keys, positions, temperature=temperature)
    tokens = check(logits, keys, positions, temperature=temperature, banned=first)
    assert not torch.isin(tokens, first).any()
    assert torch.equal(check(logits, keys, positions, temperature=temperature, banned=NONE), first)


@pytest.mark.parametrize("temperature", (1.0, 0.6, 0.0))
@pytest.mark.parametrize("penalty", (1.3, 0.7))
def test_repetition_penalty(penalty, temperature):
    logits, keys, positions = rows(12, 1500)
    g = torch.Generator().manual_seed(2)
    seen = (torch.rand(12, 1501, generator=g) < 0.5).to(DEVICE)[:, :1500]  # wider than the logits, as seen_tokens makes
    options = {"temperature": temperature, "banned": torch.tensor([3, 4], device=DEVICE)}
    plain = check(logits, keys, positions, **options)
    assert not torch.equal(plain, check(logits, keys, positions, **options, seen=seen, penalty=penalty))


def test_finished_scores():
    logits, keys, positions = rows(12, 1500)
    scores = logits.masked_fill(logits < 3.0, -torch.inf)
    tokens = check(logits, keys, positions, scores=scores, temperature=1.4)
    assert scores.gather(1, tokens[:, None]).isfinite().all()
    assert torch.equal(check(logits, keys, positions, scores=scores, temperature=0.0), logits.argmax(-1))


@pytest.mark.parametrize("temperature", (1.0, 0.0))
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_of_equal_scores_the_lowest_index(temperature):
    _, keys, positions = rows(4, 20000)
    flat = torch.zeros(4, 20000, device=DEVICE)
    if temperature:
        flat.fill_(-torch.inf)  # everything is banned: nothing to choose from
        mine, _ = sample_tokens(flat, keys, positions, backend="triton")
        assert torch.equal(mine, sample_tokens(flat, keys, positions, backend="torch")[0]) and mine.eq(0).all()
        return
    flat[:, 1000] = flat[:, 2024] = flat[:, 19999] = 2.0  # the first two in one lane
    flat[2, 77] = 2.0
    assert check(flat, keys, positions, temperature=0.0).tolist() == [1000, 1000, 77, 1000]


def test_rows_do_not_depend_on_the_batch():
    """Bit for bit, tokens and log-probabilities; and one row may serve many keys, as for a prompt's first tokens."""
    logits, keys, positions = rows(9, 20000)
    tokens, logprobs = sample_tokens(logits, keys, positions, backend="triton")
    for part in (slice(3, 4), slice(2, 9)):
        again = sample_tokens(logits[part], keys[part], positions[part], backend="triton")
        assert torch.equal(again[0], tokens[part]) and torch.equal(again[1], logprobs[part])
    one = logits[:1].expand(9, -1)
    assert one.stride(0) == 0 and len(set(check(one, keys, positions).tolist())) > 1


def test_a_nan_shows_in_the_log_probability():
    logits, keys, positions = rows(3, 3000)
    logits[1, 2000] = torch.nan
    tokens, logprobs = sample_tokens(logits, keys, positions, backend="triton")
    assert logprobs.isnan().tolist() == [False, True, False] and tokens.lt(3000).all() and tokens.ge(0).all()
    tokens, logprobs = sample_tokens(torch.full_like(logits, torch.nan), keys, positions, backend="triton")
    assert logprobs.isnan().all() and tokens.lt(3000).all() and tokens.ge(0).all()


def test_no_rows():
    for backend in ("triton", "torch"):
        tokens, logprobs = sample_tokens(*rows(0, 257), backend=backend)
        assert tokens.shape == logprobs.shape == (0,) and tokens.dtype == torch.int64


def test_samples_follow_the_softmax():
    """Chi-square over a vocabulary of 20."""
    count, v = 400, 20
    logits, keys, positions = rows(count, v)
    logits = logits[:1].expand(count, -1)
    tokens, _ = sample_tokens(logits, keys, positions, temperature=1.5, backend="triton")
    expected = (logits[0].double() / 1.5).softmax(-1) * count
    chi2 = float(((tokens.bincount(minlength=v) - expected) ** 2 / expected).sum())
    assert chi2 < (v - 1) + 4 * math.sqrt(2 * (v - 1)), f"chi-square {chi2:.0f} with {v - 1} degrees of freedom"


SETTINGS = {
    "plain": {"temperature": 1.3},
    "greedy": {"temperature": 0.0, "top_k": 4},
    "top-k": {"temperature": 0.8, "top_k": 40},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.05},
    "penalty": {"repetition_penalty": 1.4, "temperature": 0.9},
    "all": {"temperature": 1.4, "top_k": 60, "top_p": 0.9, "min_p": 0.002, "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("backend", ("triton", "torch"))
def test_the_rollouts_sampler_draws_the_same(name, backend):
    """`draw` on the CPU, written without this package."""
    logits, keys, positions = (x.cpu() for x in rows(16, 1500, seed=3))
    sampling, banned = Sampling(1, **SETTINGS[name]), torch.tensor([0, 17])
    ids = torch.randint(0, 1500, (16, 300), generator=torch.Generator().manual_seed(4))
    seen = seen_tokens(ids, ids >= 0, 1500) if sampling.repetition_penalty != 1.0 else None
    tokens, logprobs = draw(logits, seen, keys, positions, banned, sampling)
    here = [None if x is None else x.to(DEVICE) for x in (logits, seen, keys, positions, banned)]
    mine, other = draw_fused(*here, sampling, backend=backend)
    assert torch.equal(mine.cpu(), tokens)
    torch.testing.assert_close(other.cpu(), logprobs, rtol=1e-6, atol=1e-5)


def test_what_does_not_fit_is_an_error():
    logits, keys, positions = rows(3, 9)
    seen = torch.zeros(3, 9, dtype=torch.bool, device=DEVICE)
    for message, change in (
        ("logits have shape", {"logits": logits[0]}),
        ("call .contiguous", {"logits": logits.T.contiguous().T}),
        ("keys is torch.int32", {"keys": keys.int()}),
        ("positions is torch.int64 \\(2,\\)", {"positions": positions[:2]}),
        ("temperature=-1", {"temperature": -1.0}),
        ("temperature=nan", {"temperature": math.nan}),
        ("penalty=0", {"penalty": 0.0}),
        ("banned must be", {"banned": seen[0]}),
        ("seen is torch.bool \\(3, 8\\)", {"seen": seen[:, :8]}),
        ("scores is torch.bfloat16", {"scores": logits.bfloat16()}),
        ("scores are final", {"scores": logits, "seen": seen}),
    ):
        given = {"logits": logits, "keys": keys, "positions": positions, **change}
        with pytest.raises(ValueError, match=message):
            sample_tokens(**given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_sizes_of_models_on_a_gpu(dtype):
    for count, v in ((256, 151936), (64, 152064), (8, 49280)):
        logits, keys, positions = rows(count, v, dtype=dtype)
        mine, _ = sample_tokens(logits, keys, positions, temperature=0.9, backend="triton")
        theirs, _ = sample_tokens(logits, keys, positions, temperature=0.9, backend="torch")
        on_host = sample_tokens(logits[:8].cpu(), keys[:8].cpu(), positions[:8].cpu(), temperature=0.9)[0]
        assert torch.equal(mine, theirs) and torch.equal(mine[:8].cpu(), on_host)
        check(logits[:16], keys[:16], positions[:16], temperature=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_holds_the_call():
    logits, keys, positions = rows(64, 151936)
    banned = torch.tensor([5, 6], device=DEVICE)
    sample_tokens(logits, keys, positions, banned=banned, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, logprobs = sample_tokens(logits, keys, positions, banned=banned, backend="triton")
    positions += 1
    graph.replay()
    expected = sample_tokens(logits, keys, positions, banned=banned, backend="triton")
    assert torch.equal(tokens, expected[0]) and torch.equal(logprobs, expected[1])
