"""Jobs on a real SLURM of two nodes on this machine: to the end, put back, warned, cancelled, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.helpers import slurm_bed
from tests.helpers.launching import ROOT
from tests.helpers.slurm_bed import Bed
from tests.helpers.tiny import TINY

PROBE = ROOT / "tests" / "programs" / "probe.py"

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(slurm_bed.missing() is not None, reason=str(slurm_bed.missing())),
]

SLOW_REWARD = """
import os, time

def slow(completions, **columns):
    if "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(float(os.environ.get("FIRST_START_SLEEPS", "0")))
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory) -> Iterator[Bed]:
    with Bed(tmp_path_factory.mktemp("slurm")) as bed:
        yield bed


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """About ten seconds of training on a tiny model, in steps that can be made slower in a job's first start."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "slow.py").write_text(SLOW_REWARD)
    tree = {
        "method": "dyme",
        "model": {"from_scratch": TINY},
        "data": {"train": {"source": "charts", "count": 40, "trace": "low"}},
        "prompt": {"template": "{question}"},
        "rollout": {"prompts_per_step": 3, "group_size": 2, "max_new_tokens": 4},
        "reward": {"user": [{"function": f"{folder}/slow.py:slow", "timeout_s": 60}]},
        "optim": {"lr": 1e-3, "eps": 1e-5},
        "train": {"max_steps": 12, "token_budget": 200},
        "run": {"tensorboard": False, "report": False, "save_every": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def submit(bed: Bed, *arguments: object, **env: object) -> tuple[str, Path]:
    """`submit.py` as a user types it, from the repository root: (job, SLURM's log)."""
    done = bed.run(sys.executable, "launchers/slurm/submit.py", *arguments, cwd=ROOT, **env)
    found = re.fullmatch(r"job (\d+), run folder \S+, log (\S+)", done.stdout.strip())
    assert found, done.stdout + done.stderr
    return found[1], Path(found[2].replace("%j", found[1]))


def finish(bed: Bed, job: str, log: Path, state: str = "COMPLETED", timeout: float = 300) -> dict[str, str]:
    """Waits for the end of a job, which must be this one."""
    ended = bed.wait(job, *slurm_bed.ENDED, timeout=timeout)
    assert ended["JobState"] == state, log.read_text() + bed.logs()
    return ended


def until(condition, timeout: float = 300, told: str = "") -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {told}"
        time.sleep(0.1)


def rank_log(run: Path, job: str, restart: int, rank: int) -> str:
    [log] = (run / "logs" / f"{job}-{restart}").glob(f"*_rank{rank}.log")
    return log.read_text()


def same_weights(a: Path, b: Path) -> None:
    left, right = (load_file(run / "export" / "model.safetensors") for run in (a, b))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def undisturbed(bed, config, tmp_path_factory) -> tuple[Path, str, Path]:
    """A run on two nodes that nothing happens to: (run folder, job, SLURM's log)."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job, log = submit(bed, "--nodes", 2, "--config", config, f"run.dir={run}")
    finish(bed, job, log)
    return run, job, log


def test_a_job_of_two_nodes_to_the_end(undisturbed):
    run, job, log = undisturbed
    assert (run / "DONE").is_file() and (run / "export" / "model.safetensors").is_file()
    told = log.read_text()
    assert "2 ranks on 2 nodes (1 each)" in told and "fail" not in told  # the preflight's table
    assert f"finished: {run}/DONE" in told
    assert "2 ranks, ZeRO stage 3" in rank_log(run, job, 0, 0) and "step 12/12" in rank_log(run, job, 0, 0)
    assert "step 12/12" not in rank_log(run, job, 0, 1)
    assert json.loads((run / "summary.json").read_text())["ranks"] == 2
    assert not (run / ".preflight").exists()


@pytest.mark.slow
def test_a_finished_run_is_left_alone(bed, config, undisturbed):
    run, _, _ = undisturbed
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    job, log = submit(bed, "--nodes", 2, "--config", config, f"run.dir={run}")
    finish(bed, job, log)
    assert "nothing to do" in rank_log(run, job, 0, 0)
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_requeue_in_mid_run_ends_with_the_same_weights(bed, config, undisturbed, tmp_path):
    run = tmp_path / "run"
    job, log = submit(bed, "--nodes", 2, "--config", config, f"run.dir={run}", FIRST_START_SLEEPS=1)
    until(lambda: (run / "checkpoints" / "step-00000003").exists(), told=str(log))
    bed.run("scontrol", "requeue", job)
    assert finish(bed, job, log)["Restarts"] == "1"
    assert "resuming at step" in rank_log(run, job, 1, 0)
    assert len((run / "logs" / "starts").read_text().splitlines()) == 2
    same_weights(run, undisturbed[0])


@pytest.mark.slow
def test_a_job_over_its_time_limit_goes_on_by_itself(bed, config, undisturbed, tmp_path):
    """SLURM looks at limits every half minute: the warning comes 30 to 60 s before the limit of two minutes."""
    run = tmp_path / "run"
    options = ("--time=2", "--signal=B:USR1@30")
    job, log = submit(bed, "--nodes", 2, *options, "--config", config, f"run.dir={run}", FIRST_START_SLEEPS=12)
    ended = finish(bed, job, log, timeout=900)
    told = log.read_text()
    assert int(ended["Restarts"]) >= 1 and "warned" in told and "back into the queue" in told
    same_weights(run, undisturbed[0])


@pytest.mark.slow
def test_a_warned_job_leaves_with_a_checkpoint(bed, config, undisturbed, tmp_path):
    """Without a checkpoint in between: the one it goes on from is that of the warning."""
    run = tmp_path / "run"
    options = (f"run.dir={run}", "run.save_every=0")
    job, log = submit(bed, "--nodes", 2, "--config", config, *options, FIRST_START_SLEEPS=2)
    until(
        lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 2, told=str(log)
    )
    bed.run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: (run / "PREEMPTED").exists() or (run / "DONE").exists(), told=log.read_text())
    left = json.loads((run / "PREEMPTED").read_text())
    assert 2 <= left["step"] < 12 and left["asked_by"] == "SIGUSR1"
    ended, told = finish(bed, job, log), log.read_text()
    assert ended["Restarts"] == "1" and f"newest checkpoint step-{left['step']:08d}" in told
    same_weights(run, undisturbed[0])


@pytest.mark.slow
def test_a_rank_killed_in_the_first_start_comes_back(bed, config, undisturbed, tmp_path):
    """Before any checkpoint: the run begins anew."""
    run = tmp_path / "run"
    options = (f"run.dir={run}", "run.save_every=0")
    job, log = submit(bed, "--nodes", 2, "--config", config, *options, FIRST_START_SLEEPS=2)
    until(
        lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 2, told=str(log)
    )
    ranks = [pid for daemon in slurm_bed.step_daemons(bed.folder) for pid in slurm_bed.descendants(daemon)]
    slurm_bed.kill(next(pid for pid in ranks if "RANK=1" in slurm_bed.environment_of(pid)))
    assert finish(bed, job, log)["Restarts"] == "1"
    assert "without a new checkpoint, 1 in a row" in log.read_text()
    same_weights(run, undisturbed[0])


@pytest.mark.slow
def test_a_hang_ends_the_start_and_the_next_one_trains(bed, config, undisturbed, tmp_path):
    run = tmp_path / "run"
    options = (f"run.dir={run}", "run.hang_timeout_s=20")
    job, log = submit(bed, "--nodes", 2, "--config", config, *options, FIRST_START_SLEEPS=50)
    assert finish(bed, job, log)["Restarts"] == "1"
    assert re.search("rank [01] is late: step 1, phase score", log.read_text())  # the end of a rank's log
    same_weights(run, undisturbed[0])


@pytest.mark.slow
def test_an_array_job_trains_a_run_for_each_seed(bed, config, tmp_path):
    options = ("--nodes", 1, "--array", "3,5", "--config", config, "train.max_steps=1", f"run.dir={tmp_path / 'run'}")
    job, log = submit(bed, *options)
    until(lambda: bed.run("squeue", "--noheader").stdout == "", 240)
    for seed in (3, 5):
        run = tmp_path / f"run-seed{seed}"
        assert (run / "DONE").is_file(), bed.logs()
        assert yaml.safe_load((run / "config.yaml").read_text())["run"]["seed"] == seed
        assert "finished" in log.with_name(f"run-{job}_{seed}.out").read_text()


@pytest.mark.slow
def test_an_evaluation_on_two_nodes(bed, config, undisturbed, tmp_path):
    run, out = undisturbed[0], tmp_path / "evaluation"
    data = "data.eval={source: charts, count: 4, split: test}"
    job, log = submit(
        bed,
        "--nodes",
        2,
        "--evaluate",
        "--out",
        out,
        "--config",
        config,
        f"run.dir={run}",
        "evaluate.direct=false",
        data,
    )
    finish(bed, job, log)
    assert (out / "summary.json").is_file() and len((out / "items.jsonl").read_text().splitlines()) == 4
    assert f"finished: {out}/summary.json" in log.read_text() and "accuracy" in log.read_text()


def test_a_job_that_cannot_start_fails_once_with_what_to_mend(bed, config, tmp_path):
    options = (
        "data.train={source: jsonl, path: " + str(tmp_path / "missing.jsonl") + "}",
        f"run.dir={tmp_path / 'run'}",
    )
    job, log = submit(bed, "--nodes", 2, "--config", config, *options)
    assert finish(bed, job, log, "FAILED")["Restarts"] == "0"
    told = log.read_text()
    assert "missing.jsonl" in told and "copy or mount the data" in told
    assert not list((tmp_path / "run" / "logs" / f"{job}-0").iterdir()), "training was started"


def test_a_mistake_in_the_configuration_is_said_before_it_is_queued(bed, config):
    done = bed.run(
        sys.executable,
        "launchers/slurm/submit.py",
        "--nodes",
        1,
        "--config",
        config,
        "optim.lrr=1",
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2 and "lrr" in done.stderr
    assert bed.run("squeue", "--noheader").stdout == ""


@pytest.mark.slow
def test_a_node_that_goes_down_costs_no_more_than_the_last_steps(config, undisturbed, tmp_path):
    """SLURM puts the job back once it misses the node, and starts it again when there are two nodes."""
    run = tmp_path / "run"
    with Bed(tmp_path / "bed", node_timeout=15) as bed:
        job, log = submit(bed, "--nodes", 2, "--config", config, f"run.dir={run}", FIRST_START_SLEEPS=3)
        until(lambda: (run / "checkpoints" / "step-00000002").exists(), told=str(log))
        bed.kill_node("node2")
        bed.wait(job, "PENDING")
        bed.start_node("node2")
        assert int(finish(bed, job, log)["Restarts"]) >= 1
    same_weights(run, undisturbed[0])


def probe(bed: Bed, folder: Path, *options: str, after: str = "") -> str:
    """A job that starts tests/programs/probe.py as the batch scripts start a launcher, and then runs `after`."""
    script = folder / "probe.sbatch"
    body = f"source launchers/slurm/common.sh\nRANK_LOGS='' on_all_nodes {PROBE} {folder}\nsay code $?\n{after}\n"
    script.write_text(f"#!/usr/bin/env bash\n{body}")
    command = (
        "sbatch",
        "--parsable",
        "--ntasks-per-node=1",
        "--open-mode=append",
        f"--output={folder}/log",
        *options,
        script,
    )
    return bed.run(*command, cwd=ROOT, PATH=f"{Path(sys.executable).parent}:{bed.env['PATH']}").stdout.strip()


def test_ranks_of_two_nodes_with_two_gpus_each(bed, tmp_path):
    job = probe(bed, tmp_path, "--nodes=2", "--gpus-per-node=2", "--cpus-per-task=4")
    until(lambda: len(list(tmp_path.glob("rank*.json"))) == 4)
    (tmp_path / "stop").touch()
    finish(bed, job, tmp_path / "log")
    ranks = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(4)]
    assert [(r["RANK"], r["LOCAL_RANK"], r["SLURMD_NODENAME"]) for r in ranks] == [
        ("0", "0", "node1"),
        ("1", "1", "node1"),
        ("2", "0", "node2"),
        ("3", "1", "node2"),
    ]
    for r in ranks:
        assert (r["WORLD_SIZE"], r["MASTER_ADDR"], r["MASTER_PORT"]) == ("4", "127.0.0.1", ranks[0]["MASTER_PORT"])
        assert r["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1") and r["CROSS_RANK"] == r["SLURM_NODEID"]


def test_a_warning_reaches_every_rank_and_spares_the_launchers(bed, tmp_path):
    job = probe(bed, tmp_path, "--nodes=2", "--cpus-per-task=4")
    until(lambda: len(list(tmp_path.glob("rank*.json"))) == 2)
    bed.run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: len(list(tmp_path.glob("warned*"))) == 2, told="both ranks warned")
    finish(bed, job, tmp_path / "log")  # the probe ends by itself, a second after the warning
    told = (tmp_path / "log").read_text()
    assert "warned" in told and "code 0" in told


def test_cancelled_is_cancelled(bed, tmp_path):
    """What ends because somebody cancelled it must not come back, whatever the batch script would do next."""
    job = probe(bed, tmp_path, "--nodes=2", "--cpus-per-task=4", after="requeue after the probe")
    until(lambda: len(list(tmp_path.glob("rank*.json"))) == 2)
    bed.run("scancel", job)
    assert finish(bed, job, tmp_path / "log", "CANCELLED")["Restarts"] == "0"
    until(lambda: bed.run("squeue", "--noheader").stdout == "", 30)
    assert bed.job(job)["JobState"] == "CANCELLED" and "back into the queue" not in (tmp_path / "log").read_text()


def test_what_ended_goes_back_into_the_queue(bed, tmp_path):
    job = probe(bed, tmp_path, "--nodes=2", after="((${SLURM_RESTART_COUNT:-0})) || requeue once")
    (tmp_path / "stop").touch()
    assert finish(bed, job, tmp_path / "log")["Restarts"] == "1"
    assert "back into the queue: once" in (tmp_path / "log").read_text()


def test_nothing_is_left_of_a_cluster_that_breaks(tmp_path):
    with pytest.raises(ZeroDivisionError), Bed(tmp_path / "bed") as bed:
        folder = tmp_path / "job"
        folder.mkdir()
        probe(bed, folder, "--nodes=2", "--cpus-per-task=4")
        until(lambda: len(list(folder.glob("rank*.json"))) == 2)
        pids = [json.loads(path.read_text())["pid"] for path in folder.glob("rank*.json")]
        raise ZeroDivisionError
    until(lambda: not any(slurm_bed.alive(pid) for pid in pids), 10, "ranks ended")
    assert not slurm_bed.step_daemons(tmp_path / "bed")
    shutil.rmtree(tmp_path)
