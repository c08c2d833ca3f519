"""The losses inside torch.compile: one graph, the same numbers, any number of tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dyme_kernels import SURROGATES, LossSpec, linear_policy_loss, policy_loss
from dyme_kernels.extras.compile_ops import pack_spec, unpack_spec
from tests.helpers.kernel_oracle import make_inputs

SPEC = LossSpec(beta=0.1, entropy_coef=0.05, temperature=0.7, delta=1.5, logit_softcap=3.0)


def float_inputs(n: int, v: int) -> dict:
    given = make_inputs(n, v).items()
    return {k: x.float() if x is not None and x.is_floating_point() else x for k, x in given}


@pytest.fixture
def head() -> torch.nn.Linear:
    torch._dynamo.reset()
    return torch.nn.Linear(8, 37)


def fused(head: torch.nn.Linear, spec: LossSpec, hidden: torch.Tensor, t: dict) -> tuple[torch.Tensor, torch.Tensor]:
    out = linear_policy_loss(hidden * 2, head.weight, **t, bias=head.bias, spec=spec)
    return out.loss * 2, out.logprobs


def from_logits(
    head: torch.nn.Linear, spec: LossSpec, hidden: torch.Tensor, t: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    out = policy_loss(head(hidden), **t, spec=spec)
    return out.loss * 2, out.logprobs


@pytest.mark.parametrize("loss", (fused, from_logits))
@pytest.mark.parametrize("surrogate", ("clip", "gspo"))
def test_one_graph_with_the_same_numbers(head, loss, surrogate):
    spec = replace(SPEC, surrogate=surrogate)
    t, hidden = float_inputs(23, 37), torch.randn(23, 8, requires_grad=True)
    wanted = (hidden, head.weight, head.bias)
    value, logprobs = loss(head, spec, hidden, t)
    grads = torch.autograd.grad(value, wanted)
    compiled = torch.compile(lambda h: loss(head, spec, h, t), fullgraph=True, backend="aot_eager")
    again, same_logprobs = compiled(hidden)
    assert torch.allclose(again, value) and torch.equal(same_logprobs, logprobs) and not same_logprobs.requires_grad
    for mine, theirs in zip(torch.autograd.grad(again, wanted), grads, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert torch.allclose(compiled(hidden)[0], value)


def test_a_new_number_of_tokens_compiles_nothing(head):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    def loss(hidden, targets, ones):
        return linear_policy_loss(hidden, head.weight, targets, ones, ones, bias=head.bias).loss

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    for n in (5, 9, 14, 64):
        hidden, targets = torch.randn(n, 8), torch.randint(37, (n,))
        assert torch.allclose(compiled(hidden, targets, torch.ones(n)), loss(hidden, targets, torch.ones(n)))
    assert len(graphs) == 1


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_spec_travels_as_lists(surrogate):
    for spec in (LossSpec(surrogate=surrogate), replace(SPEC, surrogate=surrogate, token_shaping="p(1-p)")):
        assert unpack_spec(*pack_spec(spec)) == spec


def test_the_operators_pass_pytorchs_own_check(head):
    t, hidden = float_inputs(6, 37), torch.randn(6, 8, requires_grad=True)
    rest = [
        t[k] for k in ("targets", "advantages", "weights", "old_logprobs", "ref_logprobs", "memorize", "importance")
    ]
    texts, numbers = pack_spec(SPEC)
    arguments = (hidden, head.weight, head.bias, *rest, None, None, texts, numbers, 1.0, "torch", [True] * 3)
    result = torch.library.opcheck(torch.ops.dyme_kernels.linear_policy_loss, arguments)
    logits = torch.randn(6, 37, requires_grad=True)
    other = torch.library.opcheck(
        torch.ops.dyme_kernels.policy_loss, (logits, *rest, None, None, texts, numbers, "torch", True)
    )
    assert {*result.values(), *other.values()} == {"SUCCESS"}
