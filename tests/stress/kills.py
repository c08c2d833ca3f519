"""Kills a tiny run at random moments, again and again: `python -m tests.stress.kills --kills 20 --out FILE`.

Each time `kill -9` hits a random process (a rank, its launcher, the deepspeed command) at a random moment: while the
run opens, while it trains, or while a checkpoint is written. After each kill all processes must be gone by themselves,
every checkpoint must be as it was written, and no more than `run.save_every` steps may be lost; the next start must go
on at the newest checkpoint, and each finished run must have the parameters of one that nobody disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import load_file

from dyme.checkpoint import store
from dyme.checkpoint.manifest import damage, listed
from dyme.text.json_lines import read_jsonl

RANKS, STEPS, SAVE_EVERY = 2, 24, 3
GONE_S = 90.0  # that all processes may take to end after a kill
TARGETS = ("rank 0", "rank 1", "launcher", "deepspeed")
MOMENTS = ("opening", "training", "checkpoint", "checkpoint")
TINY = {"hidden_size": 32, "layers": 2, "vision_hidden_size": 32, "vision_layers": 1, "patch_size": 8}


@dataclass(frozen=True)
class Kill:
    """One kill. `lost_steps`: logged steps beyond the newest checkpoint; `gone_s`: until no process was left;
    `orphans`: those that had to be ended from outside."""

    target: str
    moment: str
    at_step: int
    newest_checkpoint: int
    lost_steps: int
    gone_s: float
    orphans: int
    damaged: list[str]
    half_written: bool


def configuration(folder: Path) -> Path:
    """A run of half a minute whose groups span its ranks."""
    tree = {
        "model": {"from_scratch": TINY},
        "data": {"train": {"source": "charts", "count": 40, "trace": "low"}},
        "prompt": {"template": "{question}"},
        "rollout": {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 6},
        "optim": {"lr": 1e-3, "eps": 1e-5, "schedule": "cosine", "weight_decay": 0.1},
        "train": {"max_steps": STEPS, "token_budget": 200},
        "run": {"save_every": SAVE_EVERY, "tensorboard": False, "report": False},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kills.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


class Start:
    """One start of a run through the deepspeed command, in a session of its own."""

    def __init__(self, config: Path, run: Path, port: int) -> None:
        self.run, self.began, self.log = run, time.time(), run.with_suffix(".log")
        self.targets: dict[str, psutil.Process] = {}
        self.family: list[psutil.Process] = []
        self._at = self.log.stat().st_size if self.log.exists() else 0
        command = [str(Path(sys.executable).parent / "deepspeed"), f"--num_gpus={RANKS}", f"--master_port={port}"]
        command += ["launchers/train.py", "--config", str(config), f"run.dir={run}"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def processes(self) -> dict[str, psutil.Process]:
        """Those of `TARGETS` that are there."""
        found = {"deepspeed": psutil.Process(self.process.pid)}
        for launcher in found["deepspeed"].children():
            if not any("deepspeed.launcher.launch" in word for word in launcher.cmdline()):
                continue
            found["launcher"] = launcher
            ranks = [p for p in launcher.children() if any("launchers/train.py" in word for word in p.cmdline())]
            found |= {f"rank {i}": p for i, p in enumerate(sorted(ranks, key=lambda p: p.create_time()))}
        return found

    def look(self) -> None:
        """Notes the processes: a kill must not wait for it."""
        outer = psutil.Process(self.process.pid)
        self.targets, self.family = self.processes(), [outer, *outer.children(recursive=True)]

    def trains(self) -> bool:
        """Whether the loop has begun in this start."""
        beat = self.run / "watchdog" / "rank-0.json"
        return beat.exists() and beat.stat().st_mtime > self.began

    def half_written(self) -> set[str]:
        """Checkpoints that this start has begun and not finished; not those that an earlier one left."""
        found = set()
        for partial in (self.run / "checkpoints").glob(f"{store.PARTIAL}step-*"):
            try:
                if partial.stat().st_mtime > self.began:
                    found.add(partial.name)
            except FileNotFoundError:  # finished meanwhile
                continue
        return found

    def said(self) -> str:
        with self.log.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._at)
            return log.read()

    def resumed_at(self) -> int | None:
        """The step it said it began with, None where it was not so far."""
        match = re.search(r"resuming at step (\d+):|\] (starting):", self.said())
        return None if match is None else int(match[1] or 0)

    def ended(self) -> bool:
        return self.process.poll() is not None


def wait_for_moment(start: Start, moment: str, seconds: float, rng: random.Random) -> bool:
    """Waits for a random moment of a kind; False where the run ended before. `seconds`: what a whole run trains for."""
    if moment == "opening":
        return _sleeps(start, rng.uniform(0.5, 12.0))
    while not start.trains():
        if not _sleeps(start, 0.02):
            return False
    start.look()  # takes longer than a checkpoint
    if moment == "training":
        return _sleeps(start, rng.uniform(0.0, 0.8 * seconds))
    skipped = rng.randrange(4)  # checkpoints that pass before
    seen: set[str] = set()
    while True:
        seen |= start.half_written()
        if len(seen) > skipped:
            return rng.random() < 0.5 or _sleeps(start, rng.uniform(0.0, 0.02))
        if not _sleeps(start, 0.001):
            return False


def _sleeps(start: Start, seconds: float) -> bool:
    time.sleep(seconds)
    return not start.ended()


def kill(start: Start, target: str, moment: str) -> Kill | None:
    """Kills and looks at what is left; None where the target was not there yet or no more."""
    try:
        if not start.targets:
            start.look()
        victim, family = start.targets.get(target), start.family
        if victim is None:
            return None
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return None
    began = time.monotonic()
    start.process.poll()
    _, alive = psutil.wait_procs(family, timeout=GONE_S)
    gone_s = time.monotonic() - began
    for process in alive:
        process.kill()
    start.process.wait()
    folder = start.run / "checkpoints"
    steps = store.steps(folder)
    newest = max(steps, default=0)
    at_step = max((line["step"] for line in read_jsonl(start.run / "metrics.jsonl")), default=0)
    return Kill(
        target=target,
        moment=moment,
        at_step=at_step,
        newest_checkpoint=newest,
        lost_steps=max(0, at_step - newest),
        gone_s=round(gone_s, 2),
        orphans=len(alive),
        damaged=[f"{step}: {line}" for step in steps for line in damages(store.checkpoint_dir(folder, step))],
        half_written=bool(start.half_written()),
    )


def damages(path: Path) -> list[str]:
    entries, wrong = listed(path)
    return wrong + damage(path, entries)


def same_parameters(a: Path, b: Path) -> bool:
    left, right = (load_file(run / "export" / "model.safetensors") for run in (a, b))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def finish(config: Path, run: Path, port: int) -> float:
    """Runs to the end; returns the seconds of its loop."""
    start = Start(config, run, port)
    while not start.trains() and not start.ended():
        time.sleep(0.05)
    began = time.monotonic()
    start.process.wait()
    if not (run / "DONE").exists():
        raise RuntimeError(f"{run} did not finish; the end of {start.log}:\n{start.said()[-3000:]}")
    return time.monotonic() - began


def measure(folder: Path, kills: int, minutes: float, seed: int) -> dict[str, Any]:
    """Kills until there are enough, or the minutes are over, then lets the last run finish."""
    rng, port, until = random.Random(seed), 21000 + seed % 1000, time.monotonic() + 60 * minutes
    shutil.rmtree(folder, ignore_errors=True)
    config = configuration(folder)
    seconds = finish(config, folder / "undisturbed", port)
    done: list[Kill] = []
    wrong_starts: list[str] = []
    finished, equal, starts, expected = 0, 0, 0, 0
    while len(done) < kills and time.monotonic() < until:
        run = folder / f"run{finished}"
        start = Start(config, run, port := port + 1)
        starts += 1
        moment = rng.choice(MOMENTS)
        target = rng.choice(TARGETS[:-1] if moment == "checkpoint" else TARGETS)  # without deepspeed ranks end theirs
        hit = kill(start, target, moment) if wait_for_moment(start, moment, seconds, rng) else None
        if hit is None:
            start.process.wait()
        if (resumed := start.resumed_at()) not in (None, expected):
            wrong_starts.append(f"start {starts} began at {resumed} instead of {expected}")
        if hit is not None:
            done.append(hit)
            print(f"{len(done)}/{kills} {hit}", file=sys.stderr, flush=True)
        expected = max(store.steps(run / "checkpoints"), default=0)
        if (run / "DONE").exists():
            finished, equal, expected = finished + 1, equal + same_parameters(folder / "undisturbed", run), 0
    if (folder / f"run{finished}").exists():
        finish(config, run := folder / f"run{finished}", port + 1)
        finished, equal = finished + 1, equal + same_parameters(folder / "undisturbed", run)
    return {
        "kills": len(done),
        "targets": Counter(each.target for each in done),
        "moments": Counter(each.moment for each in done),
        "inside_a_checkpoint": sum(each.half_written for each in done),
        "most_lost_steps": max((each.lost_steps for each in done), default=0),
        "save_every": SAVE_EVERY,
        "damaged_files": sum(len(each.damaged) for each in done),
        "orphans": sum(each.orphans for each in done),
        "slowest_end_s": max((each.gone_s for each in done), default=0.0),
        "wrong_starts": wrong_starts,
        "finished_runs": finished,
        "finished_with_the_same_parameters": equal,
        "seed": seed,
        "ranks": RANKS,
        "versions": store.versions(),
        "each": [asdict(each) for each in done],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0, help="no new start after this long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kills"), help="emptied first")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/kills.json"))
    args = parser.parse_args(arguments)
    result = {"command": f"python -m tests.stress.kills {' '.join(arguments)}", "time": time.strftime("%F")}
    result |= measure(args.folder, args.kills, args.minutes, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    survived = verdict(result)
    print("\n".join(survived))
    return 0 if survived[-1] == "nothing lost" else 1


def verdict(result: dict[str, Any]) -> list[str]:
    """What is said of a result; the last line is "nothing lost" or "FAILED"."""
    good = (
        result["most_lost_steps"] <= result["save_every"]
        and not result["damaged_files"]
        and not result["orphans"]
        and not result["wrong_starts"]
        and result["finished_with_the_same_parameters"] == result["finished_runs"] > 0
    )
    return [
        f"{result['kills']} kills ({result['inside_a_checkpoint']} inside a checkpoint): at most "
        f"{result['most_lost_steps']} steps lost (a checkpoint every {result['save_every']}), "
        f"{result['damaged_files']} damaged files, {result['orphans']} orphans, all gone after "
        f"{result['slowest_end_s']:.1f} s at most",
        f"{len(result['wrong_starts'])} wrong starts; {result['finished_with_the_same_parameters']} of "
        f"{result['finished_runs']} finished runs have the parameters of the undisturbed one",
        "nothing lost" if good else "FAILED",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
