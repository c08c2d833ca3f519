"""The watchdog: who is late, what is said, and that a job whose rank hangs ends in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from dyme.fault_tolerance.watchdog import HUNG, Beat, Watchdog, late_ranks, verdict
from tests.helpers.launching import ROOT, environment
from tests.helpers.runs import write_config


def beats(*each: tuple[int, bool]) -> list[Beat]:
    return [Beat(rank, collectives=n, inside=inside) for rank, (n, inside) in enumerate(each)]


@pytest.mark.parametrize(
    ("each", "late"),
    [
        ([(7, True), (6, False), (7, True)], [1]),  # one computes, the others wait for it
        ([(7, False), (7, True)], [0]),  # one is out of the collective, the other still in it
        ([(6, True), (7, True)], [0]),  # stuck on the way out of the collective before
        ([(7, True), (7, True)], []),  # all wait in the same one
        ([(3, False), (3, False), (9, True)], [0, 1]),
    ],
)
def test_the_late_rank_has_begun_the_fewest_collectives(each, late):
    assert [beat.rank for beat in late_ranks(beats(*each))] == late


def test_the_verdict_names_rank_phase_collective_and_records(tmp_path):
    ids = tuple(f"r{i}" for i in range(30))
    late = Beat(3, phase="score", step=12, last_collective="gather_rows", records=ids, since=time.time() - 61)
    said = verdict([late], 8, 60, tmp_path)
    assert "rank 3 is late: step 12, phase score, after gather_rows, for 61 s; records r0, r1" in said
    assert "r19 ..." in said and "r20" not in said
    assert "all 8 ranks wait in the same collective" in verdict([], 8, 60, tmp_path)


class Peers:
    """An engine whose collectives only note what the watchdog knew inside them."""

    def __init__(self) -> None:
        self.ds = self.rollout_copy = self
        self.seen: list[Beat] = []
        self.dog: Watchdog | None = None

    def all_reduce(self) -> None:
        self.seen.append(self.dog._beat)

    def step(self) -> None:
        self.all_reduce()
        self.seen.append(self.dog._beat)

    gather_rows = gather_tokens = broadcast = barrier = begin_refresh = forward = backward = all_reduce


def test_collectives_are_counted_and_nest(tmp_path):
    peers = Peers()
    peers.dog = dog = Watchdog(tmp_path, 0, 1, 10)
    dog.watch(peers)
    peers.step()
    inner, outer = peers.seen
    assert (inner.last_collective, inner.collectives, inner.inside) == ("all_reduce", 2, True)
    assert (outer.last_collective, outer.inside) == ("step", True)
    assert (dog._beat.last_collective, dog._beat.inside, dog._beat.collectives) == ("step", False, 2)


def test_no_progress_ends_the_process_and_progress_does_not(tmp_path, capsys):
    ended: list[int] = []
    dog = Watchdog(tmp_path, 0, 1, 0.4, end=ended.append)
    dog.start()
    for _ in range(10):
        dog.beat(phase="rollout")
        time.sleep(0.1)
    assert not ended
    dog.beat(phase="score", records=("a", "b"))
    for _ in range(80):
        if ended:
            break
        time.sleep(0.1)
    dog.stop()
    assert ended == [HUNG]
    assert "rank 0 is late: step 0, phase score" in capsys.readouterr().err
    assert "test_no_progress_ends" in (tmp_path / "watchdog" / "rank-0.stack").read_text()
    assert json.loads((tmp_path / "watchdog" / "hang.json").read_text())["late"][0]["records"] == ["a", "b"]


def wait_for(condition, seconds: float = 8) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_long_wait_leaves_its_stack_before_the_time_is_over(tmp_path, monkeypatch):
    """The others began to wait earlier and end the job first: the stack of the late rank must be there by then."""
    monkeypatch.setattr("dyme.fault_tolerance.watchdog._STACK_S", 0.2)
    ended: list[int] = []
    dog = Watchdog(tmp_path, 0, 1, 60, end=ended.append)
    dog.start()
    stack = tmp_path / "watchdog" / "rank-0.stack"
    wait_for(lambda: stack.exists() and "test_a_long_wait" in stack.read_text())
    dog.stop()
    assert not ended


def test_a_file_system_that_fails_for_a_moment_ends_neither_watch_nor_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dyme.fault_tolerance.watchdog._WAIT_S", 0.1)
    ended: list[int] = []
    dog = Watchdog(tmp_path, 0, 1, 1.0, end=ended.append)
    failed: list[bool] = []

    def stale() -> None:
        failed.append(True)
        raise OSError("Stale file handle")

    monkeypatch.setattr(dog, "_write", stale)
    dog.start()
    wait_for(lambda: len(failed) > 1)
    assert dog._thread.is_alive()
    wait_for(lambda: bool(ended))
    dog.stop()
    assert ended == [HUNG] and "rank 0 is late" in capsys.readouterr().err


def test_pytorch_waits_longer_than_the_watchdog():
    """In every group, those that DeepSpeed makes included: else the waiting ranks end before the late one is named."""
    program = (
        "import torch, torch.distributed as dist\n"
        "from dyme.engine.train_engine import init_distributed\n"
        "init_distributed(0, 7200)\n"
        "for group in (dist.group.WORLD, dist.new_group([0])):\n"
        "    print('limit', group._get_backend(torch.device('cpu')).options._timeout.total_seconds())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), cwd=ROOT, capture_output=True, text=True)
    limits = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("limit ")]
    assert len(limits) == 2 and min(limits) > 7200, done.stdout + done.stderr


def test_an_opening_that_hangs_is_named_by_its_part(tmp_path, capsys, monkeypatch):
    """Its limit is one of its own; the part counts, so that who waits further on is not late."""
    monkeypatch.setattr("dyme.fault_tolerance.watchdog._OPENING_S", 0.4)
    monkeypatch.setattr("dyme.fault_tolerance.watchdog._WAIT_S", 0.1)
    ended: list[int] = []
    (tmp_path / "watchdog").mkdir()
    further = Beat(0, phase="engine", collectives=3, since=time.time(), stuck=True)
    (tmp_path / "watchdog" / "rank-0.json").write_text(json.dumps(asdict(further)))
    dog = Watchdog(tmp_path, 1, 2, 0.1, end=ended.append)
    with dog.opening():
        dog.stage("records")
        time.sleep(0.2)
        dog.stage("model")
        assert not ended
        for _ in range(80):
            if ended:
                break
            time.sleep(0.1)
    assert ended == [HUNG] and dog.timeout_s == 0.1
    other = Watchdog(tmp_path, 0, 2, 0.1, end=ended.append)
    with other.opening():
        other.beat(phase="engine", collectives=3)
        for _ in range(80):
            if len(ended) > 1:
                break
            time.sleep(0.1)
    assert "rank 1 is late: step 0, phase model" in capsys.readouterr().err


def test_an_opening_that_fails_leaves_no_folder(tmp_path):
    folder = tmp_path / "run"
    dog = Watchdog(folder, 0, 1, 10)
    with pytest.raises(ValueError, match="bad row"), dog.opening():
        for _ in range(80):
            if (folder / "watchdog" / "rank-0.json").exists():
                break
            time.sleep(0.1)
        assert (folder / "watchdog" / "rank-0.json").exists()
        raise ValueError("bad row")
    assert not folder.exists()


@pytest.mark.dist
def test_a_rank_that_hangs_is_named_and_the_job_ends(tmp_path):
    """Rank 1 never comes back from a reward function; rank 0 waits for it in a collective."""
    own = tmp_path / "own.py"
    own.write_text(
        "import os, time\n\n\ndef sleeps(completions, step, **columns):\n"
        "    if step == 1 and os.environ['RANK'] == '1':\n        time.sleep(1000)\n"
        "    return [0.0] * len(completions)\n"
    )
    config = write_config(
        tmp_path,
        reward={"user": [{"function": f"{own}:sleeps", "timeout_s": 600}]},
        run__hang_timeout_s=6,
        train__max_steps=3,
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["launchers/train.py", "--config", str(config), f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    watch = tmp_path / "run" / "watchdog"
    assert done.returncode != 0, done.stderr[-3000:]
    assert (watch / "hang.json").exists(), done.stderr[-3000:]
    hang = json.loads((watch / "hang.json").read_text())
    assert [late["rank"] for late in hang["late"]] == [1], done.stderr[-3000:]
    late = hang["late"][0]
    assert late["phase"] == "score" and late["step"] == 2 and late["records"]
    assert f"rank 1 is late: step 2, phase score, after {late['last_collective']}" in done.stderr
    assert "in sleeps" in (watch / "rank-1.stack").read_text()  # the user's function, by name
    zero = json.loads((watch / "rank-0.json").read_text())
    noticed = os.path.getmtime(watch / "hang.json") - late["since"]
    assert zero["inside"] and zero["last_collective"] == "gather_rows" and noticed < 6 + 15
