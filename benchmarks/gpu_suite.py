"""Everything to be learned from a machine with a GPU, in calls of a few minutes.

    python -m benchmarks.gpu_suite --out DIR [--minutes 9.5] [--parts checks kernels ...] [--rehearse]

checks: are the kernels right; kernels: the full preset of benchmarks.kernels; options: launch options of the row
kernel; training: some steps of the quickstart; rollout and step: benchmarks.rollout and benchmarks.step beside
transformers, vLLM and TRL. Every part runs in its own process and writes DIR/<part>.json as it
goes; the same command goes on where the last one ended or was killed, and exits with 0 when all is done. What a part
needs and does not find is said in the table. --rehearse runs all of it in tiny shapes on a CPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels.results import ROOT, load, module_environment, save

LEAST_S = 20  # a part that has less is left to the next call
GRACE_S = 45  # for what a part began before its time was over


@dataclass(frozen=True)
class Part:
    """module: what runs; minutes: of one call, at most; smallest: the preset that rehearses a program with presets."""

    name: str
    module: str
    minutes: float
    smallest: str = ""


PARTS = (
    Part("checks", "benchmarks.gpu.checks", 5),
    Part("kernels", "benchmarks.kernels", 9, "tiny"),
    Part("options", "benchmarks.gpu.options", 4),
    Part("training", "benchmarks.gpu.training", 4),
    Part("rollout", "benchmarks.rollout", 9, "rehearsal"),
    Part("step", "benchmarks.step", 9, "rehearsal"),
)


def command(part: Part, out: Path, minutes: float, rehearse: bool) -> list[str]:
    words = [sys.executable, "-m", part.module, "--out", str(out), "--minutes", f"{minutes:.2f}"]
    if part.smallest:
        return [*words, "--preset", part.smallest if rehearse else "full"]
    return [*words, "--rehearse"] if rehearse else words


def environment(part: Part, rehearse: bool) -> dict[str, str]:
    found = module_environment(PYTHONUNBUFFERED="1")
    if rehearse:
        found["CUDA_VISIBLE_DEVICES"] = ""
        if part.name in ("checks", "options"):
            found["TRITON_INTERPRET"] = "1"
    return found


def run(part: Part, out: Path, seconds: float, rehearse: bool) -> tuple[str, float]:
    """One process of a part -> what became of it, and its seconds. Its output goes to DIR/log.txt."""
    begin = time.monotonic()
    words = command(part, out, max(0.05, (seconds - GRACE_S) / 60), rehearse)
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(['python', *words[1:]])}\n")
        log.flush()
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment(part, rehearse), stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "killed at its time limit", time.monotonic() - begin
    words_of = {0: "done", 4: "to be continued", 3: "lost the GPU; goes on without what broke it"}
    return words_of.get(status, f"failed with exit status {status}, see log.txt"), time.monotonic() - begin


def suite(out: Path, parts: list[Part], minutes: float, rehearse: bool) -> bool:
    """Run what is left of `parts`, within `minutes`; True when all of them are done."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * minutes
    path = out / "suite.json"
    data: dict[str, Any] = {"rehearsal": rehearse, "parts": {}, **load(path)}
    if data["rehearsal"] != rehearse:
        raise SystemExit(f"error: {out} holds {'a' if data['rehearsal'] else 'no'} rehearsal: choose another --out")
    for part in parts:
        while not load(out / f"{part.name}.json").get("done"):
            left = min(60 * part.minutes, deadline - time.monotonic())
            if left < LEAST_S:
                data["parts"].setdefault(part.name, {"status": "no time left", "seconds": 0.0})
                break
            status, seconds = run(part, out, left, rehearse)
            spent = data["parts"].get(part.name, {}).get("seconds", 0.0) + seconds
            data["parts"][part.name] = {"status": status, "seconds": round(spent, 1)}
            save(path, data)
            if not status.startswith("lost"):
                break
    save(path, data)
    return all(load(out / f"{part.name}.json").get("done") for part in parts)


def report(out: Path, parts: list[Part]) -> str:
    """A short table of all that is in `out`."""
    data = load(out / "suite.json")
    lines: list[str] = []
    for part in parts:
        found = load(out / f"{part.name}.json")
        if part.name == "kernels" and found.get("rows"):
            from benchmarks.kernels.table import summary

            lines += ["", f"kernels on {found['hardware']['device']}", summary(found)]
        for name, step in found.get("steps", {}).items():
            lines.append(f"{part.name} | {name} | {step['status']} | {step.get('detail', '')}")
    lines.append("")
    for part in parts:
        state = data.get("parts", {}).get(part.name, {"status": "done earlier", "seconds": 0.0})
        lines.append(f"part {part.name} | {state['status']} | {state['seconds']:.0f} s")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, and where to go on")
    parser.add_argument("--minutes", type=float, default=9.5, help="of this call")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU")
    args = parser.parse_args(arguments)
    parts = [part for part in PARTS if part.name in args.parts]
    complete = suite(args.out.resolve(), parts, args.minutes, args.rehearse)
    print(report(args.out, parts))
    print("all done" if complete else "not done: run the same command again")
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
