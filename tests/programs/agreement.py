"""Group statistics on ranks that come to different ones: rank 0's hold.

usage: torchrun --nproc_per_node N -m tests.programs.agreement OUT_DIR
Every rank writes OUT_DIR/stats<rank>.pt: its own GroupStats and those after `agree`, as dictionaries.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist


def main() -> None:
    from dyme.engine.train_engine import broadcast, gather_rows
    from dyme.selectors.base import agree, group_stats

    dist.init_process_group("gloo")
    rank, device = dist.get_rank(), torch.device("cpu")
    table = torch.rand(3 + rank, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    reward, correct, form = gather_rows(table, [3, 4], device).unbind(1)
    scored, traces = torch.arange(7) != 5, torch.tensor([True, False, True])
    own = group_stats(reward, correct, form, scored, traces, torch.tensor([0, 2, 4, 7]), "std")
    own = replace(own, records=(4, 5, 6), step=9, entropy=correct[:3])
    if rank:  # as a GPU that rounds otherwise might have it, and worse
        own = replace(
            own, accuracy_mean=own.accuracy_mean.nextafter(torch.ones(3).double()), advantages=-own.advantages
        )
        own = replace(own, num_correct=own.num_correct + 1)
    stats = agree(own, partial(broadcast, device=device))
    torch.save([vars(own), vars(stats)], Path(sys.argv[1]) / f"stats{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
