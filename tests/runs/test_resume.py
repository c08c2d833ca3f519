"""Resume to the bit, a kill during a checkpoint, and checkpoints that cannot be used, through the real launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launching import ROOT, environment, launch
from tests.helpers.runs import lines, same, same_weights, write_config

pytestmark = pytest.mark.dist


def test_resume_is_exact_to_the_bit(tmp_path):
    """2N steps = N steps, kill, N steps; metrics written after the checkpoint are cut back. With a reference policy,
    which is not in the checkpoint, and two epochs per rollout."""
    config = write_config(
        tmp_path,
        selector={"name": "reward_threshold", "threshold": 0.02},
        rollout__max_new_tokens=16,
        objective={"beta": 0.1},
        train__max_steps=6,
        train__epochs_per_rollout=2,
        run__save_every=3,
        run__eval_every=2,
    )
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    launch("--config", config, f"run.dir={whole}")
    killed = run_killed(config, parted, after_step=5)
    assert killed != 0 and not (parted / "DONE").exists()
    assert max(line["step"] for line in lines(parted)) >= 4
    assert "resuming at step 3" in launch("--config", config, f"run.dir={parted}").stderr
    same(lines(whole), lines(parted))
    same_weights(whole, parted)
    kl = [line.get("policy/kl") for line in lines(whole)[5:]]
    assert any(value and value > 0 for value in kl)  # rows were explored after the resumed step, off the reference
    assert (whole / "samples.jsonl").read_text() == (parted / "samples.jsonl").read_text()


def run_killed(config: Path, run: Path, *, after_step: int = 0, during_save: int = 0) -> int:
    """A run in which rank 0 is killed with SIGKILL after a step, or in the middle of writing a step's checkpoint."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tests.programs.killed", str(config), str(run), str(after_step), str(during_save)]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, timeout=300).returncode


def test_kill_during_a_checkpoint_leaves_the_previous_one_usable(tmp_path):
    config = write_config(tmp_path, train__max_steps=4, run__save_every=2)
    run = tmp_path / "run"
    assert run_killed(config, run, during_save=4) != 0
    left = sorted(p.name for p in (run / "checkpoints").iterdir() if p.is_dir())
    assert left == [".partial-step-00000004", "step-00000002"]
    assert "resuming at step 2" in launch("--config", config, f"run.dir={run}").stderr
    assert (run / "DONE").exists()
    assert not list((run / "checkpoints").glob(".partial*"))


def test_other_stage_and_damaged_checkpoint_are_named(tmp_path):
    config = write_config(tmp_path, train__max_steps=2, run__export=False)
    run = tmp_path / "run"
    launch("--config", config, f"run.dir={run}")
    before = (run / "config.yaml").read_text()
    stage2 = tmp_path / "zero2.json"
    stage2.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    failed = launch("--config", config, f"run.dir={run}", "train.max_steps=3", f"deepspeed={stage2}", check=False)
    assert failed.returncode != 0 and "was written with ZeRO stage 3, this run has 2" in failed.stderr
    assert (run / "DONE").exists() and (run / "config.yaml").read_text() == before  # the finished run is untouched
    more = launch("--config", config, f"run.dir={run}", "train.max_steps=3", "optim.lr=0.002")
    assert "resuming at step 2" in more.stderr
    assert "settings changed since this run started: optim.lr, train.max_steps" in more.stderr
    assert len(lines(run)) == 6 and (run / "DONE").exists()
    (run / "checkpoints" / "step-00000003" / "state.json").write_text("{")
    more = launch("--config", config, f"run.dir={run}", "train.max_steps=4", "optim.lr=0.002")
    assert "step-00000003 is damaged: state.json has 1 bytes instead of" in more.stderr
    assert "resuming at step 2" in more.stderr
