"""One token a row from logits, by arg-max over scores that carry keyed Gumbel noise: a sample of their softmax.

The noise of a token is a hash of its row's key, its position and its vocabulary entry, so what a row draws does not
depend on the other rows, on the device or on what was drawn before, and no random state is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyme_kernels.backends import resolve_backend
from dyme_kernels.noise import gumbel_noise


def sample_tokens(
    logits: Tensor,
    keys: Tensor,
    positions: Tensor,
    *,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    seen: Tensor | None = None,
    penalty: float = 1.0,
    scores: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B] and their log-probabilities float32 [B].

    logits [B,V] float64 (rounded to float32), float32, bfloat16 or float16, left as they are; keys, positions [B]
    int64: of the row, and of the token in it. What is sampled is softmax(scores); scores are, in this order, the logits
    with -inf at `banned` (indices int64 [n]), of tokens in `seen` (bool [B,V]) divided by `penalty` where positive and
    multiplied by it where negative (repetition penalty of CTRL, Keskar et al. 2019), and divided by `temperature`. A
    caller with other cuts (top-k, top-p) passes finished `scores` float32 [B,V] instead. temperature 0 is greedy: no
    noise, and nothing is divided. Of equal scores the lowest index is taken.

    The log-probability is that of softmax(logits / temperature) over the whole vocabulary, before bans, penalty and
    cuts; at temperature 1 where it is greedy. It is NaN in a row that holds a NaN, whose token may be any.

    On a GPU the logits are read once; nothing waits for the host, so a CUDA graph may hold the call. A row's results
    are the same bits whatever rows are beside it. Both backends draw the same token, but where two noisy scores are
    within a rounding of float32 (the logarithms of two libraries).

    Raises ValueError for arguments that do not fit.
    """
    chosen = resolve_backend(backend, "sample_tokens", logits.device, logits.dtype)
    _check(logits, keys, positions, temperature, banned, seen, penalty, scores)
    if chosen == "triton":
        from dyme_kernels.triton_sampling import sampled

        mask = None
        if banned is not None and banned.numel():
            mask = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill_(0, banned, True)
        return sampled(logits, keys, positions, temperature, mask, seen, penalty, scores)
    wide = logits.float()
    divisor = wide.new_full((), temperature or 1.0)  # a GPU multiplies by the inverse of a plain number
    if scores is None:
        scores = wide if banned is None else wide.index_fill(1, banned, -torch.inf)
        if seen is not None:
            changed = torch.where(scores < 0, scores * penalty, scores / wide.new_full((), penalty))
            scores = torch.where(seen, changed, scores)
        scores = scores / divisor
    if temperature:
        scores = scores + gumbel_noise(keys, positions, logits.shape[1])
    tokens = scores.argmax(-1)
    policy = wide / divisor
    return tokens, policy.gather(1, tokens[:, None])[:, 0] - policy.logsumexp(-1)


def _check(
    logits: Tensor, keys: Tensor, positions: Tensor, temperature: float, banned: Tensor | None, seen: Tensor | None,
    penalty: float, scores: Tensor | None,
) -> None:  # fmt: skip
    if logits.dim() != 2 or logits.shape[1] == 0 or logits.stride(1) != 1:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and strides {logits.stride()}, expected [B,V] with entries side "
            "by side: take the last position, or call .contiguous()"
        )
    for name, x in (("keys", keys), ("positions", positions)):
        if x.shape != logits.shape[:1] or x.dtype != torch.int64:
            raise ValueError(f"{name} is {x.dtype} {tuple(x.shape)}, expected int64 ({logits.shape[0]},), one a row")
    if not temperature >= 0.0:
        raise ValueError(f"temperature={temperature}: allowed are 0, which is greedy, and numbers above")
    if not penalty > 0.0:
        raise ValueError(f"penalty={penalty}: allowed are numbers above 0; 1 is off")
    if banned is not None and (banned.dim() != 1 or banned.dtype != torch.int64):
        raise ValueError("banned must be a vector of int64 indices: pass mask.nonzero().squeeze(1) for a mask")
    if scores is not None and (banned is not None or seen is not None):
        raise ValueError("scores are final: leave out banned and seen, or leave out scores")
    for name, given, dtype in (("seen", seen, torch.bool), ("scores", scores, torch.float32)):
        if given is not None and (given.shape != logits.shape or given.dtype != dtype or given.stride(1) != 1):
            raise ValueError(
                f"{name} is {given.dtype} {tuple(given.shape)} with strides {given.stride()}, expected {dtype} "
                f"{tuple(logits.shape)} with entries side by side"
            )
