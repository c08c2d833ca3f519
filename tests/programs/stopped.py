"""Runs configurations one after the other in this process; some of them are asked to leave in the middle.

usage: torchrun --nproc_per_node N -m tests.programs.stopped JOBS.json
[{"config": FILE, "overrides": [key.sub=value, ...], "stop_after": step at whose end the last rank gets SIGUSR1, or 0,
  "stop_in": "" or a phase inside which it gets it}]
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback


def main() -> None:
    import torch

    from dyme.config import load_config
    from dyme.engine.train_engine import close_distributed, init_distributed
    from dyme.fault_tolerance.launch import quiet
    from dyme.opening import open_run
    from dyme.trainer import train

    quiet()
    rank = init_distributed(0)
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        try:
            torch.manual_seed(0)  # each as in a process of its own
            run = open_run(load_config(job["config"], job["overrides"]))
            if rank == run.engine.world_size - 1 and job.get("stop_after"):
                ask_to_leave(run, job["stop_after"], job.get("stop_in", ""))
            train(run)
        except Exception:  # the others still run; the test finds that this one did not finish
            traceback.print_exc()
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


def ask_to_leave(run, after: int, phase: str) -> None:
    """A signal after the log line of a step, or when the step's watchdog hears of a phase."""
    if not phase:
        log_step = run.folder.log_step

        def log_then_ask(step: int, *logged) -> None:
            log_step(step, *logged)
            if step == after:
                ask(run)

        run.folder.log_step = log_then_ask
        return
    beat = run.clock.watchdog.beat

    def beat_then_ask(**where) -> None:
        beat(**where)
        if where.get("phase") == phase and run.clock.step + 1 == after and not run.schedule.preemption.asked:
            ask(run)

    run.clock.watchdog.beat = beat_then_ask


def ask(run) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    while not run.schedule.preemption.asked:  # a thread notes it
        time.sleep(0.01)


if __name__ == "__main__":
    main()
