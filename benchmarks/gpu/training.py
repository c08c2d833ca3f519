"""A few steps of the quickstart on this machine: python -m benchmarks.gpu.training --out DIR [--minutes M] [--rehearse]

Runs `deepspeed launchers/train.py` on one rank and writes its times to DIR/training.json.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.progress import Options, parse, require, run_steps
from benchmarks.kernels.results import ROOT, deepspeed_command

NEEDED = ("deepspeed", "pydantic", "transformers", "datasets")
SMALL = (
    *("model.from_scratch.hidden_size=32", "model.from_scratch.layers=1", "model.from_scratch.vision_hidden_size=32"),
    *("model.from_scratch.vision_layers=1", "data.train.count=64", "data.train.captions_first=8", "data.eval.count=8"),
    *("run.eval_records=4", "rollout.prompts_per_step=4", "rollout.max_new_tokens=4"),
)


def overrides(rehearse: bool) -> list[str]:
    steps = 2 if rehearse else 40
    return [f"train.max_steps={steps}", f"run.eval_every={steps}", *(SMALL if rehearse else ())]


def train(options: Options, config: str) -> dict[str, Any]:
    """Wall seconds, median seconds of a step after the first fifth, tokens a second, and the most memory the GPU had in
    use while it ran."""
    require(NEEDED)
    environment = os.environ | ({"DS_ACCELERATOR": "cpu"} if options.rehearse else {})
    environment.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = deepspeed_command("--num_gpus=1", "launchers/train.py", "--config", config, f"run.dir={run}")
        command += overrides(options.rehearse)
        begin = time.monotonic()
        with gpu_memory() as used:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        wall = time.monotonic() - begin
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((run / "summary.json").read_text())
    steps = [line for line in lines if not line.get("eval")]
    times = [sum(v for k, v in line.items() if k.startswith("time/") and v) for line in steps]
    settled, most = times[len(times) // 5 :], max(used, default=None)
    return {
        "steps": len(steps),
        "wall_s": wall,
        "step_s": statistics.median(settled),
        "tokens_per_s": statistics.median(line["tokens_per_s"] for line in steps[len(steps) // 5 :]),
        "gpu_memory_mb": most,
        "loss_first": steps[0].get("loss"),
        "loss_last": steps[-1].get("loss"),
        "summary": summary,
        "detail": f"{len(steps)} steps, {statistics.median(settled):.3g} s a step, GPU memory {most} MB",
    }


@contextmanager
def gpu_memory() -> Iterator[list[int]]:
    """The memory in use in MiB, as nvidia-smi tells it five times a second; nothing without a GPU."""
    used: list[int] = []
    stop = threading.Event()

    def sample() -> None:
        program = shutil.which("nvidia-smi")
        while program and not stop.wait(0.2):
            query = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            found = subprocess.run(query, capture_output=True, text=True).stdout.split()
            used.extend(int(figure) for figure in found[:1] if figure.isdigit())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        stop.set()
        thread.join(timeout=10)


def main(arguments: list[str] | None = None) -> int:
    options = parse(__doc__, arguments)
    config = "configs/quickstart_base.yaml"
    return run_steps(options.out / "training.json", options, {config: partial(train, options, config)})


if __name__ == "__main__":
    sys.exit(main())
