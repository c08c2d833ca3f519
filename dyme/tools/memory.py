"""python -m dyme.tools.memory --config RUN.yaml [--gpus N] [--gpu_gib 80] [--image FILE | --size WxH] [--json]
[key.sub=value ...]

Predicts the peak GPU memory of each phase of a run, and the largest token budget and rollout batch that fit. Needs the
checkpoint's text files, not its weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from dyme.config import RunConfig, load_config
from dyme.data.paths import expand
from dyme.families import DTYPES, ModelError, build_family, find_family, open_family
from dyme.families.files import skeleton
from dyme.families.scratch import FREQUENT
from dyme.settings.errors import ConfigError
from dyme.tools.check.__main__ import add_shared, in_bytes, read_pictures, table
from dyme.tools.check.report import Sizes, read_zero, run_line, sizes
from dyme.tools.footprint import Estimate

GIB = 2**30
RESERVE_SHARE, RESERVE_FIXED = 0.1, GIB
"""GPU memory that a suggestion leaves free: a tenth for what is not counted, and CUDA with its libraries."""
TOKENS = 256
"""Suggested token budgets are multiples of this."""


@dataclass(frozen=True)
class Prediction:
    """Bytes per GPU. peaks: by phase, what stays included. token_budget, batch_size: the largest that fit, 0 where none
    does; batch_size None without rollouts and evaluation. `enough`: they hold a whole step of a rank at once."""

    run: str
    gpus: int
    room: int
    reserve: int
    peaks: dict[str, int]
    estimate: Estimate
    fits: bool
    token_budget: int
    batch_size: int | None
    enough: dict[str, bool]


def predict(cfg: RunConfig, pictures: Sequence[Image.Image], gpus: int, gpu_gib: float) -> Prediction:
    """The prediction for a run of `cfg` on GPUs of `gpu_gib` GiB. Raises `ConfigError` and `ModelError`."""
    size = measure(cfg, pictures, gpus)
    estimate = size.estimate()
    memory = int(gpu_gib * GIB)
    reserve = int(RESERVE_SHARE * memory) + RESERVE_FIXED
    room = memory - reserve
    budgets, batches = token_budgets(cfg, size), batch_sizes(cfg, size)
    token_budget = largest(budgets, lambda n: size.estimate(token_budget=n).peak_of("update") <= room)

    def rows_fit(rows: int) -> bool:
        found = size.estimate(batch_size=rows)
        return all(found.peak_of(phase) <= room for phase in found.phases if phase in ("rollout", "evaluation"))

    batch_size = largest(batches, rows_fit) if batches else None
    return Prediction(
        run=run_line(cfg, size.zero, gpus, cfg.deepspeed),
        gpus=gpus,
        room=room,
        reserve=reserve,
        peaks={phase: estimate.peak_of(phase) for phase in estimate.phases},
        estimate=estimate,
        fits=estimate.peak <= room,
        token_budget=token_budget,
        batch_size=batch_size,
        enough={"token_budget": token_budget == budgets[-1], "batch_size": bool(batches) and batch_size == batches[-1]},
    )


def measure(cfg: RunConfig, pictures: Sequence[Image.Image], gpus: int) -> Sizes:
    """The inputs of the estimate, from the run's model, prompts and settings."""
    zero = read_zero(cfg)
    if cfg.model.path is None:
        spec = cfg.model.from_scratch
        assert spec is not None
        # the run trains its tokenizer on the records as well
        texts = [*spec.tokenizer_texts, cfg.prompt.template, cfg.prompt.answer_flag] * FREQUENT
        family, model = build_family(cfg.model.family, spec, texts, cfg.model.dtype)
    else:
        folder = Path(expand(cfg.model.path))
        if cfg.model.family != "auto":
            find_family(folder, cfg.model.family)
        family = open_family(folder, cfg.model.family)
        model = skeleton(type(family), family.config, DTYPES[cfg.model.dtype])
    return sizes(family, model, cfg, zero, pictures, gpus)


def token_budgets(cfg: RunConfig, size: Sizes) -> range:
    """Candidate token budgets: from one row, which is never split, to all rows of a rank's step in one micro-batch."""
    row = size.load.prompt + size.load.reply
    first = -(-row // TOKENS) * TOKENS
    rows = size.rollouts or -(-cfg.rollout.prompts_per_step // size.load.ranks)
    return range(first, max(first, -(-rows * row // TOKENS) * TOKENS) + TOKENS, TOKENS)


def batch_sizes(cfg: RunConfig, size: Sizes) -> range:
    """Candidate batch sizes: whole groups, up to all rows that a rank has at a time; empty where it never generates."""
    group, rows = cfg.rollout.group_size, max(size.rollouts, size.evaluated)
    return range(group, -(-rows // group) * group + 1, group) if rows else range(0)


def largest(values: range, fits: Callable[[int], bool]) -> int:
    """The largest of the ascending `values` that fits, 0 where none does. Values below one that fits also fit."""
    fitting = bisect_left(values, True, key=lambda value: not fits(value))
    return values[fitting - 1] if fitting else 0


def lines(found: Prediction, gpu_gib: float) -> list[str]:
    """The prediction as text."""
    rows: list[tuple[str, str]] = []
    for phase, peak in found.peaks.items():
        parts = sorted(found.estimate.phases[phase].items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {in_bytes(size)}" for name, size in parts[:3])
        over = "" if peak <= found.room else " DOES NOT FIT"
        rows.append((phase, f"{in_bytes(peak)}{over}{f': {told}' if told else ''}"))
    stays = ", ".join(f"{name} {in_bytes(size)}" for name, size in found.estimate.stays.items())
    host = ", ".join(f"{name} {in_bytes(size)}" for name, size in found.estimate.host.items())
    rows.append(("in all of them", stays))
    if host:
        rows.append(("on the host", host))
    rows.append(("room", f"{in_bytes(found.room)} of {gpu_gib:g} GiB, {in_bytes(found.reserve)} in reserve"))
    out = [f"predicted peak memory per GPU ({found.run})", *table(rows)]
    if mend(found) is None:
        settings = [("train.token_budget", found.token_budget, found.enough["token_budget"])]
        if found.batch_size is not None:
            settings.append(("rollout.batch_size", found.batch_size, found.enough["batch_size"]))
        out += ["", "the largest that fit, to copy:", "  " + " ".join(f"{key}={value}" for key, value, _ in settings)]
        out += [f"  ({key}: more would be of no use)" for key, _, enough in settings if enough]
    return out


def mend(found: Prediction) -> str | None:
    """A message for a run that fits with no token budget or batch size; else None."""
    none_fits = found.batch_size == 0
    stuck = {
        "update": found.token_budget == 0,
        "refresh": found.peaks["refresh"] > found.room,
        "rollout": none_fits and "rollout" in found.peaks,
        "evaluation": none_fits and "evaluation" in found.peaks,
    }
    over = [phase for phase, never_fits in stuck.items() if never_fits]
    if not over:
        return None
    stays = sum(found.estimate.stays.values())
    return (
        f"{over[0]} does not fit with any setting of token budget and batch size; {in_bytes(stays)} stay at all times, "
        f"{in_bytes(found.room)} can be used: more GPUs under ZeRO-3 (--gpus), ds_configs/zero3_offload.json, "
        "rollout.offload=true, model.gradient_checkpointing=true, model.lora, or smaller pictures (model.max_pixels)"
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 where some settings fit the GPU, else 1 with one line on stderr."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        cfg = load_config(options.config, options.overrides)
        found = predict(cfg, read_pictures(options), options.gpus, options.gpu_gib)
    except (ConfigError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print("\n".join(lines(found, options.gpu_gib)))
    refused = mend(found)
    if refused:
        print(f"error: {refused}", file=sys.stderr)
    return int(refused is not None)


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.12 < value < 1e6:  # a smaller GPU has room for the reserve only
        raise argparse.ArgumentTypeError(f"'{text}': write the GiB of a GPU, such as 80")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dyme.tools.memory", description="Will a run fit into GPU memory?")
    parser.add_argument("--config", type=Path, required=True, help="run YAML")
    parser.add_argument("--gpu_gib", type=_gib, default=80.0, metavar="GIB", help="memory of a GPU (default 80)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the YAML")
    add_shared(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
