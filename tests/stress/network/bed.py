"""Bed: ranks of one job, each at its own end of a `Link`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.stress.network.link import DEVICE, Link, LinkConditions, address
from tests.stress.network.rank import Job

ROOT = Path(__file__).resolve().parents[3]
PORT = "29511"  # every namespace has all ports to itself


def run_job(job: Job, ranks: int) -> dict[str, Any]:
    """What rank 0 measured, and how many packets were carried and dropped. Raises RuntimeError where a rank failed."""
    with Link(ranks) as link:
        command = [sys.executable, "-m", "tests.stress.network.rank", json.dumps(asdict(job))]
        started = link.start([command] * ranks, [_environment(rank, ranks) for rank in range(ranks)])
        try:
            first, found = started[0], None
            assert first.stdout is not None and first.stdin is not None
            for line in first.stdout:
                word, _, rest = line.partition(" ")
                if word == "@conditions":
                    link.conditions = LinkConditions(*map(float, rest.split()))
                    first.stdin.write("ready\n")
                elif word == "@done":
                    link.conditions = LinkConditions()
                    found = json.loads(rest)
            codes = [process.wait(60) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        if found is None or any(codes):
            raise RuntimeError(f"ranks ended with {codes}; what they said is above")
        return {**found, "packets": link.carried, "dropped": link.dropped}


def _environment(rank: int, ranks: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": address(0),
        "MASTER_PORT": PORT,
        "GLOO_SOCKET_IFNAME": DEVICE,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    }
