"""Policy: the module that DeepSpeed wraps, backbone and fused loss head in one forward."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from deepspeed.utils.z3_leaf_module import set_z3_leaf_module
from torch import Tensor, nn

from dyme.batching.objective import LossInputs
from dyme.batching.packing import PackedBatch
from dyme.engine.lora import adapters_off
from dyme.families.base import Family, ModelError
from dyme_kernels import LossSpec, linear_policy_loss


class Policy(nn.Module):
    """The module DeepSpeed wraps: backbone, live positions, fused head. The loss is computed inside the engine's
    forward, so that ZeRO-3's hooks gather the head once and its gradient goes back through autograd."""

    def __init__(self, family: Family, model: nn.Module, spec: LossSpec, logits_budget_mb: int) -> None:
        super().__init__()
        self.family, self.model, self.spec = family, model, spec
        policy = self
        head = family.head(model)
        if hasattr(
            head, "lora_A"
        ):  # its parameters lie in submodules that are not called: ZeRO-3 gathers them together
            set_z3_leaf_module(head, True)
        plain = head.forward

        def forward(
            self: nn.Module, hidden: Tensor, batch: PackedBatch | None = None, inputs: LossInputs | None = None
        ) -> Any:
            if batch is None or inputs is None:
                return plain(hidden)
            weight, bias = head_tensors(self)
            out = linear_policy_loss(
                hidden,
                weight,
                batch.targets,
                inputs.advantages,
                inputs.weights,
                old_logprobs=inputs.old_logprobs,
                ref_logprobs=inputs.ref_logprobs,
                memorize=inputs.memorize,
                segments=inputs.segments,
                bias=bias,
                spec=replace(policy.spec, token_shaping=inputs.token_shaping, beta=policy.spec.beta * inputs.kl_share),
                logits_budget_mb=logits_budget_mb,
            )
            return tuple(getattr(out, f.name) for f in fields(out))  # ZeRO-3's hooks see tensors in tuples only

        head.forward = types.MethodType(forward, head)  # type: ignore[method-assign]

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """In here a forward is that of the model before training, for models that train adapters only: without them,
        without dropout, without the KL term."""
        spec, training = self.spec, self.training
        self.spec = replace(spec, beta=0.0)
        self.eval()
        try:
            with adapters_off(self.model):
                yield
        finally:
            self.spec = spec
            self.train(training)

    def forward(self, batch: PackedBatch, inputs: LossInputs) -> Any:
        mask = self.family.attention_mask(self.model, batch.layout)
        hidden = self.family.hidden(self.model, batch.input_ids, mask, batch.position_ids, batch.pixels)
        live = hidden.flatten(0, 1).index_select(0, batch.select)
        return self.family.head(self.model)(live, batch=batch, inputs=inputs)


def head_tensors(head: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [V, H] and bias [V] of a Linear, or of one that peft has wrapped with LoRA (2106.09685):
    W + scaling B A for every active adapter. Raises `ModelError` for adapters that are no change of the weight."""
    if not hasattr(head, "lora_A"):
        return head.weight, getattr(head, "bias", None)
    weight = head.base_layer.weight
    adapters = () if head.disable_adapters or head.merged else tuple(head.active_adapters)
    for name in adapters:
        if name not in head.lora_A:
            continue
        if not isinstance(head.lora_dropout[name], nn.Identity) or head.use_dora[name] or head.lora_bias[name]:
            raise ModelError(
                f"the LoRA adapter '{name}' of the head has dropout, DoRA or a bias of its own, which the fused loss "
                "cannot take: leave lm_head out of its target modules, or set them off"
            )
        weight = weight + head.scaling[name] * (head.lora_B[name].weight @ head.lora_A[name].weight)
    return weight, head.base_layer.bias
