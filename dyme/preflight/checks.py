"""The checks: reports of all ranks in, findings out. Pure functions, so tests can pass in faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dyme.preflight.facts import GIB, Facts

HELD = 0.1  # share of a GPU's memory that may be held before the run: CUDA contexts of this very check
SKEW_S = 1.0
SLOW_GB_S = 2.0  # an all-reduce over NCCL between nodes; TCP on 10 Gbit/s stays below, InfiniBand is far above


@dataclass(frozen=True)
class Finding:
    """One line of the table. `mend` is empty where all is well."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Bandwidth:
    """An all-reduce over all ranks: whether its result was right, bytes per second and rank on the wire, seconds of a
    small one. `error` is "" or the reason why it was not measured."""

    backend: str
    right: bool = True
    bytes_per_s: float = 0.0
    latency_s: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Meeting:
    """Results of the checks that need several ranks. unseen: {node: nodes whose file in the run folder it cannot read};
    clocks: {node: seconds ahead of rank 0}; needed: bytes the run will write; save_every, save_every_minutes: as in the
    configuration."""

    world_size: int
    reports: Sequence[Facts]
    unseen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)
    bandwidth: Bandwidth = Bandwidth("", error="not measured")
    needed: int = GIB
    save_every: int = 0
    save_every_minutes: float = 0.0


def check(meeting: Meeting) -> list[Finding]:
    """All findings; the run should not start where one is "fail"."""
    if len(meeting.reports) < meeting.world_size:
        return [ranks(meeting)]  # the other checks need the reports of all ranks
    checks: list[Callable[[Meeting], Finding]] = [ranks, versions, gpus, gpu_memory, run_folder, disk]
    return [one(meeting) for one in (*checks, checkpoints, data, model, same_contents, clocks, all_reduce)]


def ranks(m: Meeting) -> Finding:
    nodes = Counter(f.node for f in m.reports)
    if len(m.reports) == m.world_size:
        uneven = len(set(nodes.values())) > 1
        shape = ", ".join(f"{n}: {c}" for n, c in nodes.items()) if uneven else f"{len(m.reports) // len(nodes)} each"
        return Finding("ranks", "ok", f"{_count(m.world_size, 'rank')} on {_count(len(nodes), 'node')} ({shape})")
    missing = sorted(set(range(m.world_size)) - {f.rank for f in m.reports})
    return Finding(
        "ranks",
        "fail",
        f"{_count(len(missing), 'rank')} did not report: {_few(missing)}; seen: {_few(nodes) or 'none'}",
        "look at the node that is not listed: can it reach rank 0's address and port (firewall, wrong interface)?",
    )


def versions(m: Meeting) -> Finding:
    names = sorted({name for f in m.reports for name in f.versions})
    odd = []
    for name in names:
        nodes = {f.node: f.versions.get(name, "missing") for f in _leaders(m)}
        usual = Counter(nodes.values()).most_common(1)[0][0]
        odd += [f"{node}: {name} {value} (others {usual})" for node, value in nodes.items() if value != usual]
    mend = "install the same environment on every node, or use one that lies on a shared file system"
    if odd:
        return Finding("versions", "fail", _few(odd), mend)
    first = m.reports[0].versions
    missing = [name for name in names if first[name] == "missing"]
    if missing:
        return Finding("versions", "fail", f"not installed: {_few(missing)}", "pip install -e . in this environment")
    return Finding("versions", "ok", ", ".join(f"{name} {first[name]}" for name in ("python", "torch", "deepspeed")))


def gpus(m: Meeting) -> Finding:
    without = [_place(f) for f in m.reports if f.gpu is None]
    if len(without) == m.world_size:
        return Finding("GPUs", "ok", "none: the run uses CPUs")
    if without:
        return Finding("GPUs", "fail", f"no GPU for {_few(without)}", "start one rank for each GPU (slots, --gpus)")
    names = Counter(f.gpu.name for f in m.reports if f.gpu)
    usual = names.most_common(1)[0][0]
    odd = [f"{_place(f)}: {f.gpu.name}" for f in m.reports if f.gpu and f.gpu.name != usual]
    if odd:
        mend = "choose nodes of one kind: the slowest sets the pace"
        return Finding("GPUs", "warn", f"{_few(odd)} (others {usual})", mend)
    per_node = Counter(f.node for f in m.reports)
    if len(set(per_node.values())) > 1:
        counts = ", ".join(f"{node}: {n}" for node, n in per_node.items())
        return Finding("GPUs", "warn", counts, "use as many GPUs on every node")
    return Finding("GPUs", "ok", f"{m.world_size} x {usual}")


def gpu_memory(m: Meeting) -> Finding:
    held = [f for f in m.reports if f.gpu and f.gpu.total - f.gpu.free > HELD * f.gpu.total]
    if held:
        told = [f"{_place(f)}: {(f.gpu.total - f.gpu.free) / GIB:.0f} GiB held" for f in held if f.gpu]
        mend = "end the other program (nvidia-smi names it), or drop the node"
        return Finding("GPU memory", "fail", _few(told), mend)
    least = min((f.gpu.total for f in m.reports if f.gpu), default=0)
    return Finding("GPU memory", "ok", f"{least / GIB:.0f} GiB each, free" if least else "-")


def run_folder(m: Meeting) -> Finding:
    closed = [f"{f.node}: {f.writable}" for f in _leaders(m) if f.writable]
    if closed:
        return Finding("run folder", "fail", _few(closed), "give run.dir a folder that every node may write")
    unseen = [f"{node} does not see what {_few(others)} wrote" for node, others in m.unseen.items() if others]
    if unseen:
        return Finding("run folder", "fail", _few(unseen), "put run.dir on a file system that all nodes share")
    return Finding("run folder", "ok", "written and read by every node")


def disk(m: Meeting) -> Finding:
    writers = [f for f in _leaders(m) if not f.writable]
    if not writers:
        return Finding("disk", "fail", "not known", "see run folder")
    least = min(writers, key=lambda f: f.disk_free)
    told = f"{least.disk_free / GIB:.1f} GiB free, {m.needed / GIB:.1f} GiB needed"
    if least.disk_free < GIB:
        return Finding("disk", "fail", f"{least.node}: {told}", "free space, or move run.dir")
    if least.disk_free < m.needed:
        return Finding("disk", "warn", f"{least.node}: {told}", "free space, move run.dir, or lower run.keep_last")
    return Finding("disk", "ok", told)


def checkpoints(m: Meeting) -> Finding:
    every = [f"every {_count(m.save_every, 'step')}"] if m.save_every else []
    every += [f"every {m.save_every_minutes:g} minutes"] if m.save_every_minutes else []
    if every:
        return Finding("checkpoints", "ok", " and ".join(every))
    return Finding("checkpoints", "warn", "none before the end", "set run.save_every: a killed run begins anew")


def data(m: Meeting) -> Finding:
    return _readable("data", {f.node: f.data for f in _leaders(m)}, "the data at this path")


def model(m: Meeting) -> Finding:
    return _readable("model", {f.node: f.model for f in _leaders(m)}, "model.path")


def _readable(check: str, errors: Mapping[str, str], path: str) -> Finding:
    bad = [f"{node}: {error}" for node, error in errors.items() if error]
    mend = f"copy or mount {path} on every node, readable for you"
    return Finding(check, "fail", _few(bad), mend) if bad else Finding(check, "ok", "read on every node")


def same_contents(m: Meeting) -> Finding:
    odd = []
    for what in sorted({key for f in _leaders(m) for key in f.contents}):
        values = Counter(f.contents.get(what) for f in _leaders(m) if what in f.contents)
        usual = values.most_common(1)[0][0]
        odd += [f"{f.node}: {what}" for f in _leaders(m) if f.contents.get(what, usual) != usual]
    mend = "bring the files of these nodes up to date, or use one copy on a shared file system"
    return Finding("same files", "fail", f"differ: {_few(odd)}", mend) if odd else Finding("same files", "ok", "equal")


def clocks(m: Meeting) -> Finding:
    off = [f"{node}: {skew:+.1f} s" for node, skew in m.clocks.items() if abs(skew) > SKEW_S]
    if off:
        return Finding("clocks", "warn", _few(off), "start chrony or ntpd on these nodes: logs and file times mislead")
    widest = max((abs(skew) for skew in m.clocks.values()), default=0.0)
    return Finding("clocks", "ok", f"within {1000 * widest:.0f} ms")


def all_reduce(m: Meeting) -> Finding:
    b = m.bandwidth
    if b.error:
        mend = "check that all nodes are on one network; name it by NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
        return Finding("all-reduce", "fail", b.error, mend + "; NCCL_DEBUG=INFO says more")
    if not b.right:
        return Finding("all-reduce", "fail", f"{b.backend}: a wrong sum", "drop nodes one by one: hardware is broken")
    if m.world_size == 1:
        return Finding("all-reduce", "ok", "one rank: nothing to measure")
    told = f"{b.backend}: {b.bytes_per_s / 1e9:.2f} GB/s, {1e6 * b.latency_s:.0f} us for one number"
    several = len({f.node for f in m.reports}) > 1
    if several and b.backend == "nccl" and b.bytes_per_s < SLOW_GB_S * 1e9:
        mend = "is InfiniBand or RoCE in use (NCCL_DEBUG=INFO)? else deepspeed=ds_configs/zero3_hpz.json"
        return Finding("all-reduce", "warn", told, mend)
    return Finding("all-reduce", "ok", told)


def _leaders(m: Meeting) -> list[Facts]:
    return [f for f in m.reports if f.leader]


def _place(f: Facts) -> str:
    return f"{f.node} GPU {f.local_rank}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _few(items: Iterable[object], limit: int = 4) -> str:
    held = [str(item) for item in items]
    return ", ".join(held[:limit]) + (f" and {len(held) - limit} more" if len(held) > limit else "")
