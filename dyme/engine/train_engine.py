"""Everything that touches DeepSpeed: init, precision, collectives, the gradient boundary, the rollout copy.

Two rules hold everywhere: control flow never depends on rank-local data, and every trainable parameter is in the
graph of the first micro-batch of a step (ZeRO-3 keeps the last step's gradient of parameters that are not).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from dyme.batching.objective import LossInputs
from dyme.batching.packing import PackedBatch
from dyme.config import RunConfig
from dyme.engine.gradient_modulation import UNCHANGED, GradientModulation, GradientModulator
from dyme.engine.gradients import by_group
from dyme.engine.lora import add_lora
from dyme.engine.policy_module import Policy
from dyme.engine.rollout_copy import RolloutCopy
from dyme.families.attention import NARROWEST, head_width, joins_groups, resolve_attention, set_attention
from dyme.families.base import Family
from dyme.fault_tolerance.watchdog import collective_limit_s
from dyme.settings.deepspeed import read_deepspeed
from dyme.settings.errors import ConfigError
from dyme.settings.optim import OptimConfig
from dyme_kernels import LossSpec, PolicyLossOutput


@dataclass(frozen=True)
class UpdateResult:
    """`applied` is False when a non-finite loss or gradient on any rank made all ranks drop the step; `bad_ranks` saw
    it in their loss, or, where no loss was bad, in their gradients."""

    applied: bool
    grad_norm: float
    bad_ranks: tuple[int, ...] = ()
    modulation: GradientModulation = UNCHANGED


class TrainEngine:
    """One model under DeepSpeed on this rank."""

    def __init__(self, cfg: RunConfig, family: Family, model: nn.Module, spec: LossSpec) -> None:
        self.family, self.rank, self.world_size = family, dist.get_rank(), dist.get_world_size()
        self.device = torch.device(get_accelerator().current_device_name())
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[cfg.model.dtype]
        cuda, width = self.device.type == "cuda", head_width(family.config.get_text_config())
        whole, packed = resolve_attention(
            cfg.model.attention, cfg.model.packed_attention, cfg.model.dtype, cuda=cuda, width=width
        )
        if packed == "flex_attention" and not (cuda and width >= NARROWEST):
            why = "has its backward pass on a GPU only"
            if cuda:
                why = f"takes heads of {NARROWEST} values and more, this model's have {width}"
            raise ConfigError(f"model.packed_attention=flex_attention: PyTorch {why}: set it to auto")
        self.joined = joins_groups(packed) and family.packs_trees
        freeze_parts(family.parts(model), cfg.model.freeze)
        if cfg.model.lora:
            add_lora(family, model, cfg.model.lora, cfg.run.seed)
        ds = deepspeed_config(cfg)
        self.stage = ds["zero_optimization"]["stage"]
        offload = cfg.rollout.offload and cuda  # on a CPU the copy lies there anyway
        self.rollout_copy = RolloutCopy(family, model, self.device, offload=offload, partitioned=self.stage == 3)
        set_attention(self.rollout_copy.model, whole, whole)
        set_attention(model, packed, whole)
        self.has_reference_policy = spec.beta > 0
        frozen = copy.deepcopy(model) if self.has_reference_policy and not cfg.model.lora else None
        if cfg.model.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
        groups = parameter_groups(family.parts(model), cfg.optim)
        if not groups:
            raise ConfigError("model.freeze freezes every part: leave at least one to train")
        self.trained = trained_digest(model)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.peaks = [group["lr"] for group in groups]
        self.modulator = GradientModulator(groups, cfg.optim.modulation, ds["zero_optimization"])
        self.module = Policy(family, model, spec, cfg.train.logits_budget_mb).train()
        self.ds, *_ = deepspeed.initialize(model=self.module, optimizer=_optimizer(groups, cfg.optim, ds), config=ds)
        self.reference = (
            None
            if frozen is None
            else _reference(Policy(family, frozen, replace(spec, beta=0.0), cfg.train.logits_budget_mb), ds)
        )
        self._finite: Tensor | bool = True

    # --- update -----------------------------------------------------------------------------------

    @property
    def trainable_modalities(self) -> frozenset[str]:
        """Modalities with trainable modules of their own: they must run in the first micro-batch of every step."""
        own = (
            p
            for name, part in self.family.parts(self.module.model).items()
            if name in ("vision", "connector")
            for p in part.parameters()
        )
        return self.family.modalities if any(p.requires_grad for p in own) else frozenset()

    def forward_backward(self, batch: PackedBatch, inputs: LossInputs, *, last: bool) -> PolicyLossOutput:
        """One micro-batch; gradients add up until `step` or `discard`. `last` marks the gradient boundary."""
        self.ds.set_gradient_accumulation_boundary(last)
        out = PolicyLossOutput(*self.ds(batch.to(self.device, self.dtype), inputs.to(self.device)))
        self._finite = (
            torch.isfinite(out.loss.detach()) & self._finite
        )  # read in `step`: nothing waits for the device here
        # DeepSpeed averages over ranks, the loss is a sum with global weights
        self.ds.backward(out.loss * self.world_size, scale_wrt_gas=False)
        return out

    def reference_logprobs(self, batch: PackedBatch, inputs: LossInputs) -> Tensor:
        """Log-probabilities of the targets under the reference policy, float32 [N] on the device: nothing waits for
        them. All ranks call it together.

        With LoRA that is the model without its adapters, so this engine runs it; else it is a frozen copy."""
        assert self.has_reference_policy, "only with beta > 0"
        with torch.no_grad(), self.module.as_reference() if self.reference is None else nullcontext():
            run = self.ds if self.reference is None else self.reference
            out = PolicyLossOutput(*run(batch.to(self.device, self.dtype), inputs.to(self.device)))
        return out.logprobs.float()

    def step(self, factor: float) -> UpdateResult:
        """One optimizer step at `factor` times the peak learning rates, or none if any rank saw a non-finite value."""
        loss_finite, self._finite = bool(self._finite), True
        finite = loss_finite and self._gradients_finite()
        if not self.all_true(finite):
            self.ds.optimizer.zero_grad()
            return UpdateResult(False, math.nan, self._saw(not loss_finite) or self._saw(not finite))
        slowed = self.modulator.measure(self.ds.optimizer, self.all_reduce)
        for group, peak, part in zip(
            self.ds.optimizer.optimizer.param_groups, self.peaks, self.modulator.parts, strict=True
        ):
            group["lr"] = peak * factor * slowed.of(part)
        self.rollout_copy.wait()  # a refresh that is still under way reads the weights
        self.ds.step()
        self.rollout_copy.outdated()
        return UpdateResult(True, float(self.ds.get_global_grad_norm()), modulation=slowed)

    def local_gradients(self) -> list[Tensor]:
        """This rank's partition of the accumulated gradients, after the boundary. Together the ranks hold each
        value once."""
        return [g for group in by_group(self.ds.optimizer, self.stage, self.modulator.groups) for g in group]

    def _saw(self, bad: bool) -> tuple[int, ...]:
        """The ranks that say so. A gradient is bad on all ranks after its reduction, so losses are asked first."""
        saw = self.all_reduce([float(rank == self.rank and bad) for rank in range(self.world_size)])
        return tuple(rank for rank, said in enumerate(saw) if said)

    def _gradients_finite(self) -> bool:
        finite = [torch.isfinite(g).all() for g in self.local_gradients()]
        return not finite or bool(torch.stack(finite).all())  # one wait for the device, not one a parameter

    def discard(self) -> None:
        """Drops accumulated gradients without a step."""
        self.ds.optimizer.zero_grad()
        self._finite = True

    # --- collectives ------------------------------------------------------------------------------

    def gather_rows(self, local: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows of all ranks in rank order: local [n, C] float64, counts[r] = n on rank r -> [sum(counts), C] on the
        device of the engine."""
        return gather_rows(local, counts, self.device)

    def gather_tokens(self, local: Sequence[Sequence[int]]) -> list[list[list[int]]]:
        """Ragged token lists of every rank: result[rank] is that rank's `local`."""
        return gather_tokens(local, self.device)

    def gather_json(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in rank order."""
        return [json.loads(bytes(part[0])) for part in self.gather_tokens([list(json.dumps(value).encode())])]

    def all_true(self, value: bool) -> bool:
        """True where every rank says so."""
        return self.all_reduce([float(value)], dist.ReduceOp.MIN)[0] == 1.0

    def all_reduce(self, values: Sequence[float], op: Any = dist.ReduceOp.SUM) -> list[float]:
        """Element-wise reduction of a few float64 numbers."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=op)
        return tensor.tolist()

    def broadcast(self, values: Tensor) -> Tensor:
        """Rank 0's values on every rank: float64 [n] -> [n] on the host."""
        return broadcast(values, self.device)

    def barrier(self) -> None:
        dist.barrier()


def gather_rows(local: Tensor, counts: Sequence[int], device: torch.device) -> Tensor:
    """See `TrainEngine.gather_rows`."""
    padded = torch.zeros(max(counts), local.shape[1], dtype=torch.float64, device=device)
    padded[: len(local)] = local.to(device)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def broadcast(values: Tensor, device: torch.device) -> Tensor:
    """See `TrainEngine.broadcast`."""
    held = values.to(device, copy=True)
    dist.broadcast(held, 0)
    return held.cpu()


def gather_tokens(local: Sequence[Sequence[int]], device: torch.device) -> list[list[list[int]]]:
    """See `TrainEngine.gather_tokens`. Each list travels as its length followed by its ids."""
    flat = torch.tensor([x for tokens in local for x in (len(tokens), *tokens)], dtype=torch.int64, device=device)
    size = torch.tensor([len(flat)], dtype=torch.int64, device=device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    lengths = [int(s) for s in sizes]
    if not max(lengths):
        return [[] for _ in lengths]
    padded = torch.zeros(max(lengths), dtype=torch.int64, device=device)
    padded[: len(flat)] = flat
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [_unflatten(part[:n].tolist()) for part, n in zip(parts, lengths, strict=True)]


def _unflatten(flat: list[int]) -> list[list[int]]:
    lists, at = [], 0
    while at < len(flat):
        lists.append(flat[at + 1 : at + 1 + flat[at]])
        at += 1 + flat[at]
    return lists


def init_distributed(seed: int, hang_timeout_s: float = 0.0) -> int:
    """Joins the process group of the launcher (or of a single process) and seeds torch. Returns this rank.

    By itself DeepSpeed ends a collective after 10 minutes, before the watchdog (`run.hang_timeout_s`, seconds) could
    say which rank is late.
    """
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(29500 + os.getpid() % 1000)
    limit = timedelta(seconds=collective_limit_s(hang_timeout_s))
    c10d = dist.distributed_c10d  # DeepSpeed names no limit for the groups that it makes: theirs is read from here
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = limit
    deepspeed.init_distributed(get_accelerator().communication_backend_name(), timeout=limit, verbose=False)
    if get_accelerator().device_name() != "cpu":
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    _unlink_shared_buffers()
    torch.manual_seed(seed)
    return dist.get_rank()


def _unlink_shared_buffers() -> None:
    """DeepSpeed's CPU ranks of one machine reduce through files of 66 MB in /dev/shm, which nobody removes. Once all
    ranks have mapped them they need no name; without one they go with the last rank, however it ends."""
    dist.barrier()
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    own = Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{dist.get_rank()}")
    own.unlink(missing_ok=True)


def close_distributed() -> None:
    """Waits for all ranks and leaves the process group."""
    dist.barrier()
    dist.destroy_process_group()


def freeze_parts(parts: dict[str, nn.Module], freeze: Sequence[str]) -> None:
    """Turns gradients off in the named parts; a tensor shared with a trained part (tied embeddings) stays trained."""
    for name in freeze:
        if name not in parts:
            raise ConfigError(f"model.freeze: no part '{name}' in this model; it has {', '.join(parts)}")
        parts[name].requires_grad_(False)
    for name, part in parts.items():
        if name not in freeze:
            part.requires_grad_(True)


def parameter_groups(parts: dict[str, nn.Module], optim: OptimConfig) -> list[dict[str, Any]]:
    """AdamW groups: per part its learning rate, matrices decayed, vectors not. Shared tensors belong to the first
    part."""
    unknown = set(optim.part_lr) - set(parts)
    if unknown:
        raise ConfigError(f"optim.part_lr: no part '{min(unknown)}' in this model; it has {', '.join(parts)}")
    groups, seen = [], set[int]()
    for name, part in parts.items():
        own = [p for p in part.parameters() if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in own}
        for decays, decay in ((True, optim.weight_decay), (False, 0.0)):
            params = [p for p in own if (p.ndim > 1) == decays]
            if params:
                groups.append(
                    {
                        "params": params,
                        "lr": optim.part_lr.get(name, optim.lr),
                        "weight_decay": decay,
                        "name": f"{name}.{'matrices' if decays else 'vectors'}",
                    }
                )
    return groups


def trained_digest(model: nn.Module) -> str:
    """Tells apart models that do not train the same parameters: a hash of their names and shapes, before ZeRO-3 parts
    them."""
    lines = [f"{name} {tuple(p.shape)}\n" for name, p in model.named_parameters() if p.requires_grad]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def lr_factor(step: int, max_steps: int, optim: OptimConfig) -> float:
    """Learning rate of step (0-based) as a fraction of the peak: linear warm-up, then the schedule's decay."""
    if step < optim.warmup_steps:
        return (step + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return 1.0
    done = min(1.0, (step - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps))
    decay = 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * decay


def deepspeed_config(cfg: RunConfig) -> dict[str, Any]:
    """The DeepSpeed JSON with what the run configuration decides filled in ("auto" and conflicting entries give
    way)."""
    ds = read_deepspeed(cfg.deepspeed)
    decided = ("train_batch_size", "gradient_accumulation_steps", "optimizer", "scheduler", "fp16", "bf16")
    for key in (*decided, "checkpoint"):  # its writers leave checkpoints that they cannot load: docs/recovery.md
        ds.pop(key, None)
    ds |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": cfg.optim.grad_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if cfg.model.dtype == "bf16":
        ds["bf16"] = {"enabled": True}
        # micro-batches add up in bf16 otherwise: relative error 8e-3 instead of 8e-4 at 64 of them
        ds.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    return ds


def _reference(policy: Policy, ds: dict[str, Any]) -> Any:
    """The frozen reference policy, its weights sharded over the ranks by ZeRO-3 whatever the stage of the training."""
    zero = {k: v for k, v in ds["zero_optimization"].items() if k == "offload_param" or k.startswith("stage3_")}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, **zero},
        "steps_per_print": ds["steps_per_print"],
        **({"bf16": ds["bf16"]} if "bf16" in ds else {}),
    }
    engine, *_ = deepspeed.initialize(model=policy.eval().requires_grad_(False), config=config)
    return engine


def _optimizer(groups: list[dict[str, Any]], optim: OptimConfig, ds: dict[str, Any]) -> torch.optim.Optimizer:
    if ds["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu" and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, betas=optim.betas, eps=optim.eps, adamw_mode=True)
    return torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)
