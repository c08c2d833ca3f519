"""Submits a run to SLURM: `python launchers/slurm/submit.py --nodes N --config FILE [options] [key.sub=value ...]`.

Other options (written --name=value) are passed to sbatch unchanged, e.g. --qos=high --mem=0 --dependency=...
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 100_000
CPUS_PER_GPU = 8
CPUS_WITHOUT_GPU = 4


@dataclass(frozen=True)
class Job:
    """A call of sbatch. `output`: SLURM's own log, in SLURM's file pattern."""

    command: tuple[str, ...]
    output: Path


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options and the options for sbatch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="run YAML, see configs/")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus-per-node", type=int, default=0, help="ranks on each node; 0: one rank on its CPUs")
    parser.add_argument("--cpus-per-task", type=int, help=f"CPUs of a node; default {CPUS_PER_GPU} for each GPU")
    parser.add_argument("--time", help="limit of one start, e.g. 24:00:00; after it the job is requeued and continues")
    parser.add_argument("--account")
    parser.add_argument("--partition")
    parser.add_argument("--array", metavar="SEEDS", help="one run for each seed, e.g. 1-5 or 1,2,7")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the finished model instead of training")
    parser.add_argument("--model", help="with --evaluate: the checkpoint folder; default: export/ of the run folder")
    parser.add_argument("--out", help="with --evaluate: the folder of the result")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch line and stop")
    known, unknown = parser.parse_known_args(arguments)
    known.overrides = [item for item in unknown if not item.startswith("-")]
    if wrong := [item for item in known.overrides if "=" not in item]:
        parser.error(f"'{wrong[0]}' is neither key.sub=value nor an option: write options of sbatch as --name=value")
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1)):
        count = vars(known)[name]
        if count is not None and not least <= count <= MOST:
            parser.error(f"--{name.replace('_', '-')}={count} must be from {least} to {MOST}")
    if not known.evaluate and (known.model or known.out):
        parser.error("--model and --out belong to --evaluate")
    return known, [item for item in unknown if item.startswith("-")]


def render(args: argparse.Namespace, more: Sequence[str], run_dir: str) -> Job:
    """The sbatch line of these options for a run in `run_dir`."""
    name = Path(run_dir).name
    number = "%A_%a" if args.array else "%j"
    output = Path(run_dir).parent / "slurm" / f"{name}-{number}.out"
    cpus = args.cpus_per_task or CPUS_PER_GPU * args.gpus_per_node or CPUS_WITHOUT_GPU
    options = [f"--job-name={name}", f"--nodes={args.nodes}", f"--cpus-per-task={cpus}", f"--output={output}"]
    if args.gpus_per_node:
        options.append(f"--gpus-per-node={args.gpus_per_node}")
    options += [f"--{key}={value}" for key in ("time", "account", "partition", "array") if (value := vars(args)[key])]
    script = "evaluate.sbatch" if args.evaluate else "train.sbatch"
    program = [f"launchers/slurm/{script}", "--config", args.config]
    for key in ("model", "out"):
        program += [f"--{key}", vars(args)[key]] if vars(args)[key] else []
    return Job(("sbatch", "--parsable", *options, *more, *program, *args.overrides), output)


def main(arguments: Sequence[str]) -> int:
    args, more = parse(arguments)
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    from dyme.config import load_config
    from dyme.settings.errors import ConfigError

    try:
        cfg = load_config(args.config, args.overrides)
    except ConfigError as error:  # errors show now, not after a night in the queue
        print(f"error: {error}", file=sys.stderr)
        return 2
    job = render(args, more, cfg.run.dir)
    if args.dry_run:
        print(shlex.join(job.command))
        return 0
    if Path.cwd() != ROOT:
        print(f"error: submit from the repository root: cd {ROOT}", file=sys.stderr)
        return 2
    if not shutil.which("sbatch"):
        print("error: no sbatch on the PATH: submit on a login node of the cluster", file=sys.stderr)
        return 2
    job.output.parent.mkdir(parents=True, exist_ok=True)
    # the job inherits this environment, so it uses this `python`
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(job.command, env=env, capture_output=True, text=True)
    if done.returncode:
        print(f"error: sbatch refused the job: {done.stderr.strip()}", file=sys.stderr)
        return 1
    number = done.stdout.strip().split(";")[0]
    print(f"job {number}, run folder {cfg.run.dir}, log {job.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
