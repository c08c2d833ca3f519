"""The rollout copy: a plain model, whole on every rank, that rollouts, evaluation and the export run on.

It has no adapters: they are merged into its weights at every refresh, so a rollout pays nothing for them. The refresh
goes through the decoder layer by layer, so beside the copy about one gathered layer is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, nn

from dyme.engine.lora import Source, merged, sources
from dyme.families.base import Family


@dataclass(frozen=True)
class Weight:
    """A parameter of the copy, what it is computed from, and the number of its decoder layer, -1 outside of them."""

    source: Source
    target: Tensor
    layer: int

    @property
    def trains(self) -> bool:
        return any(tensor.requires_grad for tensor in self.source.tensors)

    @property
    def size(self) -> int:
        return self.target.numel() * self.target.element_size()


class RolloutCopy:
    """A copy of a model of one family: the `Weights` of a rollout engine. Weights that changed are written into it by
    `begin_refresh`, and `place` gives it out.

    On a GPU `begin_refresh` works on a stream of its own: who reads the copy, or writes the weights it is made of,
    calls `place` or `wait` first. With `offload` the copy lies in pinned host memory between `park` and `place`.
    """

    def __init__(
        self, family: Family, model: nn.Module, device: torch.device, *, offload: bool, partitioned: bool = False
    ) -> None:
        """`model` is not partitioned yet. Its trained parameters have `requires_grad`. `partitioned`: later the weights
        lie in parts on all ranks (ZeRO-3), which gather them together at each refresh."""
        self.model = merged(model).eval().requires_grad_(False).to(device)
        self.device, self.partitioned = device, partitioned
        self.version = 0
        layers = enumerate(family.decoder_layers(self.model))
        layer_of = {id(p): number for number, layer in layers for p in layer.parameters()}
        self._weights = [Weight(s, p, layer_of.get(id(p), -1)) for s, p in sources(model, self.model)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._written: torch.cuda.Event | None = None
        self._fresh = self._whole = False
        self._host: list[Tensor] = []
        self._placed = True
        if offload:
            self.pin()

    def pin(self) -> None:
        """Moves the parameters to host memory; from now on `place` brings copies of them to the device."""
        self._host = [
            torch.empty_like(w.target, device="cpu", pin_memory=self.device.type == "cuda").copy_(w.target)
            for w in self._weights
        ]
        self.park()

    def outdated(self, *, whole: bool = False) -> None:
        """Says that trained weights have changed, or with `whole` all of them."""
        self._fresh = False
        self._whole |= whole

    def begin_refresh(self) -> None:
        """Starts to write what has changed; all ranks together. On a GPU the host and the default stream go on
        meanwhile."""
        if self._fresh:
            return
        self.park()
        cap = layer_size(self._weights)
        with self._beside(), torch.no_grad():
            for bucket in buckets([w for w in self._weights if w.trains or self._whole], cap):
                held = [tensor for w in bucket for tensor in w.source.tensors]
                with deepspeed.zero.GatheredParameters(held, enabled=self.partitioned):
                    for w in bucket:
                        w.source.write(w.target)
        self._fresh, self._whole = True, False
        self.version += 1

    def refresh(self) -> nn.Module:
        """The copy with the current weights, on the device; all ranks together. With `offload` it leaves the device at
        the next `park`."""
        self.begin_refresh()
        return self.place()

    def wait(self) -> None:
        """What this stream does from now on comes after the last `begin_refresh`. The host does not wait."""
        if self._written is not None:
            torch.cuda.current_stream(self.device).wait_event(self._written)
            self._written = None

    def place(self) -> nn.Module:
        """The model on the device. With `offload` at new addresses each time."""
        self.wait()
        if not self._placed:
            for w, host in zip(self._weights, self._host, strict=True):
                w.target.data = host.to(self.device, non_blocking=True, copy=True)
            self._placed = True
        return self.model

    def park(self) -> None:
        """With `offload`: takes the model's weights off the device. Nothing is copied: `begin_refresh` writes
        to the host."""
        if self._host and self._placed:
            for w, host in zip(self._weights, self._host, strict=True):
                w.target.data = host
            self._placed = False

    @contextmanager
    def _beside(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield
        self._written = self._stream.record_event()


def layer_size(weights: Sequence[Weight]) -> int:
    """Bytes of the largest decoder layer."""
    sizes: dict[int, int] = {}
    for w in weights:
        sizes[w.layer] = sizes.get(w.layer, 0) + w.size
    return max(size for layer, size in sizes.items() if layer >= 0)


def buckets(weights: Sequence[Weight], cap: int) -> list[list[Weight]]:
    """Neighbours that are gathered together: a decoder layer at a time, others up to `cap` bytes. A parameter larger
    than that goes alone."""
    found: list[list[Weight]] = []
    size = 0
    for w in weights:
        if not found or found[-1][-1].layer != w.layer or size + w.size > cap:
            found.append([])
            size = 0
        found[-1].append(w)
        size += w.size
    return found
