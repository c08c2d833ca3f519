"""What supervision costs and what it is worth, on the quickstart's charts.

    python -m benchmarks.supervision --base runs/quickstart_base/export [--out DIR] [--parts calls latency quality]

calls: questions to a judge in each step, against the scheme that asks K times to extract facts, K times to rate and K
times to refine for every group of K rollouts. latency: seconds that a step waits for a judge that takes 300 ms, and
with its answers cached. quality: no supervision against lexical checker and rules refiner over seeds.
Writes DIR/supervision.json after every run, and supervision.png; runs that are done are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean, median_high, stdev
from typing import Any

from benchmarks import figure
from benchmarks.kernels.results import command, deepspeed_command, load
from benchmarks.supervision.judge import Judge
from dyme.checkpoint.store import versions
from dyme.config import load_config
from dyme.data import load_records
from dyme.report.figure import STYLE, WIDTH
from dyme.supervision.readings import contradicted_share
from dyme.text.json_lines import read_jsonl

CONFIG = "configs/quickstart.yaml"
LATENCY_MS = 300
JUDGED = ("supervision.checker=judge", "supervision.refiner=judge", "run.export=false", "run.eval_records=32")
TITLES = {"accuracy": "held-out accuracy", "contradicted": "contradicted readings", "collapse": "groups all wrong"}
ARMS = {
    "none": ("supervision.checker=none", "supervision.refiner=none"),
    "lexical + rules": ("supervision.checker=lexical", "supervision.refiner=rules"),
}


def answer(purpose: str, text: str) -> dict[str, Any]:
    """A judge that reads the fenced texts: a rating that depends on the trace alone, a trace of all readings."""
    texts = dict(re.findall(r"<<<(\w+) \w+\n(.*?)\n\w+ \w+>>>", text, re.DOTALL))
    if purpose == "check":
        traces = [trace for name, trace in texts.items() if name.startswith("TRACE")]
        shares = [contradicted_share(trace, texts.get("FACTS", "")) for trace in traces]
        ratings = ["low" if share > 0.5 else "medium" if share else "high" for share in shares]
        return {"ratings": ratings} if len(ratings) > 1 else {"rating": ratings[0]}
    if purpose == "refine":
        return {"trace": f"{texts.get('FACTS', '')} so {texts['ANSWER']}"}
    return {"template": "{name} {value} so {answer}"} if purpose == "template" else {"better": "first"}


def launch(launcher: str, run: Path, *overrides: object, ranks: int) -> None:
    words = (f"--num_gpus={ranks}", f"launchers/{launcher}.py", "--config", CONFIG, f"run.dir={run}")
    subprocess.run(deepspeed_command(*words, *map(str, overrides)), check=True)


def train(run: Path, *overrides: object, ranks: int) -> list[dict[str, Any]]:
    """The steps of a run in folder `run`, which is made unless it is there."""
    if not (run / "DONE").exists():
        launch("train", run, *overrides, ranks=ranks)
    return [line for line in read_jsonl(run / "metrics.jsonl") if not line.get("eval")]


def calls(options: argparse.Namespace) -> dict[str, Any]:
    """A whole run with a judge that answers at once."""
    with Judge(answer) as server:
        steps = train(options.out / "calls", *_judge(server), *JUDGED, *_base(options), ranks=options.ranks)
        by_purpose = {purpose: server.counts[purpose] for purpose in ("check", "refine", "template", "compare")}
    cfg = load_config(CONFIG)
    groups, size = cfg.rollout.prompts_per_step, cfg.rollout.group_size
    sent = [line["supervision/judge/sent"] for line in steps]
    tenth = max(1, len(sent) // 10)
    return {
        "steps": len(steps),
        "groups": groups,
        "group_size": size,
        "sent": sum(sent),
        "by_purpose": by_purpose,
        "per_step": sum(sent) / len(sent),
        "per_step_first_tenth": sum(sent[:tenth]) / tenth,
        "per_step_last_tenth": sum(sent[-tenth:]) / tenth,
        "most_in_a_step": max(sent),
        "naive_per_step": 3 * groups * size,
        "naive_without_extraction": 2 * groups * size,
    }


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """The same steps three times: a judge that answers at once, one of 300 ms, and the second one's cache."""
    out, found = options.out, {}
    cache = f"judge.cache={out / 'latency-cache'}"
    start = (f"model.path={options.trained}", "train.max_steps=20", "run.eval_every=0", "optim.warmup_steps=0")
    arms = {"0 ms": (0.0, ()), f"{LATENCY_MS} ms": (LATENCY_MS, (cache,)), "cached": (LATENCY_MS, (cache,))}
    for name, (ms, more) in arms.items():
        with Judge(answer, latency_ms=ms) as server:
            run = out / f"latency-{name.replace(' ', '')}"
            steps = train(run, *_judge(server), *JUDGED, *start, *more, "judge.concurrency=64", ranks=options.ranks)
        waits = sorted(line["time/judge"] for line in steps[1:])
        found[name] = {
            "questions_a_step": sum(line["supervision/judge/asked"] for line in steps) / len(steps),
            "sent_a_step": sum(line["supervision/judge/sent"] for line in steps) / len(steps),
            "wait_median_s": median_high(waits),
            "wait_most_s": waits[-1],
            "score_and_refine_median_s": median_high([line["time/score"] + line["time/refine"] for line in steps[1:]]),
        }
    return found


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Held-out accuracy, contradicted readings and collapse of each arm and seed."""
    found: dict[str, Any] = {}
    for seed in options.seeds:
        for arm, overrides in ARMS.items():
            run = options.out / f"quality-{arm.replace(' ', '')}-{seed}"
            seeded = (f"run.seed={seed}", "run.eval_every=0", "run.eval_records=512", *overrides, *_base(options))
            train(run, *seeded, ranks=options.ranks)
            if not (run / "evaluation" / "summary.json").exists():
                launch("evaluate", run, ranks=options.ranks)
            found.setdefault(arm, []).append({"seed": seed, **_figures(run)})
            _write(options.out, {"quality": _summed(found)})
    return _summed(found)


def _figures(run: Path) -> dict[str, float]:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    cfg = load_config(run / "config.yaml")
    assert cfg.data.eval is not None
    facts = {record.id: record.facts for record in load_records(cfg.data.eval, 0.0)}
    replies = [
        (item["id"], reply) for item in read_jsonl(run / "evaluation" / "items.jsonl") for reply in item["think"]
    ]
    shares = [contradicted_share(reply["thinking"], facts[id]) for id, reply in replies]
    read = [share for share, (_, reply) in zip(shares, replies) if reply["readings"]]
    return {
        "accuracy": summary["eval_accuracy"],
        "contradicted": sum(read) / len(read) if read else math.nan,
        "with_readings": len(read) / len(replies),
        "collapse": summary["collapse_rate"],
        "wall_s": summary["wall_s"],
    }


def _summed(found: dict[str, Any]) -> dict[str, Any]:
    """Mean and the half width of its 95 % interval over seeds (Student's t)."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
    out = {}
    for arm, runs in found.items():
        out[arm] = dict[str, Any](runs=runs)
        for name in ("accuracy", "contradicted", "collapse"):
            values, n = [run[name] for run in runs], len(runs)
            half = quantile[n] * stdev(values) / math.sqrt(n) if n in quantile else math.nan
            out[arm][name] = {"mean": mean(values), "half_width": half}
    return out


def _judge(server: Judge) -> tuple[str, ...]:
    return (f"judge.endpoints=[{{url: '{server.url}', model: scripted}}]",)


def _base(options: argparse.Namespace) -> tuple[str, ...]:
    return (f"model.path={options.base}", *([f"train.max_steps={options.steps}"] if options.steps else []))


def _write(out: Path, found: dict[str, Any]) -> dict[str, Any]:
    path = out / "supervision.json"
    held = load(path) | {"versions": versions(), "command": command(), **found}
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    return held


def picture(arms: dict[str, Any], path: Path) -> None:
    """A dot for each seed; mean and 95 % interval over seeds beside them."""

    def panel(name: str, title: str, ax: Any) -> None:
        for at, found in enumerate(arms.values()):
            ax.plot([at] * len(found["runs"]), [run[name] for run in found["runs"]], "o", color=f"C{at}", ms=4)
            mean, half = found[name]["mean"], found[name]["half_width"]
            ax.errorbar(at + 0.18, mean, yerr=half, fmt="_", color=f"C{at}", capsize=4, ms=10)
        ax.set(title=title, xticks=range(len(arms)), xticklabels=list(arms))
        ax.set(xlim=(-0.5, len(arms) - 0.4), ylim=(0, 1.02))

    panels = [partial(panel, name, title) for name, title in TITLES.items()]
    figure.save(path, panels, (WIDTH, 2.6), style={**STYLE, "savefig.dpi": 200})


PARTS = {"calls": calls, "latency": latency, "quality": quality}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", type=Path, default=Path("runs/quickstart_base/export"), help="stage 1 of the quickstart"
    )
    parser.add_argument("--trained", type=Path, default=Path("runs/quickstart/export"), help="stage 2, for latency")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/supervision"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="steps of a run in place of the quickstart's 200")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args(arguments)
    for folder in {options.base} | ({options.trained} if "latency" in options.parts else set()):
        if not folder.is_dir():
            print(f"error: {folder} does not exist: run make quickstart, or name a checkpoint", file=sys.stderr)
            return 2
    options.out.mkdir(parents=True, exist_ok=True)
    held: dict[str, Any] = {}
    for part in options.parts:
        held = _write(options.out, {part: PARTS[part](options)})
    if "quality" in held:
        picture(held["quality"], options.out / "supervision.png")
    print(json.dumps({part: held[part] for part in PARTS if part in held}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
