"""Commands for the batch scripts inside a SLURM job.

job.py folder ARGUMENTS             prints the run folder of a launcher's arguments (in an array job: of this seed)
job.py summary ARGUMENTS            prints the file that a finished evaluation with these arguments leaves
job.py port                         prints a port that is free on this node
job.py node [--module] SCRIPT ...   starts DeepSpeed's launcher of this node; RANKS_PER_NODE, MASTER_ADDR, MASTER_PORT
                                    and RANK_LOGS (a folder, or empty: no files) come from the batch script
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PORTS = range(15000, 31000)  # below the ports that systems use for outgoing connections
BLOCK = 8  # ports of a job; a closed port stays in use for a minute


def seed_folder(folder: str, seed: str) -> str:
    """The run folder of one seed of an array job."""
    return f"{folder}-seed{seed}"


def run_folder(arguments: Sequence[str], env: Mapping[str, str]) -> Path:
    """`run.dir` of the arguments of launchers/train.py or launchers/evaluate.py. Raises `ConfigError`."""
    from dyme.config import load_config

    args = _parse(arguments)
    folder = load_config(args.config, args.overrides).run.dir
    seed = env.get("SLURM_ARRAY_TASK_ID")
    return Path(seed_folder(folder, seed) if seed else folder)


def summary_file(arguments: Sequence[str]) -> Path:
    """The summary of an evaluation, from the arguments of launchers/evaluate.py. Raises `ConfigError`."""
    from dyme.data.paths import expand
    from dyme.evaluation.files import SUMMARY

    out = _parse(arguments).out
    return (expand(out) if out else run_folder(arguments, {}) / "evaluation") / SUMMARY


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="job.py")
    parser.add_argument("--config", required=True)
    for name in ("--deepspeed_config", "--model", "--out"):
        parser.add_argument(name)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(arguments)


def free_port(job_id: int) -> int:
    """A free port on this node. Each job searches a separate block, because seconds pass before it opens the port and
    two jobs on one node must not choose the same."""
    for i in range(len(PORTS)):
        port = PORTS[(BLOCK * job_id + i) % len(PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"error: no free port from {PORTS.start} to {PORTS.stop - 1} on {socket.gethostname()}")


def world_info(env: Mapping[str, str]) -> dict[str, list[int | str]]:
    """Ids of the devices of every node's ranks, in rank order.

    DeepSpeed's launcher sets CUDA_VISIBLE_DEVICES from it. Where SLURM assigned certain GPUs of this node to
    the job, these must be used; of other nodes only the number matters.
    """
    ranks = int(env["RANKS_PER_NODE"])
    info: dict[str, list[int | str]] = {f"node-{i}": list(range(ranks)) for i in range(int(env["SLURM_NNODES"]))}
    visible = [item for item in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if item]
    if len(visible) >= ranks:
        info[f"node-{env['SLURM_NODEID']}"] = list(visible[:ranks])
    return info


def launch_command(program: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """DeepSpeed's launcher of this node; `program` is `[--module] SCRIPT ARGUMENTS`."""
    packed = base64.urlsafe_b64encode(json.dumps(world_info(env)).encode()).decode()
    command = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={packed}"]
    command += [f"--node_rank={env['SLURM_NODEID']}", f"--master_addr={env['MASTER_ADDR']}"]
    command += [f"--master_port={env['MASTER_PORT']}", "--log_level=error"]
    if env.get("RANK_LOGS"):
        command.append(f"--enable_each_rank_log={env['RANK_LOGS']}")
    return [*command, *program]


def main(arguments: Sequence[str]) -> int:
    task, *rest = arguments
    if task in ("folder", "summary"):
        sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
        from dyme.settings.errors import ConfigError

        try:
            print(run_folder(rest, os.environ) if task == "folder" else summary_file(rest))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    elif task == "port":
        print(free_port(int(os.environ["SLURM_JOB_ID"])))
    elif task == "node":
        command = launch_command(rest, os.environ)
        # ignored signals stay ignored across exec, so SLURM's warning does not kill the launcher; ranks set handlers
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.execv(command[0], command)
    else:
        raise SystemExit(f"job.py: no task '{task}': folder, summary, port or node")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
