"""One rank of the network benchmark: python -m tests.stress.network.rank JOB (JSON, see `Job`).

Rank 0 asks the program that started it for link conditions by a line "@conditions DELAY_S LOSS" and goes on when
it has read a line. The last line it prints is "@done" and the JSON of what it measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from tests.stress.network.collectives import Call, Recorder, count


@dataclass(frozen=True)
class Job:
    """config: a RunConfig as a tree. conditions: (one-way delay in s, loss). steps: timed ones under each, after
    `warm_up` at the beginning. probes: timed calls of each bare collective."""

    config: dict[str, Any]
    conditions: tuple[tuple[float, float], ...]
    steps: int
    warm_up: int = 3
    probes: int = 8


def measure(job: Job, recorder: Recorder) -> dict[str, Any]:
    """Step times under all conditions, and the collectives of a step. All ranks together."""
    from dyme.config import RunConfig
    from dyme.engine.train_engine import init_distributed
    from dyme.fault_tolerance.launch import quiet

    quiet()
    init_distributed(0)
    from dyme.opening import open_run

    run = open_run(RunConfig.model_validate(job.config))
    number = 0

    def step() -> tuple[float, dict[str, Any], list[Call]]:
        nonlocal number
        with recorder.step() as calls:
            begin = time.perf_counter()
            metrics = whole_step(run, number)
            seconds = time.perf_counter() - begin
        number += 1
        return seconds, metrics, calls

    for _ in range(job.warm_up):  # ZeRO-3 learns the order of the modules in the first ones
        step()
    found = []
    for delay_s, loss in job.conditions:
        _ask(delay_s, loss)
        done = [step() for _ in range(job.steps)]
        found.append(
            {
                "delay_s": delay_s,
                "loss": loss,
                "steps_s": [seconds for seconds, _, _ in done],
                "phases_s": [{k: v for k, v in metrics.items() if k.startswith("time/")} for _, metrics, _ in done],
                "collectives": [count(calls) for _, _, calls in done],
                "elements": [sum(size for _, size in calls) for _, _, calls in done],
                "probes_s": probe(job.probes) if not loss else {},
            }
        )
    run.folder.logger.close()
    return {"conditions": found, "parameters": run.engine.parameters, "world_size": run.engine.world_size}


def whole_step(run: Any, number: int) -> dict[str, Any]:
    """What the loop of dyme/trainer.py does in a step without evaluation and checkpoint; its metrics."""
    from dyme.trainer import train_step

    with run.stepping(number):
        metrics = train_step(run, number)
    run.folder.log_step(number + 1, metrics, len(run.prompt_cache.failed))
    run.schedule.must_stop(run.clock.elapsed(), run.engine.all_reduce)
    return metrics


def probe(calls: int) -> dict[str, list[float]]:
    """Seconds of single collectives of a few numbers, from all ranks' beginning to all ranks' end."""
    world = dist.get_world_size()
    one, whole = torch.zeros(16), torch.zeros(16 * world)
    parts = list(whole.chunk(world))
    ops: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(one),
        "all_gather": lambda: dist.all_gather(parts, one),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(whole, one),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(one, whole),
        "barrier": dist.barrier,
    }
    found: dict[str, list[float]] = {}
    for name, op in ops.items():
        op()
        for _ in range(calls):
            begin = time.perf_counter()
            op()
            found.setdefault(name, []).append(time.perf_counter() - begin)
    return found


def _ask(delay_s: float, loss: float) -> None:
    dist.barrier()
    if dist.get_rank() == 0:
        print(f"@conditions {delay_s} {loss}", flush=True)
        sys.stdin.readline()
    dist.barrier()


def main() -> int:
    recorder = Recorder()
    fields = json.loads(sys.argv[1])
    job = Job(**{**fields, "conditions": tuple(map(tuple, fields["conditions"]))})
    found = measure(job, recorder)
    if dist.get_rank() == 0:
        print("@done " + json.dumps({"job": asdict(job), **found}), flush=True)
    dist.barrier()
    return 0


if __name__ == "__main__":
    from dyme.fault_tolerance.launch import run_and_exit

    run_and_exit(main)
