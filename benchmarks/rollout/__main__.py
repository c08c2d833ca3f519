"""Tokens a second of our rollout engines beside transformers generate and vLLM, on one machine in one run.

    python -m benchmarks.rollout [--preset rehearsal|tiny|full] [--out DIR] [--minutes M]

Writes DIR/rollout.json after every engine; the same command goes on where the last one ended and exits with 0 when all
is done. full wants a GPU; tiny runs on the CPU, rehearsal in seconds. Without --preset: full on a GPU, tiny elsewhere.
docs/performance.md says how the figures are made.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.progress import Options, Skip, Steps, require, run_steps
from benchmarks.kernels.results import load, save
from benchmarks.kernels.roofline import measure_ceilings
from benchmarks.kernels.table import number
from benchmarks.rollout import BASELINE, CACHES, NAMES
from benchmarks.rollout.meter import measured, medians

SECONDS = {"wall": "wall_s", "processor": "cpu_s"}
NEEDED = ("transformers", "deepspeed", "pydantic", "tokenizers")


@dataclass(frozen=True)
class Size:
    """models: names in benchmarks.checkpoints; pictures: width and height, in turn; tokens: of a prompt with
    its picture, 0 for whatever a short question takes; repeats: timed calls, after a warm-up."""

    models: tuple[str, ...]
    dtype: str
    pictures: tuple[tuple[int, int], ...]
    tokens: int
    prompts: int = 8
    group_size: int = 8
    new_tokens: int = 256
    repeats: int = 5


PRESETS = {
    "tiny": Size(("llava-onevision", "smolvlm-v1"), "fp32", ((48, 32), (32, 48)), 200, new_tokens=64, repeats=7),
    "rehearsal": Size(("llava-onevision",), "fp32", ((48, 32),), 0, 2, 2, 4, 1),
    "full": Size(("llava-onevision-0.5b", "smolvlm-500m"), "bf16", ((600, 400), (1200, 800)), 0, repeats=3),
}


def benchmark(size: Size, options: Options) -> int:
    """Run or go on with `size` into out/rollout.json; an exit status, see `run_steps`."""
    path = options.out / "rollout.json"
    steps: Steps = {"ceilings": partial(_ceilings, options)}
    steps |= {
        f"{model} | {name}": partial(_measure, size, options, model, name) for model in size.models for name in NAMES
    }
    status = run_steps(path, options, steps)
    data = load(path)
    if "size" not in data:
        save(path, data | {"size": asdict(size)})
    if status == 0:
        shutil.rmtree(options.out / "checkpoints", ignore_errors=True)
    return status


def _ceilings(options: Options) -> dict[str, Any]:
    found = measure_ceilings(options.device, "float32" if options.rehearse else "bfloat16", options.rehearse)
    return {"copy": found.copy, "detail": f"copy {found.copy / 1e9:.4g} GB/s"}


@lru_cache(maxsize=1)  # the engines of one model follow each other
def _opened(size: Size, model: str, out: Path, device: torch.device) -> tuple[Any, Any, list[Any]]:
    from benchmarks.rollout.workload import open_model, prompts

    family, opened = open_model(model, out / "checkpoints", device, size.dtype)
    return family, opened, prompts(family, size.pictures, size.prompts, size.tokens)


def _measure(size: Size, options: Options, model: str, name: str) -> dict[str, Any]:
    require(NEEDED)
    from benchmarks.rollout import engines
    from benchmarks.rollout.workload import checkpoint, kv_bytes, weight_bytes

    if why := engines.obstacle(name):
        raise Skip(why)
    device, k, n = options.device, size.group_size, size.new_tokens
    family, opened, asked = _opened(size, model, options.out, device)
    prompts = [prompt for _, _, prompt in asked]
    lengths = [len(prompt) for prompt in prompts]
    rows = len(prompts) * k
    moved = weight_bytes(family, opened) + kv_bytes(family, opened, lengths, k, n)
    if name == "vllm":
        if device.type != "cuda":
            raise Skip("vLLM is compared on a GPU")
        del opened
        _opened.cache_clear()  # it wants the memory
        torch.cuda.empty_cache()
        texts, images = [text for text, _, _ in asked], [image for _, image, _ in asked]
        folder = checkpoint(model, options.out / "checkpoints")
        engine = engines.vllm(folder, family, texts, images, k, max(lengths) + n)
    elif name in CACHES:
        engine = engines.transformers(CACHES[name], family, opened, prompts, k, device)
    else:
        engine = engines.ours(name.removeprefix("dyme "), family, opened, prompts, k)
    base = None
    if name not in ("vllm", BASELINE):
        base = engines.transformers(CACHES[BASELINE], family, opened, prompts, k, device)
    found = timed(engine, base, rows, n, size.repeats, device)
    if name == "vllm":  # in a process of its own, that torch knows nothing of
        found["peak_mb"] = found["extra_mb"] = None
    copy = load(options.out / "rollout.json")["steps"]["ceilings"]["copy"]
    return {
        **found,
        "prompt_tokens": lengths,
        "rows": rows,
        "new_tokens": n,
        "decode_bytes": moved,
        "decode_bound_s": moved / copy,
        "decode_bound_share": moved / copy / found["decode_step_s"],
        "detail": f"{found['tokens_per_s']:.4g} tokens/s, prefill {found['prefill_s']:.3g} s, "
        f"decode step {1e3 * found['decode_step_s']:.3g} ms",
    }


def timed(
    engine: Callable[[int], int],
    base: Callable[[int], int] | None,
    rows: int,
    n: int,
    repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """Calls for one token and for n in turn: the one is the prefill, and what the other takes more is n - 1 decode
    steps. `base` runs n tokens in turn with them, so that whatever else the machine does meets both."""
    for call, tokens in ((engine, n), (engine, 1), *([(base, n)] if base else [])):  # what compiles does so here
        if (made := call(tokens)) != rows * tokens:
            raise AssertionError(f"{made} tokens where {rows} rows of {tokens} were asked for")
    first, whole, others = [], [], []
    for _ in range(repeats):
        first.append(measured(device, lambda: engine(1))[0])
        whole.append(measured(device, lambda: engine(n))[0])
        if base is not None:
            others.append(measured(device, lambda: base(n))[0])
    short, long = medians(first), medians(whole)
    theirs = medians(others) if others else {}
    return {
        "tokens_per_s": rows * n / long["wall_s"],
        "tokens_per_cpu_s": rows * n / long["cpu_s"],
        "over_generate": {k: theirs[s] / long[s] for k, s in SECONDS.items()} if theirs else None,
        "prefill_s": short["wall_s"],
        "prefill_cpu_s": short["cpu_s"],
        "decode_step_s": max(long["wall_s"] - short["wall_s"], 1e-9) / max(1, n - 1),
        "decode_step_cpu_s": max(long["cpu_s"] - short["cpu_s"], 1e-9) / max(1, n - 1),
        **long,
    }


def summary(data: dict[str, Any]) -> str:
    """A line an engine; "over generate": tokens/s over those of transformers generate with the dynamic cache, measured
    in turn with it, in seconds of the wall and of the processor."""
    lines = [
        "model | engine | tokens/s | over generate, wall | processor | prefill s | decode step ms | bound's share | MB"
    ]
    for key, found in data["steps"].items():
        if " | " not in key:
            continue
        if found["status"] != "passed":
            lines.append(f"{key} | {found['status']}: {found.get('detail', '')}")
            continue
        over = found["over_generate"] or {}
        cells = [
            number(found["tokens_per_s"], 4),
            *(f"{number(over[k])}x" if k in over else "-" for k in ("wall", "processor")),
            number(found["prefill_s"]),
            number(1e3 * found["decode_step_s"]),
            f"{number(100 * found['decode_bound_share'])} %",
            number(found["peak_mb"], 4),
        ]
        lines.append(" | ".join([key, *cells]))
    return "\n".join(lines)


def arguments_of(description: str | None, arguments: list[str] | None) -> tuple[str, Options]:
    """The preset and the options of the two speed benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("rehearsal", "tiny", "full"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing after this time")
    args = parser.parse_args(arguments)
    if args.preset not in (None, "full"):  # before anybody looks for a GPU
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    preset = args.preset or ("full" if torch.cuda.is_available() else "tiny")
    if preset == "full" and not torch.cuda.is_available():
        raise SystemExit("error: --preset full needs a GPU: try --preset tiny")
    return preset, Options(args.out, args.minutes, preset != "full")


def report(text: str, note: str, path: Path, status: int) -> int:
    """Prints what a speed benchmark found; `note` says what the figures of a CPU mean, "" on a GPU."""
    print("\n".join(filter(None, (text, note))))
    print(f"{'complete' if status == 0 else 'to be continued with the same command'}: {path}")
    return status


def main(arguments: list[str] | None = None) -> int:
    preset, options = arguments_of(__doc__, arguments)
    status, path = benchmark(PRESETS[preset], options), options.out / "rollout.json"
    note = "Tiny models on a CPU: the times say what Python and small products cost, nothing about a GPU."
    return report(summary(load(path)), "" if preset == "full" else note, path, status)


if __name__ == "__main__":
    sys.exit(main())
