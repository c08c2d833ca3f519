"""What submit.py hands to sbatch, and what a node's job makes of SLURM's environment. Needs no SLURM."""

from __future__ import annotations

import base64
import importlib.util
import json
import shlex
import socket
import subprocess
import sys
from types import ModuleType

import pytest

from dyme.settings.errors import ConfigError
from tests.helpers.launching import ROOT

SLURM = ROOT / "launchers" / "slurm"
QUICKSTART = "configs/quickstart_base.yaml"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"slurm_{name}", SLURM / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


job, submit = load("job"), load("submit")


def dry_run(capsys, *arguments: str) -> list[str]:
    assert submit.main([*arguments, "--config", QUICKSTART, "--dry-run"]) == 0
    return shlex.split(capsys.readouterr().out)


def test_the_line_of_a_run_on_gpus(capsys):
    line = dry_run(
        capsys,
        "--nodes",
        "4",
        "--gpus-per-node",
        "8",
        "--time",
        "24:00:00",
        "--account",
        "me",
        "optim.lr=1e-4",
        "--qos=high",
    )
    assert line[:2] == ["sbatch", "--parsable"] and line[-1] == "optim.lr=1e-4"
    at = line.index("launchers/slurm/train.sbatch")
    assert line[at:] == ["launchers/slurm/train.sbatch", "--config", QUICKSTART, "optim.lr=1e-4"]
    assert set(line[2:at]) == {
        "--job-name=quickstart_base",
        "--nodes=4",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--time=24:00:00",
        "--account=me",
        "--qos=high",
        "--output=runs/slurm/quickstart_base-%j.out",
    }


def test_seeds_are_an_array_job_with_a_folder_each(capsys):
    line = dry_run(capsys, "--nodes", "1", "--array", "1-3", "run.dir=runs/x")
    assert "--array=1-3" in line and "--output=runs/slurm/x-%A_%a.out" in line
    assert (
        str(job.run_folder(["--config", QUICKSTART, "run.dir=runs/x"], {"SLURM_ARRAY_TASK_ID": "2"})) == "runs/x-seed2"
    )
    assert str(job.run_folder(["--config", QUICKSTART, "run.dir=runs/x"], {})) == "runs/x"


def test_evaluation_has_a_script_of_its_own(capsys):
    line = dry_run(capsys, "--nodes", "1", "--evaluate", "--model", "some/model")
    assert line[-5:] == ["launchers/slurm/evaluate.sbatch", "--config", QUICKSTART, "--model", "some/model"]
    assert str(job.summary_file(["--config", QUICKSTART])) == "runs/quickstart_base/evaluation/summary.json"
    assert str(job.summary_file(["--config", QUICKSTART, "--out", "x/y"])) == "x/y/summary.json"


def test_mistakes_are_said(capsys):
    with pytest.raises(SystemExit):
        submit.main(["--nodes", "1", "--config", QUICKSTART, "--qos", "high"])
    assert "write options of sbatch as --name=value" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        submit.main(["--nodes", "1", "--config", QUICKSTART, "--model", "x"])
    assert "belong to --evaluate" in capsys.readouterr().err
    assert submit.main(["--nodes", "1", "--config", QUICKSTART, "train.max_stepz=1"]) == 2
    assert "max_stepz" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such configuration"):
        job.run_folder(["--config", "missing.yaml"], {})


ENV = {
    "RANKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "15001",
    "RANK_LOGS": "",
}


def test_the_gpus_that_slurm_gave_stay_the_jobs():
    assert job.world_info(ENV) == {"node-0": [0, 1], "node-1": [0, 1]}
    assert job.world_info({**ENV, "CUDA_VISIBLE_DEVICES": "4,6"}) == {"node-0": [0, 1], "node-1": ["4", "6"]}
    assert job.world_info({**ENV, "CUDA_VISIBLE_DEVICES": "0"})["node-1"] == [0, 1]  # too few to be the ranks'


def test_the_launcher_of_a_node():
    command = job.launch_command(["launchers/train.py", "--config", "x"], {**ENV, "RANK_LOGS": "runs/x/logs"})
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.launch"] and command[-3:] == [
        "launchers/train.py",
        "--config",
        "x",
    ]
    options = dict(item.lstrip("-").split("=", 1) for item in command[3:-3])
    assert json.loads(base64.urlsafe_b64decode(options.pop("world_info"))) == job.world_info(ENV)
    assert options == {
        "node_rank": "1",
        "master_addr": "n1",
        "master_port": "15001",
        "log_level": "error",
        "enable_each_rank_log": "runs/x/logs",
    }
    assert not any("each_rank_log" in item for item in job.launch_command(["x.py"], ENV))


def test_a_taken_port_is_passed_over_within_the_ports_of_the_job():
    port = job.free_port(7)
    assert job.PORTS.start + 7 * job.BLOCK <= port < job.PORTS.start + 8 * job.BLOCK
    with socket.socket() as held:
        held.bind(("", port))
        assert port < job.free_port(7) < port + job.BLOCK


def test_deepspeed_reads_the_hostfile():
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(ROOT / "launchers" / "hostfile.example")) == {"node1": 8, "node2": 8}


@pytest.mark.parametrize("name", ["train.sbatch", "evaluate.sbatch", "common.sh"])
def test_the_scripts_are_bash(name):
    subprocess.run(["bash", "-n", SLURM / name], check=True)


@pytest.mark.parametrize("name", ["train.sbatch", "evaluate.sbatch"])
def test_the_wrong_folder_is_said(name, tmp_path):
    done = subprocess.run(["bash", SLURM / name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "is not the repository root" in done.stderr
