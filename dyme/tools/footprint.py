"""Estimate of the memory that a training run takes per GPU: pure functions of numbers, in bytes.

Memory that stays from step to step (weights, gradients, optimizer, rollout copy, reference) follows from the layout of
the engine and DeepSpeed, and is checked against an engine. Temporary memory (activations, KV cache, loss head) is
computed from the shapes of a usual decoder layer and is rough. Not counted: the CUDA context and libraries (about 0.5
to 1 GiB), fragmentation of the allocator, compiled kernels' workspaces, pictures.

Symbols in the docstrings: N ranks, P parameters, T trained parameters, b bytes of a value (2 in bf16, 4 in fp32).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 2**20


@dataclass(frozen=True)
class Zero:
    """Memory settings of the DeepSpeed JSON (default: ds_configs/zero3.json). bucket, max_live: numbers of values."""

    stage: int = 3
    offload_optimizer: bool = False
    offload_param: bool = False
    gradient_bytes: int | None = 4
    """Bytes of a value of the type in which gradients accumulate; None: that of the model."""
    bucket: int = 50_000_000
    buckets: int = 1
    max_live: int = 1_000_000_000


@dataclass(frozen=True)
class Decoder:
    """Sizes of the language model. query, key_value: heads times their width. norms: of the hidden size, in a layer.
    window: of the `sliding` layers."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocab: int
    norms: int = 2
    sliding: int = 0
    window: int = 0


@dataclass(frozen=True)
class Tower:
    """Sizes of the vision tower. width: sum over the Linears of a layer of their inputs and outputs. patches: of one
    picture."""

    layers: int
    hidden: int
    width: int
    patches: int


@dataclass(frozen=True)
class Load:
    """Load of a rank. rows: decoded at once. prompt, reply: tokens of a row. trained: parameters with
    gradients. adapters: of `parameters`, those of LoRA. layer, largest, adapted: parameters of the largest decoder
    layer, parameter and Linear with an adapter. evaluated: rows of an evaluation decoded at once. dense_mask: packed
    groups under sdpa. reference: a frozen copy of the policy is kept. offload: the rollout copy is moved to the host.

    For rollout engine shared_prefix: columns of its cache for a prompt and for a reply (0: engine hf), rows of a group
    that share a prompt, prompts of a rollout in all, and the most prompt tokens that it prefills together."""

    ranks: int
    value_bytes: int
    parameters: int
    trained: int
    token_budget: int
    logits_budget_mb: int
    rows: int
    prompt: int
    reply: int
    adapters: int = 0
    layer: int = 0
    largest: int = 0
    adapted: int = 0
    evaluated: int = 0
    offload: bool = False
    checkpointing: bool = False
    dense_mask: bool = False
    trains_head: bool = True
    trains_tower: bool = True
    reference: bool = False
    prompt_columns: int = 0
    reply_columns: int = 0
    group: int = 1
    prompts: int = 0
    prefilled: int = 0


@dataclass(frozen=True)
class Estimate:
    """Bytes per GPU by name. `stays` is held from step to step; `update`, `rollout`, `refresh` and `evaluation` are the
    temporary memory of the phases, one after the other. `host`: offloaded to the memory of the machine, per rank."""

    stays: dict[str, int]
    update: dict[str, int]
    rollout: dict[str, int]
    refresh: dict[str, int]
    evaluation: dict[str, int]
    host: dict[str, int]

    @property
    def phases(self) -> dict[str, dict[str, int]]:
        """The phases of the run in their order."""
        own = {"rollout": self.rollout, "update": self.update, "refresh": self.refresh, "evaluation": self.evaluation}
        return {name: part for name, part in own.items() if part or name in ("update", "refresh")}

    def peak_of(self, phase: str) -> int:
        return sum(self.stays.values()) + sum(self.phases[phase].values())

    @property
    def peak(self) -> int:
        return max(map(self.peak_of, self.phases))


def estimate(load: Load, zero: Zero, decoder: Decoder, tower: Tower | None = None) -> Estimate:
    """The whole estimate. Without rollouts (method sft) `load.rows` is 0, without evaluation `load.evaluated`."""
    b, n = load.value_bytes, load.ranks
    shards = {
        "weights": (weights(load.parameters, b, zero.stage, n), zero.offload_param),
        "gradients": (gradients(load.trained, zero.gradient_bytes or b, zero.stage, n), zero.offload_optimizer),
        "optimizer": (optimizer(load.trained, n), zero.offload_optimizer),
        "reference policy": (weights(load.parameters, b, 3, n) if load.reference else 0, zero.offload_param),
    }
    stays = {name: size for name, (size, away) in shards.items() if not away}
    stays["gradient buckets"] = buckets(zero, b) if zero.stage == 3 else 0
    copied = {"rollout copy": rollout_copy(load.parameters - load.adapters, b)}
    stays |= {} if load.offload else copied
    tokens = max(load.token_budget, load.prompt + load.reply)  # a single row is never split
    pictures = max(1, load.token_budget // max(1, load.prompt))
    masks = 1 if load.checkpointing else decoder.layers
    update = {
        "gathered weights": gathered(load.parameters, b, zero, n),
        "gradient buckets": buckets(zero, b) if zero.stage < 3 else 0,
        "activations": activations(decoder, tokens, b, checkpointing=load.checkpointing),
        "vision activations": tower_activations(
            tower, pictures, b, trained=load.trains_tower, checkpointing=load.checkpointing
        ),
        "attention mask": attention_mask(tokens, masks, b) if load.dense_mask else 0,
        "loss head": loss_head(decoder, load.logits_budget_mb, b, trained=load.trains_head),
    }
    gathers = zero.stage == 3 and (n > 1 or zero.offload_param)
    refresh = {
        # what ZeRO-3 gathers at once: the largest decoder layer, or parameter (an embedding) where that has more
        "gathered weights": b * max(load.layer, load.largest) if gathers else 0,
        # the weight and B A, in float32, of the largest Linear with an adapter
        "merged weights": 8 * load.adapted,
    }
    rollout, evaluation = (
        {**(copied if load.offload and rows else {}), **generation(load, decoder, rows, group, prompts)}
        for rows, group, prompts in ((load.rows, load.group, load.prompts), (load.evaluated, 1, load.evaluated))
    )
    host = {name: size for name, (size, away) in shards.items() if away} | (copied if load.offload else {})
    phases = (update, rollout, refresh, evaluation)
    return Estimate(*({k: v for k, v in part.items() if v} for part in (stays, *phases, host)))


# --- what stays ----------


def weights(parameters: int, value_bytes: int, stage: int, ranks: int) -> int:
    """b P / N under ZeRO-3; b P under ZeRO-1 and 2. The reference policy is under ZeRO-3 always."""
    return _share(value_bytes * parameters, ranks if stage == 3 else 1)


def gradients(trained: int, gradient_bytes: int, stage: int, ranks: int) -> int:
    """g T / N under ZeRO-2 and 3, g T under ZeRO-1, with g = 4 where the DeepSpeed JSON (or the engine, in bf16) has
    `grad_accum_dtype: fp32`, else b. Under ZeRO-3 the buffer lives as long as the engine."""
    return _share(gradient_bytes * trained, ranks if stage > 1 else 1)


def optimizer(trained: int, ranks: int) -> int:
    """(4 + 8) T / N: AdamW's two moments and DeepSpeed's master weights in float32; in fp32 it keeps a second copy of
    them as well."""
    return _share(12 * trained, ranks)


def buckets(zero: Zero, value_bytes: int) -> int:
    """b reduce_bucket_size, twice under ZeRO-1 and 2 with overlap_comm. Under ZeRO-3 they live as long as the engine,
    else as long as a backward pass."""
    return value_bytes * zero.bucket * zero.buckets


def rollout_copy(parameters: int, value_bytes: int) -> int:
    """b P without adapters, whole on every rank; kept by all methods, because evaluation runs on it too. With
    `rollout.offload` it is on the GPU in rollouts and evaluations only, and on the host always."""
    return value_bytes * parameters


def adapters(shapes: list[tuple[int, int]], rank: int) -> int:
    """Parameters of LoRA: r (in + out) for each Linear [out, in]. They count to P and alone to T; the model without
    them is its own reference policy."""
    return sum(rank * (inputs + outputs) for outputs, inputs in shapes)


def _share(total: int, ranks: int) -> int:
    return -(-total // ranks)


# --- temporary in an update ----------


def gathered(parameters: int, value_bytes: int, zero: Zero, ranks: int) -> int:
    """b min(P, stage3_max_live_parameters) under ZeRO-3 on several ranks: whole weights that are in use or
    soon will be. An upper bound."""
    return value_bytes * min(parameters, zero.max_live) if zero.stage == 3 and ranks > 1 else 0


def activations(decoder: Decoder, tokens: int, value_bytes: int, *, checkpointing: bool) -> int:
    """Activations kept for the backward pass of a micro-batch of `tokens`. For one layer and token, with hidden size H,
    q (heads times their width), MLP width F and m norms: b (4 q + 4 F) for queries, repeated keys and values, their
    output, and the gated MLP, and (2 b + 4) m H for the inputs of the norms, in float32, and their outputs. Attention
    is a fused kernel: no scores. With gradient checkpointing: b H for each layer, and one whole layer."""
    layer = 4 * value_bytes * (decoder.query + decoder.intermediate)
    layer += (2 * value_bytes + 4) * decoder.norms * decoder.hidden
    if checkpointing:
        return tokens * (decoder.layers * value_bytes * decoder.hidden + layer)
    return tokens * decoder.layers * layer


def tower_activations(
    tower: Tower | None, pictures: int, value_bytes: int, *, trained: bool, checkpointing: bool
) -> int:
    """b times the inputs and outputs of all Linears, for each patch and layer; one layer where the tower is frozen; b H
    for each layer and one layer whole with gradient checkpointing. `pictures`: as many as there are prompts in a
    micro-batch whose rows have no replies, an upper bound."""
    if tower is None:
        return 0
    held = tower.width
    if trained:
        held = tower.layers * tower.hidden + tower.width if checkpointing else tower.layers * tower.width
    return value_bytes * pictures * tower.patches * held


def attention_mask(tokens: int, layers: int, value_bytes: int) -> int:
    """(1 + b n) L^2 for one sequence that fills the micro-batch: the mask of packed groups under sdpa, as bool, and for
    each of n layers (1 with gradient checkpointing) as the bias that its kernel keeps. FlexAttention's block mask is
    negligible."""
    return (1 + value_bytes * layers) * tokens**2


def loss_head(decoder: Decoder, logits_budget_mb: int, value_bytes: int, *, trained: bool) -> int:
    """The logits budget, and for a trained head its gradient [V, H] in b and in float32."""
    gradient = (value_bytes + 4) * decoder.vocab * decoder.hidden if trained else 0
    return logits_budget_mb * MIB + gradient


# --- temporary in a rollout ----------


def generation(load: Load, decoder: Decoder, rows: int, group: int, prompts: int) -> dict[str, int]:
    """Memory of `rows` decoded at once, `group` of them from each prompt, of `prompts` in all.

    Engine hf: a cache of prompt and reply for every row, all prompts prefilled at once. Engine shared_prefix, in whole
    columns without regard to sliding windows: the reply of every row; the prompts of the rows, and room for as many
    again if there are so many; and no more than `prefilled` prompt tokens at once, with their own keys and values and a
    dense mask."""
    b = load.value_bytes
    if load.reply_columns:
        whole, begun = replace(decoder, sliding=0), -(-rows // group)
        places = min(rows, prompts, 2 * begun)
        together = min(begun * load.prompt, max(load.prompt, load.prefilled))
        cache = kv_cache(whole, rows, load.reply_columns, b) + kv_cache(whole, places, load.prompt_columns, b)
        prefilled = prefill(decoder, together, b) + kv_cache(whole, 1, together, b) + (1 + b) * together * load.prompt
    else:
        cache = kv_cache(decoder, rows, load.prompt + load.reply, b)
        prefilled = prefill(decoder, rows * load.prompt, b)
    # for each row and word: logits in float32, scaled, and the keyed noise with its 64-bit numbers
    return {"KV cache": cache, "prefill": prefilled, "sampling": 32 * rows * decoder.vocab}


def kv_cache(decoder: Decoder, rows: int, tokens: int, value_bytes: int) -> int:
    """2 b k for each layer, row and token of prompt and reply; layers with a sliding window keep no more than that."""
    full, short = decoder.layers - decoder.sliding, min(tokens, decoder.window) if decoder.sliding else 0
    return 2 * value_bytes * decoder.key_value * rows * (full * tokens + decoder.sliding * short)


def prefill(decoder: Decoder, tokens: int, value_bytes: int) -> int:
    """b (2 H + 3 F) for each prompt token of the batch: the residual stream and the MLP of one layer."""
    return tokens * value_bytes * (2 * decoder.hidden + 3 * decoder.intermediate)
