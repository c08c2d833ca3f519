"""Preflight: a healthy report passes, each check sees the fault it is there for, and two ranks really meet."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from dyme.config import load_config
from dyme.preflight import meet
from dyme.preflight.checks import Bandwidth, Meeting, check
from dyme.preflight.facts import GIB, TOKENS, Facts, Gpu, disk_needed, gather_facts
from tests.helpers.launching import ROOT, environment
from tests.helpers.runs import write_config

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "deepspeed": "0.19.8", "dyme": "0.2"}
H200 = Gpu("NVIDIA H200", 141 * GIB, 140 * GIB)


def facts(rank: int, **changes) -> Facts:
    """Ranks 0 and 1 on node a, 2 and 3 on node b."""
    leader = rank % 2 == 0
    contents = {"settings": "1", "data.train": "2", "model": "3"} if leader else {}
    plain = Facts(rank, rank % 2, "ab"[rank // 2], leader, VERSIONS, H200, disk_free=500 * GIB, contents=contents)
    return replace(plain, **changes)


def healthy() -> Meeting:
    bandwidth = Bandwidth("nccl", True, 40e9, 30e-6)
    return Meeting(4, [facts(i) for i in range(4)], {"a": [], "b": []}, {"b": 0.002}, bandwidth, 100 * GIB, 50)


def with_rank(rank: int, **changes) -> Meeting:
    return replace(healthy(), reports=[facts(i, **(changes if i == rank else {})) for i in range(4)])


def test_all_well():
    findings = check(healthy())
    assert {f.status for f in findings} == {"ok"} and not any(f.mend for f in findings)
    assert len({f.check for f in findings}) == len(findings) == 12


FAULTS = {
    "versions": (with_rank(2, versions={**VERSIONS, "torch": "2.11.0"}), "fail", "b: torch 2.11.0 (others 2.13.0)"),
    "versions, missing": (
        replace(healthy(), reports=[facts(i, versions={**VERSIONS, "triton": "missing"}) for i in range(4)]),
        "fail",
        "not installed: triton",
    ),
    "GPUs": (with_rank(3, gpu=None), "fail", "no GPU for b GPU 1"),
    "GPUs, kinds": (with_rank(3, gpu=replace(H200, name="Tesla T4")), "warn", "b GPU 1: Tesla T4"),
    "GPUs, count": (replace(healthy(), world_size=3, reports=[facts(i) for i in range(3)]), "warn", "a: 2, b: 1"),
    "GPU memory": (with_rank(1, gpu=replace(H200, free=100 * GIB)), "fail", "a GPU 1: 41 GiB held"),
    "run folder": (with_rank(2, writable="Permission denied: runs/x"), "fail", "b: Permission denied"),
    "run folder, not shared": (replace(healthy(), unseen={"a": [], "b": ["a"]}), "fail", "b does not see what a wrote"),
    "disk": (with_rank(2, disk_free=GIB // 2), "fail", "b: 0.5 GiB free"),
    "disk, tight": (with_rank(0, disk_free=20 * GIB), "warn", "a: 20.0 GiB free, 100.0 GiB needed"),
    "checkpoints": (replace(healthy(), save_every=0), "warn", "none before the end"),
    "data": (with_rank(2, data="x.jsonl: no such file"), "fail", "b: x.jsonl"),
    "model": (with_rank(2, model="no such folder: m"), "fail", "b: no such folder"),
    "same files": (with_rank(2, contents={"settings": "1", "data.train": "9", "model": "3"}), "fail", "b: data.train"),
    "clocks": (replace(healthy(), clocks={"b": -42.0}), "warn", "b: -42.0 s"),
    "all-reduce": (replace(healthy(), bandwidth=Bandwidth("nccl", error="nccl: timed out")), "fail", "timed out"),
    "all-reduce, wrong": (replace(healthy(), bandwidth=Bandwidth("nccl", False, 1e9, 1e-3)), "fail", "wrong sum"),
    "all-reduce, slow": (replace(healthy(), bandwidth=Bandwidth("nccl", True, 1e9, 1e-3)), "warn", "1.00 GB/s"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_check_sees_its_fault_and_no_other_does(name):
    meeting, status, told = FAULTS[name]
    wrong = [f for f in check(meeting) if f.status != "ok"]
    assert [f.check for f in wrong] == [name.partition(",")[0]]
    assert wrong[0].status == status and told in wrong[0].found and wrong[0].mend


def test_a_rank_that_does_not_come_is_named():
    [finding] = check(Meeting(4, [facts(0), facts(1), facts(2)]))
    assert finding.status == "fail" and "1 rank did not report: 3; seen: a, b" in finding.found


def test_reports_survive_the_way():
    assert Facts.from_json(facts(0).to_json()) == facts(0)
    assert Facts.from_json(facts(1, gpu=None).to_json()).gpu is None


def test_what_a_node_finds(tmp_path):
    cfg = load_config(write_config(tmp_path), [f"run.dir={tmp_path / 'run'}"])
    mine = gather_facts(cfg, 0, 0)
    assert not mine.writable and not mine.data and not mine.model and mine.disk_free > 0
    assert Path(mine.token_file).read_text() and mine.contents.keys() == {
        "settings",
        "code",
        "data.train",
        "data.eval",
        "model",
    }
    assert meet.unread(facts(2), [mine]) == []
    assert not gather_facts(cfg, 1, 1).leader
    (tmp_path / "file").touch()
    bad = load_config(
        write_config(tmp_path, data__train={"source": "jsonl", "path": str(tmp_path / "no.jsonl")}, data__eval=None),
        [f"run.dir={tmp_path / 'file'}", f"model={{path: {tmp_path}/none}}"],
    )
    mine = gather_facts(bad, 0, 0)
    assert str(tmp_path / "file") in mine.writable and "no.jsonl" in mine.data and "none" in mine.model


def test_a_file_that_another_node_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(meet, "SHARED_S", 0)
    assert meet.unread(facts(2), [facts(0, token_file=str(tmp_path / "not-here"))]) == ["a"]


def test_disk_counts_checkpoints_of_the_weights(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(2 * GIB)  # 1G parameters in bf16; the file has no content
    cfg = load_config(write_config(tmp_path, model={"path": str(model), "dtype": "bf16"}), ["run.keep_last=2"])
    assert disk_needed(cfg) == 4 * 14 * GIB + 2 * GIB
    assert disk_needed(load_config(write_config(tmp_path))) == GIB


def test_clocks_are_compared_through_the_store(monkeypatch):
    store = dist.HashStore()
    real = time.time
    store.set_timeout(timedelta(seconds=10))
    import threading

    ahead = threading.local()
    monkeypatch.setattr(meet.time, "time", lambda: real() + getattr(ahead, "s", 0.0))
    answer = threading.Thread(target=meet.answer_clock, args=(store, 1))
    answer.start()
    ahead.s = 5.0
    assert meet.clock_skew(store, 1) == pytest.approx(5.0, abs=0.5)
    answer.join()


def test_who_does_not_write_is_left_out():
    store = dist.HashStore()
    store.set("facts/1", "x")
    assert meet.collect(store, "facts", [0, 1], 0.2) == {1: b"x"}


def two_ranks(*arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus=2", "--master_port=28123"]
    command = [*launcher, "--module", "dyme.preflight", *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, cwd=ROOT)


@pytest.mark.dist
def test_two_ranks_meet(tmp_path):
    run = tmp_path / "run"
    done = two_ranks("--config", write_config(tmp_path), f"run.dir={run}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("preflight of") == 1 and "2 ranks on 1 node" in done.stdout
    assert "gloo:" in done.stdout and "fail" not in done.stdout
    assert run.is_dir() and not (run / TOKENS).exists()


@pytest.mark.dist
def test_a_fault_fails_all_ranks(tmp_path):
    config = write_config(tmp_path, data__train={"source": "jsonl", "path": str(tmp_path / "no.jsonl")})
    done = two_ranks("--config", config, f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 1 and "fail" in done.stdout and "no.jsonl" in done.stdout
    assert "Traceback" not in done.stderr
