"""The losses again, written as plain autograd over log_softmax, for tests to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from dyme_kernels import LossSpec


def oracle_loss(logits: Tensor, t: dict[str, Tensor | None], spec: LossSpec) -> tuple[Tensor, Tensor, Tensor]:
    """logits [N,V] (scale and cap done), the arguments of policy_loss by name -> loss, logprobs [N], entropy [N]."""
    n, device = logits.shape[0], logits.device
    memorize = t["memorize"] if t.get("memorize") is not None else torch.zeros(n, dtype=torch.bool, device=device)
    temperature = torch.full((n,), spec.temperature, dtype=logits.dtype, device=device)
    temperature[memorize] = spec.memorize_temperature
    table = torch.log_softmax(logits / temperature[:, None], dim=1)
    logp = table.gather(1, t["targets"][:, None])[:, 0]
    entropy = -(table.exp() * table).sum(1)
    old = t["old_logprobs"] if t.get("old_logprobs") is not None else logp.detach()
    live = t["live"].tolist() if t.get("live") is not None else range(n)
    total = logits.sum() * 0.0
    for i in live:
        a, w = t["advantages"][i], t["weights"][i]
        if memorize[i]:
            p = logp[i].detach().exp()
            total = total - w * a * logp[i] * (p * (1 - p) if spec.token_shaping == "p(1-p)" else 1.0)
            continue
        row = [i]
        if spec.surrogate == "gspo" and t.get("segments") is not None:
            row = [j for j in live if t["segments"][j] == t["segments"][i] and not memorize[j]]
        rho = torch.exp(torch.stack([logp[j] - old[j] for j in row]).mean())
        if spec.surrogate in ("clip", "gspo"):
            first = rho if spec.delta is None else torch.clamp(rho, max=spec.delta)
            loss = -torch.min(first * a, torch.clamp(rho, 1 - spec.epsilon_low, 1 + spec.epsilon_high) * a)
        elif spec.surrogate == "cispo":
            loss = -torch.clamp(rho.detach(), max=spec.cispo_cap) * a * logp[i]
        else:
            tau = spec.sapo_tau_pos if a > 0 else spec.sapo_tau_neg
            loss = -4 / tau * torch.sigmoid(tau * (rho - 1)) * a
        if t.get("importance") is not None:
            loss = loss * t["importance"][i]
        if spec.beta:
            d = t["ref_logprobs"][i] - logp[i]
            loss = loss + spec.beta * (torch.exp(d) - d - 1)
        total = total + w * (loss - spec.entropy_coef * entropy[i])
    return total, logp, entropy


def make_inputs(n: int, v: int, seed: int = 0, **drop: None) -> dict[str, Tensor | None]:
    """Arguments of policy_loss for n tokens, float64, with every option present unless dropped (old_logprobs=None)."""
    g = torch.Generator().manual_seed(seed)
    base = {
        "targets": torch.randint(v, (n,), generator=g),
        "advantages": torch.randn(n, generator=g, dtype=torch.float64),
        "weights": torch.rand(n, generator=g, dtype=torch.float64) / max(n, 1),
        "old_logprobs": -torch.log(torch.tensor(float(v))) + 0.5 * torch.randn(n, generator=g, dtype=torch.float64),
        "ref_logprobs": -torch.log(torch.tensor(float(v))) + 0.5 * torch.randn(n, generator=g, dtype=torch.float64),
        "memorize": torch.rand(n, generator=g) < 0.3,
        "importance": 0.5 + torch.rand(n, generator=g, dtype=torch.float64),
        "segments": torch.arange(n) // 4 * 7 + 1000,
        "live": torch.randperm(n, generator=g)[: (3 * n + 3) // 4].sort().values,
    }
    return {**base, **drop}
