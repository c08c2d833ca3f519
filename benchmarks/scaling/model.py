"""The model: what a step costs on n GPUs, from phase times of one GPU and an alpha-beta model of the network.

A message of S bytes takes alpha + S / beta. Collectives are rings inside a node and between nodes (Thakur,
Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, 2005). Volumes of ZeRO: Rajbhandari
and others, ZeRO, arXiv 1910.02054, section 7; of hpZ: Wang and others, ZeRO++, arXiv 2306.10209, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STRATEGIES = ("zero2", "zero3", "hpz")


@dataclass(frozen=True)
class Network:
    """alpha: seconds of a message; beta: bytes a second of one GPU in one direction, inside a node and between
    nodes."""

    name: str
    gpus_per_node: int
    alpha_intra: float
    beta_intra: float
    alpha_inter: float
    beta_inter: float


@dataclass(frozen=True)
class Workload:
    """One step of one GPU; with more GPUs each has as many prompts (weak scaling). parameters_bytes: as gathered.
    layers: modules gathered one after the other in a forward, and again in a backward. small: all-reduces of a few
    numbers in a step. lengths: of replies, the equally likely values of one; rows: replies a GPU decodes at once."""

    parameter_bytes: float
    layers: int
    micro_batches: int
    rollout_s: float
    update_s: float
    other_s: float
    small: int
    rows: int
    lengths: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """Seconds of a step: `rollout` of the slowest rank, `compute` of the rest, `gather` and `reduce` of the update,
    `refresh` of the rollout copy, `small` collectives."""

    rollout: float
    compute: float
    gather: float
    reduce: float
    refresh: float
    small: float

    @property
    def communication(self) -> float:
        return self.gather + self.reduce + self.refresh + self.small

    @property
    def exposed(self) -> float:
        """Nothing of the communication hides behind the computation: the upper end."""
        return self.rollout + self.compute + self.communication

    def hidden(self, update_s: float) -> float:
        """Gathers and reductions hide behind the update as far as it lasts: the lower end."""
        shown = max(0.0, self.gather + self.reduce - update_s)
        return self.rollout + self.compute + shown + self.refresh + self.small


def ring(size: float, ranks: int, alpha: float, beta: float) -> float:
    """An all-gather to `size` bytes, or a reduce-scatter of them: (n - 1) alpha + size (n - 1) / n / beta."""
    return (ranks - 1) * alpha + size * (ranks - 1) / ranks / beta


def two_levels(size: float, gpus: int, network: Network) -> float:
    """The same in two levels, one after the other: GPUs of equal place in their nodes exchange size / g in a ring over
    the nodes, then each node's g GPUs size."""
    inside = min(gpus, network.gpus_per_node)
    if gpus % inside:
        raise ValueError(f"{gpus} GPUs do not fill nodes of {network.gpus_per_node}: name a multiple")
    between = ring(size / inside, gpus // inside, network.alpha_inter, network.beta_inter)
    return between + ring(size, inside, network.alpha_intra, network.beta_intra)


def in_messages(size: float, messages: int, gpus: int, network: Network) -> float:
    """`size` bytes in equal messages, one after the other."""
    return messages * two_levels(size / messages, gpus, network)


def expected_longest(lengths: Sequence[float], draws: int) -> float:
    """The mean of the largest of `draws` independent values: sum of x_i (F(x_i)^draws - F(x_(i-1))^draws)."""
    held, n = sorted(lengths), len(lengths)
    return sum(x * (((i + 1) / n) ** draws - (i / n) ** draws) for i, x in enumerate(held))


def predict(strategy: str, gpus: int, work: Workload, network: Network) -> Step:
    """A step on `gpus` GPUs.

    zero3: each micro-batch gathers the parameters in its forward and in its backward, reduces the gradients; the
    refresh gathers them once more. hpz: the backward gathers inside the node. zero2: a micro-batch only reduces, the
    step gathers once, and the refresh copies what is there.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no strategy '{strategy}': {', '.join(STRATEGIES)}")
    slower = expected_longest(work.lengths, gpus * work.rows) / expected_longest(work.lengths, work.rows)
    whole = in_messages(work.parameter_bytes, work.layers, gpus, network)
    inside = in_messages(work.parameter_bytes, work.layers, min(gpus, network.gpus_per_node), network)
    gathers = {
        "zero2": whole,
        "zero3": work.micro_batches * 2 * whole,
        "hpz": work.micro_batches * (whole + inside),
    }
    return Step(
        rollout=work.rollout_s * slower,
        compute=work.update_s + work.other_s,
        gather=gathers[strategy],
        reduce=work.micro_batches * whole,
        refresh=0.0 if strategy == "zero2" else whole,
        small=2 * work.small * two_levels(8.0, gpus, network),
    )
