"""LoRA (2106.09685) through peft: adapters in a model, a plain model with them merged, the model without them, and the
adapters as a folder of peft.

peft wraps the chosen Linears in place, so the model keeps its class and its family's parts.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dyme.families.base import Family
from dyme.settings.errors import ConfigError
from dyme.settings.lora import LoraConfig

PARTS = ("lora_A", "lora_B")


def add_lora(family: Family, model: nn.Module, config: LoraConfig, seed: int) -> list[str]:
    """Adds adapters to `model` and trains nothing else. Returns the names of the Linears that have one.

    B is 0, so the model computes what it did before. A follows from `seed` alone: every rank has the same. Adapters
    have the dtype of their Linear. Raises `ConfigError` for targets that match nothing.
    """
    import peft

    names = matching_linears(family, model, config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU as well, for good
        pattern = "|".join(map(re.escape, names))  # a list would be matched by the ends of names
        lora = peft.LoraConfig(r=config.r, lora_alpha=config.alpha, target_modules=pattern)  # type: ignore[arg-type]
        peft.inject_adapter_in_model(lora, model)
    model.requires_grad_(False)
    for layer in lora_layers(model).values():
        for adapter in chain(layer.lora_A.values(), layer.lora_B.values()):
            adapter.to(layer.base_layer.weight.dtype).requires_grad_(True)  # peft makes them float32
    return names


def matching_linears(family: Family, model: nn.Module, config: LoraConfig) -> list[str]:
    """Names in `model` of the Linears that `config` chooses, in their order. Raises `ConfigError`."""
    language = _linears(model, family.decoder_layers(model))
    image_parts = family.image_parts(model)
    if config.vision and not image_parts:
        raise ConfigError("model.lora.vision: this model has no vision tower: set model.lora.vision=false")
    vision = [name for part in image_parts.values() for name in _linears(model, part)] if config.vision else []
    for target in config.targets:
        if not any(_ends_in(name, target) for name in (*language, *vision)):
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in (*language, *vision)))
            near = difflib.get_close_matches(target.rpartition(".")[2], ends, n=1)
            nearest = f"; nearest: '{near[0]}'" if near else ""
            where = "the decoder layers, vision tower and connector" if config.vision else "the decoder layers"
            raise ConfigError(
                f"model.lora.targets: '{target}' matches no Linear of {where}{nearest}; they have {', '.join(ends)}"
            )
    chosen = {n for n in (*language, *vision) if not config.targets or any(_ends_in(n, t) for t in config.targets)}
    if config.vision and chosen.isdisjoint(vision):
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in vision))
        raise ConfigError(
            "model.lora.vision: no target matches a Linear of vision tower or connector, which have "
            f"{', '.join(ends)}: add one of them to model.lora.targets, or set model.lora.vision=false"
        )
    return [name for name, _ in model.named_modules() if name in chosen]


def _linears(model: nn.Module, part: nn.Module) -> list[str]:
    """Names in the whole model; a part may call its modules otherwise."""
    own = {id(module) for module in part.modules() if isinstance(module, nn.Linear)}
    # nn.MultiheadAttention reads the weight of its output projection without calling it: an adapter would do nothing
    own -= {id(module.out_proj) for module in part.modules() if isinstance(module, nn.MultiheadAttention)}
    return [name for name, module in model.named_modules() if id(module) in own]


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The Linears that peft has wrapped, by name."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """In here `model` computes what it did before `add_lora`, bit for bit.

    The adapters still run and count zero times. Leaving them out would change the order of modules, which ZeRO-3
    records and prefetches parameters by: it would record it anew before and after.
    """
    scalings = [layer.scaling for layer in lora_layers(model).values()]
    before = [dict(scaling) for scaling in scalings]
    for scaling in scalings:
        scaling.update(dict.fromkeys(scaling, 0.0))
    try:
        yield
    finally:
        for scaling, values in zip(scalings, before, strict=True):
            scaling.update(values)


@dataclass(frozen=True)
class Source:
    """What a parameter of the plain model is computed from: W + the sum of scaling B A.

    weight: W. adapters: scaling, A [r, in] and B [out, r] of each."""

    weight: Tensor
    adapters: tuple[tuple[float, Tensor, Tensor], ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.weight, *(tensor for _, down, up in self.adapters for tensor in (down, up))]

    @torch.no_grad()
    def write(self, target: Tensor) -> None:
        """The value into `target`, which may lie elsewhere: added in float32 (float64 where W is), rounded once."""
        value = self.weight
        if self.adapters:
            wide = torch.promote_types(value.dtype, torch.float32)
            value = value.to(wide, copy=True)
            for scaling, down, up in self.adapters:
                value += (up.to(wide) @ down.to(wide)).mul_(scaling)
        target.copy_(value.to(target.dtype), non_blocking=True)


def sources(model: nn.Module, plain: nn.Module) -> list[tuple[Source, nn.Parameter]]:
    """Each parameter of `plain`, a `merged` copy of `model`, with what it is computed from."""
    layers = lora_layers(model)
    found = []
    for name, target in plain.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner)
        if layer is None:
            source = Source(model.get_parameter(name))
        elif leaf == "weight":
            adapters = (
                (float(scaling), layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
                for adapter, scaling in layer.scaling.items()
            )
            source = Source(layer.base_layer.weight, tuple(adapters))
        else:
            source = Source(layer.base_layer.get_parameter(leaf))
        found.append((source, target))
    return found


def merged(model: nn.Module) -> nn.Module:
    """A plain copy of `model`, without adapters: see `Source.write` for its weights. `model`, not partitioned, stays as
    it is. A weight that adapters change is no longer shared with other modules."""
    layers = lora_layers(model)
    plain = copy.deepcopy(model)
    uses = Counter(id(p) for _, p in plain.named_parameters(remove_duplicate=False))
    for name in layers:
        base: Any = plain.get_submodule(name).base_layer
        if uses[id(base.weight)] > 1:
            base.weight = nn.Parameter(base.weight.detach().clone())
        parent, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, base)
    if layers:
        del plain.peft_config  # peft leaves it on the model
        for source, target in sources(model, plain):
            if source.adapters:
                source.write(target)
    return plain


@dataclass(frozen=True)
class Adapter:
    """The adapters of a model apart from it. config: peft's. tensors: A [r, in] and B [out, r] on the host, by the
    names of peft's files."""

    config: Any
    tensors: dict[str, Tensor]

    def write(self, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, for `PeftModel.from_pretrained`."""
        from peft.utils import SAFETENSORS_WEIGHTS_NAME

        self.config.save_pretrained(folder)
        save_file(self.tensors, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


def adapter_of(model: nn.Module, base: Path | None, *, partitioned: bool = False) -> Adapter | None:
    """The adapters of `model`, None where it has none. base: the folder of the model without them. All ranks call it
    together where the weights are `partitioned` (ZeRO-3)."""
    layers = lora_layers(model)
    if not layers:
        return None
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        held = {f"base_model.model.{name}.{part}.weight": getattr(layer, part).default.weight for part in PARTS}
        with deepspeed.zero.GatheredParameters(list(held.values()), enabled=partitioned):
            tensors |= {key: weight.detach().to("cpu", copy=True).contiguous() for key, weight in held.items()}
    config: Any = copy.deepcopy(model.peft_config["default"])  # type: ignore[index]
    config.base_model_name_or_path = None if base is None else str(base)
    config.target_modules = sorted(layers)  # whole names as a list: not every reader takes the pattern
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    return Adapter(config, tensors)
