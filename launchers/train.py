"""Trains one run: `deepspeed launchers/train.py --config configs/quickstart.yaml [key.sub=value ...]`."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dyme.config import RunConfig


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="run YAML, see configs/")
    parser.add_argument("--deepspeed_config", help="DeepSpeed JSON, see ds_configs/; the same as deepspeed=FILE")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the YAML")
    args = parser.parse_intermixed_args()

    from dyme.config import ConfigError, dump_config, load_config

    overrides = args.overrides + ([f"deepspeed={args.deepspeed_config}"] if args.deepspeed_config else [])
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        cfg = load_config(args.config, overrides)
    except ConfigError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if args.print_config:
        if first:
            print(dump_config(cfg), end="")
        return 0

    if finished(cfg):
        if first:
            print(f"{cfg.run.dir} is finished with this configuration (DONE): nothing to do", file=sys.stderr)
        return 0

    quiet()
    from dyme.checkpoint import CheckpointError
    from dyme.data import DataError
    from dyme.engine import close_distributed, init_distributed
    from dyme.families import ModelError
    from dyme.run import Run
    from dyme.trainer import train

    init_distributed(cfg.run.seed)
    try:
        train(Run(cfg))
    except (CheckpointError, ConfigError, DataError, ModelError) as error:
        # once a node: data or weights may be missing on one node alone, where rank 0 sees nothing
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    close_distributed()
    return 0


def quiet() -> None:
    """Keeps what libraries say about themselves out of the way of what the run says."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from deepspeed.utils import logger
    from transformers.utils import logging

    logger.setLevel("ERROR")
    logging.disable_progress_bar()


def finished(cfg: RunConfig) -> bool:
    """Whether the run folder holds a finished run of exactly this configuration."""
    from dyme.config import dump_config

    folder = Path(cfg.run.dir)
    return (folder / "DONE").exists() and (folder / "config.yaml").read_text(encoding="utf-8") == dump_config(cfg)


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # interpreter exit after DeepSpeed now and then aborts when all work is done, and a failed rank must not wait
    # for others
    os._exit(code)
