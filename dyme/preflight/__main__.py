"""python -m dyme.preflight --config FILE [key.sub=value ...]

Checks what would stop this run: on one machine alone, or as one rank of a launcher on every node
(`deepspeed --hostfile FILE --module dyme.preflight --config FILE`; SLURM jobs do it by themselves). Prints one table;
exit status 0 where the run may start, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dyme.config import RunConfig, load_config
from dyme.data import DataError
from dyme.fault_tolerance.launch import quiet, run_and_exit
from dyme.fault_tolerance.preemption import die_with_parent
from dyme.preflight import meet
from dyme.preflight.checks import Bandwidth, Finding, Meeting, check
from dyme.preflight.facts import GIB, TOKENS, Facts, disk_needed, gather_facts
from dyme.settings.errors import ConfigError

JOIN_S = 120
REPORT_S = 300  # seconds; reading large data from a cold file system is slow
ANSWER_S = 180


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dyme.preflight", description=__doc__)
    parser.add_argument("--config", required=True, help="run YAML, see configs/")
    parser.add_argument("--deepspeed_config", help="DeepSpeed JSON; the same as deepspeed=FILE")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the YAML")
    args = parser.parse_intermixed_args()
    if "RANK" not in os.environ:
        launch_on_every_gpu()
    die_with_parent()
    rank = int(os.environ.get("RANK", "0"))
    try:
        overrides = args.overrides + ([f"deepspeed={args.deepspeed_config}"] if args.deepspeed_config else [])
        cfg = load_config(args.config, overrides)
        from dyme.engine.train_engine import deepspeed_config

        deepspeed_config(cfg)
    except ConfigError as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr)
        return 1
    quiet()
    return run(cfg, os.environ)


def launch_on_every_gpu() -> None:
    """Without a launcher, this program becomes DeepSpeed's with a rank for each GPU of the machine, if there are
    several."""
    from deepspeed.accelerator import get_accelerator

    cuda = get_accelerator().device_name() == "cuda"
    if cuda and (n := get_accelerator().device_count()) > 1:
        command = [sys.executable, "-m", "deepspeed.launcher.runner", f"--num_gpus={n}", "--module", "dyme.preflight"]
        os.execv(sys.executable, [*command, *sys.argv[1:]])


def run(cfg: RunConfig, env: Mapping[str, str]) -> int:
    """One rank's part; the exit status is the same on all."""
    rank, local_rank = int(env.get("RANK", "0")), int(env.get("LOCAL_RANK", "0"))
    world_size = int(env.get("WORLD_SIZE", "1"))
    address, port = env.get("MASTER_ADDR", "127.0.0.1"), int(env.get("MASTER_PORT", "0"))
    mine = gather_facts(cfg, rank, local_rank)
    try:
        store = meet.join_store(address, port, rank, world_size, JOIN_S)
    except (RuntimeError, OSError) as error:
        print(f"error: {mine.node} cannot reach rank 0 at {address}:{port}: {error}", file=sys.stderr)
        return 1
    store.set(f"facts/{rank}", mine.to_json())
    if rank:
        return _follow(store, mine, world_size)
    found = meet.collect(store, "facts", list(range(world_size)), REPORT_S)
    reports = [Facts.from_json(text) for text in found.values()]
    here = len(reports) == world_size
    store.set("reports", json.dumps([f.to_json() for f in reports]) if here else "")
    findings = check(_lead(store, cfg, mine, reports) if here else Meeting(world_size, reports))
    _print(findings, cfg.run.dir)
    code = int(any(f.status == "fail" for f in findings))
    store.set("verdict", str(code))
    shutil.rmtree(Path(cfg.run.dir) / TOKENS, ignore_errors=True)
    meet.collect(store, "bye", list(range(1, world_size)) if here else [], 30)  # the store ends with this process
    return code


def _lead(store: meet.dist.Store, cfg: RunConfig, mine: Facts, reports: list[Facts]) -> Meeting:
    """Rank 0's part after all have reported."""
    leaders = [f for f in reports if f.leader and f.rank]
    unseen = {mine.node: meet.unread(mine, reports)}
    told = meet.collect(store, "unread", [f.rank for f in leaders], ANSWER_S)
    unseen |= {f.node: json.loads(told.get(f.rank, b"[]")) for f in leaders}
    clocks = {}
    for f in leaders:
        meet.answer_clock(store, f.rank)
        clocks[f.node] = float(meet.collect(store, "skew", [f.rank], ANSWER_S).get(f.rank, b"0"))
    measured = meet.measure(store, 0, mine.local_rank, len(reports), ANSWER_S)
    rest = meet.collect(store, "bandwidth", [f.rank for f in reports if f.rank], 30)
    theirs = {reports[rank].node: Bandwidth(**json.loads(text)) for rank, text in rest.items()}
    bad = next((f"{node}: {b.error}" for node, b in theirs.items() if b.error), "")
    right = measured.right and all(b.right for b in theirs.values())
    bandwidth = replace(measured, right=right, error=measured.error or bad)
    try:
        needed = disk_needed(cfg)
    except (DataError, OSError):  # said under `model`
        needed = GIB
    return Meeting(
        len(reports), reports, unseen, clocks, bandwidth, needed, cfg.run.save_every, cfg.run.save_every_minutes
    )


def _follow(store: meet.dist.Store, mine: Facts, world_size: int) -> int:
    """Every other rank's part."""
    store.set_timeout(meet.timedelta(seconds=REPORT_S + ANSWER_S))
    reports = [Facts.from_json(text) for text in json.loads(store.get("reports") or b"[]")]
    if reports:
        if mine.leader:
            store.set(f"unread/{mine.rank}", json.dumps(meet.unread(mine, reports)))
            store.set(f"skew/{mine.rank}", repr(meet.clock_skew(store, mine.rank)))
        measured = meet.measure(store, mine.rank, mine.local_rank, world_size, ANSWER_S)
        store.set(f"bandwidth/{mine.rank}", json.dumps(vars(measured)))
    code = int(store.get("verdict"))
    store.set(f"bye/{mine.rank}", "")
    return code


def _print(findings: list[Finding], run_dir: str) -> None:
    table = Table(title=f"preflight of {run_dir}", title_justify="left")
    for column in ("check", "", "found", "what to mend"):
        table.add_column(column, overflow="fold")
    colors = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for f in findings:
        table.add_row(f.check, f"[{colors[f.status]}]{f.status}", f.found, f.mend)
    # a job's log has no terminal width
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    run_and_exit(main)
