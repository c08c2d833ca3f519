"""Evaluates a model: `deepspeed launchers/evaluate.py --config FILE [--model DIR] [key.sub=value ...]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyme.fault_tolerance.launch import quiet, run_and_exit, say_error
from dyme.fault_tolerance.preemption import die_with_parent


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="run YAML, see configs/")
    parser.add_argument("--model", help="Hugging Face checkpoint folder; default: export/ of the run folder")
    parser.add_argument("--out", help="folder of the result; default: evaluation/ in the run folder")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the YAML")
    args = parser.parse_intermixed_args()

    from dyme.config import load_config
    from dyme.data import DataError
    from dyme.data.paths import expand
    from dyme.settings.errors import ConfigError

    try:
        cfg = load_config(args.config, args.overrides)
        run = Path(cfg.run.dir)
        model = expand(args.model) if args.model else run / "export"
        if not args.model and not model.is_dir():
            raise ConfigError(f"{model} does not exist: train the run first, or give --model a checkpoint folder")
        out = expand(args.out) if args.out else run / "evaluation"
    except (ConfigError, DataError) as error:
        return say_error(error)

    quiet()
    import torch.distributed as dist

    from dyme.engine.train_engine import close_distributed, init_distributed
    from dyme.evaluation.driver import evaluate_model
    from dyme.evaluation.folder import EvaluationError
    from dyme.evaluation.table import render
    from dyme.families import ModelError

    init_distributed(cfg.run.seed, cfg.run.hang_timeout_s)
    arguments = [argument for argument in sys.argv if not argument.startswith("--local_rank")]
    command = " ".join(["deepspeed", f"--num_gpus {dist.get_world_size()}", *arguments])
    try:
        summary = evaluate_model(cfg, model, out, command)
    except (ConfigError, DataError, EvaluationError, ModelError) as error:
        return say_error(error)
    if summary is not None:
        print(render(summary), flush=True)
    close_distributed()
    return 0


if __name__ == "__main__":
    run_and_exit(main)
