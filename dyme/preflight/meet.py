"""Communication of the ranks: first reports through a key-value store, which shows missing ranks, then collectives.

Every key is written once. Rank 0 reads, decides and answers. Every wait has a limit.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from dyme.preflight.checks import Bandwidth
from dyme.preflight.facts import Facts

PINGS = 5
SHARED_S = 15  # seconds; a network file system may show a new file late


def join_store(address: str, port: int, rank: int, world_size: int, limit_s: float) -> dist.Store:
    """The store of rank 0. Raises `dist.DistError` where it cannot be reached within the limit."""
    limit = timedelta(seconds=limit_s)
    return dist.TCPStore(address, port, world_size, is_master=rank == 0, timeout=limit, wait_for_workers=False)


def collect(store: dist.Store, name: str, members: list[int], limit_s: float) -> dict[int, bytes]:
    """The values that members wrote under a name within `limit_s` seconds (for all together)."""
    end = time.monotonic() + limit_s
    found = {}
    for member in members:
        key = f"{name}/{member}"
        try:
            store.wait([key], timedelta(seconds=max(0.01, end - time.monotonic())))
        except (dist.DistStoreError, RuntimeError):
            continue
        found[member] = store.get(key)
    return found


def unread(mine: Facts, reports: list[Facts]) -> list[str]:
    """Nodes whose file in the run folder this node cannot read."""
    end = time.monotonic() + SHARED_S
    missing = [f for f in reports if f.leader and f.token_file and f.rank != mine.rank]
    while missing := [f for f in missing if not _holds(Path(f.token_file))]:
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    return [f.node for f in missing]


def _holds(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8") == path.name
    except OSError:
        return False


def answer_clock(store: dist.Store, rank: int) -> None:
    """Rank 0's part of `clock_skew` with one other rank."""
    for i in range(PINGS):
        store.wait([f"ping/{rank}/{i}"])
        store.set(f"pong/{rank}/{i}", repr(time.time()))


def clock_skew(store: dist.Store, rank: int) -> float:
    """Seconds that this clock is ahead of rank 0's, from the fastest exchange."""
    best, skew = float("inf"), 0.0
    for i in range(PINGS):
        begin, sent = time.monotonic(), time.time()
        store.set(f"ping/{rank}/{i}", "")
        theirs = float(store.get(f"pong/{rank}/{i}"))
        took = time.monotonic() - begin
        if took < best:
            best, skew = took, sent + took / 2 - theirs
    return skew


def measure(store: dist.Store, rank: int, local_rank: int, world_size: int, limit_s: float) -> Bandwidth:
    """All-reduces over all ranks. In a thread, because NCCL waits forever on a network that drops packets."""
    from deepspeed.accelerator import get_accelerator

    backend = get_accelerator().communication_backend_name()
    result = [Bandwidth(backend, error=f"no all-reduce over {backend} within {limit_s:.0f} s")]

    def work() -> None:
        try:
            result[0] = _all_reduces(backend, store, rank, local_rank, world_size)
        except Exception as error:  # any error of the network is the finding
            result[0] = Bandwidth(backend, error=f"{backend}: {str(error).splitlines()[0]}")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    return result[0]


def _all_reduces(backend: str, store: dist.Store, rank: int, local_rank: int, world_size: int) -> Bandwidth:
    cuda = backend == "nccl"
    device = torch.device(f"cuda:{local_rank}" if cuda else "cpu")
    wait = partial(torch.cuda.synchronize, device) if cuda else lambda: None
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world_size)
    small = torch.zeros(1, device=device)
    large = torch.zeros((2**28 if cuda else 2**23) // 4, device=device)
    wrong = False
    seconds = {}
    for name, tensor, times in (("small", small, 20), ("large", large, 5)):
        for i in range(times + 1):
            if i == 1:  # the first one makes the connections
                wait()
                begin = time.monotonic()
            tensor.fill_(rank + 1.0)
            dist.all_reduce(tensor)
        wait()
        seconds[name] = (time.monotonic() - begin) / times
        wrong |= bool((tensor != world_size * (world_size + 1) / 2).any())
    moved = 2 * (world_size - 1) / world_size * large.numel() * large.element_size()
    return Bandwidth(backend, not wrong, moved / seconds["large"], seconds["small"])
