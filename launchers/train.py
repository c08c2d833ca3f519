"""Trains one run: `deepspeed launchers/train.py --config configs/quickstart.yaml [key.sub=value ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyme.fault_tolerance.launch import one_node, quiet, rank, run_and_exit, say_error
from dyme.fault_tolerance.preemption import die_with_parent, keep_warning


def main() -> int:
    die_with_parent()
    keep_warning()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="run YAML, see configs/")
    parser.add_argument("--deepspeed_config", help="DeepSpeed JSON, see ds_configs/; the same as deepspeed=FILE")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the YAML")
    args = parser.parse_intermixed_args()

    from dyme.config import dump_config, load_config
    from dyme.provenance.history import finished
    from dyme.settings.deepspeed import unusable
    from dyme.settings.errors import ConfigError

    overrides = args.overrides + ([f"deepspeed={args.deepspeed_config}"] if args.deepspeed_config else [])
    first = rank() == 0
    try:
        cfg = load_config(args.config, overrides)
    except ConfigError as error:
        return say_error(error)
    if args.print_config:
        if (problem := unusable(cfg.deepspeed)) is not None:
            return say_error(problem)
        if first:
            print(dump_config(cfg), end="")
        return 0

    try:
        done = finished(Path(cfg.run.dir), cfg)
    except ConfigError as error:
        return say_error(error)
    if done:
        if first:
            print(f"{cfg.run.dir} is finished with this configuration (DONE): nothing to do", file=sys.stderr)
        return 0

    quiet()
    from dyme.checkpoint.store import CheckpointError
    from dyme.data import DataError
    from dyme.engine.train_engine import close_distributed, init_distributed
    from dyme.families import ModelError
    from dyme.fault_tolerance.lock import LockedError, release_all
    from dyme.health import StoppedError
    from dyme.opening import lock_early, open_run, prepare
    from dyme.supervision.judge_prompts import PromptFileError
    from dyme.supervision.templates import PoolError
    from dyme.trainer import train

    try:
        prepared = prepare(cfg)
        if first and one_node():  # else the launchers of other nodes would not hear of a refusal: open_run tells all
            lock_early(Path(cfg.run.dir))
        init_distributed(cfg.run.seed, cfg.run.hang_timeout_s)
        train(open_run(cfg, prepared))
    except (
        CheckpointError,
        ConfigError,
        DataError,
        LockedError,
        ModelError,
        PoolError,
        PromptFileError,
        StoppedError,
    ) as error:
        release_all()
        return say_error(error)
    close_distributed()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
