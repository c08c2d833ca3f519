"""What a run survives: signals at any moment, another number of ranks, a damaged checkpoint, a launcher that dies."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dyme.batching.objective import TrainSequence
from dyme.batching.plan import Plan, PlannedGroup
from dyme.checkpoint import store
from dyme.checkpoint.manifest import files_in, measure, write_manifest
from dyme.engine.bad_steps import KEPT, write_bad_step
from dyme.engine.update import TrainBatch
from dyme.sampler import step_batch
from tests.helpers.broken_files import flip
from tests.helpers.launching import environment, run_on_ranks
from tests.helpers.runs import lines, same, same_weights, write_config

STEPS = 5
TOLERANCE = 1e-5
"""Largest difference of a final weight between numbers of ranks; lr is 1e-3."""


class Runs:
    """Runs of one configuration in a folder, several of them in one launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = write_config(folder, train__max_steps=STEPS, run__save_every=2, run__eval_every=2)
        (folder / "own.py").write_text(
            "def letters(completions, **c):\n    return [len(set(t)) / 9 for t in completions]\n"
        )

    def go(self, ranks: int, *jobs: tuple[str, list[str], dict]) -> str:
        listed = [
            {"config": str(self.config), "overrides": [f"run.dir={self.folder / name}", *overrides], **stop}
            for name, overrides, stop in jobs
        ]
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(listed))
        return run_on_ranks(ranks, "stopped", path)

    def copy(self, source: str, *names: str) -> None:
        for name in names:
            shutil.copytree(self.folder / source, self.folder / name)

    def zero(self, stage: int) -> list[str]:
        path = self.folder / f"zero{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        return [f"deepspeed={path}"]


def training(run: Path) -> list[dict]:
    return [line for line in lines(run) if not line.get("eval")]


PHASES = ("rollout", "update", "checkpoint", "evaluate")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Runs:
    """Undisturbed, and asked to leave: between two steps, and inside every kind of phase in step 4, after which an
    evaluation and a checkpoint are due. The last rank alone gets the signal."""
    runs = Runs(tmp_path_factory.mktemp("stopped"))
    jobs = [("between", [], {"stop_after": 3})]
    jobs += [(phase, [], {"stop_after": 4, "stop_in": phase}) for phase in PHASES]
    runs.go(2, ("whole", [], {}), *jobs)
    return runs


@pytest.fixture(scope="module")
def resumed(stopped) -> Runs:
    """All of them started again on two ranks; and one whose newest checkpoint is damaged, and one that goes through
    the universal checkpoint though the number of ranks is the same."""
    stopped.copy("between", "one_rank", "damaged", "universal", "hopeless")
    flip(newest(stopped, "damaged") / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    for path in (stopped.folder / "hopeless" / "checkpoints").glob("step-*"):
        flip(path / "state.json")
    pretend_other_world(newest(stopped, "universal"))
    again = [(name, [], {}) for name in ("between", *PHASES, "damaged", "universal", "hopeless")]
    (stopped.folder / "said.txt").write_text(stopped.go(2, *again))
    return stopped


def newest(runs: Runs, name: str) -> Path:
    folder = runs.folder / name / "checkpoints"
    return store.checkpoint_dir(folder, store.steps(folder)[-1])


def pretend_other_world(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "world_size": 3}))
    write_manifest(path, measure(path, files_in(path)), {"step": state["step"]})


@pytest.mark.dist
def test_whoever_is_asked_leaves_after_the_step_with_a_checkpoint(stopped):
    """And without DONE; step 4 is logged, unless the signal came while it was already over."""
    for name, step in (("between", 3), ("rollout", 4), ("update", 4), ("evaluate", 4), ("checkpoint", 5)):
        run = stopped.folder / name
        assert not (run / "DONE").exists(), name
        assert json.loads((run / "PREEMPTED").read_text())["step"] == step, name
        assert [line["step"] for line in training(run)] == list(range(1, step + 1)), name
        assert store.steps(run / "checkpoints")[-1] == step, name
    evaluated = [line["step"] for line in lines(stopped.folder / "evaluate") if line.get("eval")]
    assert evaluated == [0, 2]  # the one in which the signal came is given up


@pytest.mark.dist
@pytest.mark.parametrize("name", ["between", *PHASES])
def test_a_run_that_was_asked_to_leave_ends_as_if_it_had_not(resumed, name):
    run, whole = resumed.folder / name, resumed.folder / "whole"
    assert (run / "DONE").exists() and not (run / "PREEMPTED").exists()
    same(lines(whole), lines(run))
    same_weights(whole, run)
    assert (whole / "samples.jsonl").read_text() == (run / "samples.jsonl").read_text()


@pytest.mark.dist
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(resumed):
    run, whole = resumed.folder / "damaged", resumed.folder / "whole"
    same(lines(whole), lines(run))
    same_weights(whole, run)
    assert not list((run / "checkpoints").glob("damaged-*"))  # gone with the next checkpoint


@pytest.mark.dist
def test_a_run_without_a_whole_checkpoint_refuses_to_begin_anew(resumed):
    run = resumed.folder / "hopeless"
    assert not (run / "DONE").exists() and (run / "PREEMPTED").exists()
    assert [line["step"] for line in training(run)] == [1, 2, 3]  # untouched
    assert store.steps(run / "checkpoints") == [2, 3]


@pytest.mark.dist
def test_the_universal_checkpoint_itself_changes_nothing(resumed):
    """Bit for bit: every group keeps its weight decay, every part of the optimizer its own step."""
    run, whole = resumed.folder / "universal", resumed.folder / "whole"
    same(lines(whole), lines(run))
    same_weights(whole, run)
    assert not list((run / "checkpoints").glob(".partial*"))


@pytest.mark.dist
def test_two_ranks_then_one(resumed):
    """The loss goes on where it was: same records, same rows, other ranks. Groups spanned the two ranks."""
    resumed.go(1, ("one_rank", [], {}))
    run, whole = resumed.folder / "one_rank", resumed.folder / "whole"
    same(lines(whole), lines(run), rel=1e-4)
    same_weights(whole, run, atol=TOLERANCE)
    assert json.loads((newest(resumed, "one_rank") / "manifest.json").read_text())["world_size"] == 1


@pytest.mark.dist
@pytest.mark.slow
def test_every_stage_on_more_and_fewer_ranks(tmp_path):
    runs = Runs(tmp_path)
    own = f"reward.user=[{{function: '{tmp_path / 'own.py'}:letters'}}]"
    kinds = {f"zero{stage}": runs.zero(stage) for stage in (1, 2)}
    kinds |= {"zero3": [], "lora": ["model.lora={r: 4}"], "lora2": ["model.lora={r: 4}", *runs.zero(2)]}
    kinds["grpo"] = ["method=grpo", own]
    runs.go(
        2, *((f"{k}-whole", o, {}) for k, o in kinds.items()), *((k, o, {"stop_after": 3}) for k, o in kinds.items())
    )
    for kind in kinds:
        runs.copy(kind, f"{kind}-1", f"{kind}-4")
    runs.go(1, *((f"{k}-1", o, {}) for k, o in kinds.items()), ("single", [], {"stop_after": 3}))
    runs.go(4, *((f"{k}-4", o, {}) for k, o in kinds.items()))
    runs.go(2, ("single", [], {}))
    pairs = [(f"{kind}-whole", f"{kind}-{ranks}") for kind in kinds for ranks in (1, 4)]
    for undisturbed, run in [*pairs, ("zero3-whole", "single")]:
        same(lines(tmp_path / undisturbed), lines(tmp_path / run), rel=1e-3)
        same_weights(tmp_path / undisturbed, tmp_path / run, atol=TOLERANCE)
    assert any(line["mode/explore_ratio"] and line["grad_norm"] for line in training(tmp_path / "grpo-1")[3:])


def test_no_record_twice_and_none_left_out_when_the_ranks_change():
    """Which records a step takes is a function of the step alone."""
    seen: list[int] = []
    for step, world in enumerate([2, 2, 2, 1, 1, 4, 4, 3]):
        rows = step_batch(step, 24, 3, 4, world, 7)
        held = [rows.group_of(row) for rank in range(world) for row in rows.rows(rank)]
        assert Counter(held) == dict.fromkeys(range(3), 4)
        seen += rows.records
    assert sorted(seen) == list(range(24))


def test_what_a_bad_step_trained_is_written_and_bounded(tmp_path):
    rows = (TrainSequence(0, 1, math.nan, 1.0), TrainSequence(1, -1, 1.0, 1.0))
    micro_batches = (((PlannedGroup(0, (0,), 5),),), ((PlannedGroup(1, (1,), 4),),))
    work = TrainBatch(Plan(micro_batches, (frozenset(),)), rows, [0.5, 0.25], [[7, 8], [9]], lambda group: None)
    for step in range(1, KEPT + 3):
        path = write_bad_step(tmp_path, step, [1], ["a", "b"], work)
        assert (path is not None) == (step <= KEPT)
    found = json.loads((tmp_path / "bad_steps" / "step-00000001.json").read_text())
    assert found["step"] == 1 and found["ranks"] == [1] and found["records"] == ["a", "b"]
    explored, memorized = found["rows"]
    assert explored == {
        "record": "a", "mode": "explore", "row": 1, "rank": 0, "advantage": None, "weight": 0.5, "token_ids": [7, 8]
    }  # fmt: skip
    assert (memorized["record"], memorized["mode"], memorized["rank"]) == ("b", "memorize", 1)
    assert len(list((tmp_path / "bad_steps").iterdir())) == KEPT


def child(program: str, **more: str) -> subprocess.Popen[str]:
    env = environment() | more
    process = subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


WAITS = """
import threading, time
from dyme.fault_tolerance.preemption import Preemption
preemption = Preemption()
print("ready", flush=True)
while not preemption.asked:
    time.sleep(0.01)
print(preemption.asked, flush=True)
lock = threading.Lock(); lock.acquire(); lock.acquire()  # never returns to the interpreter, as a collective may
"""


def test_a_second_signal_ends_the_process_at_once():
    process = child(WAITS)
    for _ in range(2):  # one warning that arrives twice
        process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    time.sleep(1.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_are_signals_as_well(number):
    process = child(WAITS)
    process.send_signal(number)
    assert process.stdout.readline() == f"{number.name}\n"
    time.sleep(1.3)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(10) == 128 + number


def test_nohup_stays_in_effect():
    """As does the SIGINT that a shell ignores for its background jobs."""
    ignoring = "import signal\nfor n in (signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\n"
    process = child(ignoring + WAITS)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.kill()


def test_ctrl_c_while_a_run_opens_is_one_line(tmp_path):
    program = "import time\nfrom dyme.fault_tolerance.launch import run_and_exit\n"
    program += "def main():\n    print('ready', flush=True)\n    time.sleep(60)\nrun_and_exit(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert told == "SIGINT: ended before training began\n" and process.returncode == 128 + signal.SIGINT


INHERITS = """
import signal, subprocess, sys
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
rank = "from dyme.fault_tolerance.preemption import die_with_parent; die_with_parent(); print('ready', flush=True)"
rank += "; import time; time.sleep(9)"
process = subprocess.Popen([sys.executable, "-c", rank], stdout=subprocess.PIPE, text=True)
process.stdout.readline()
process.send_signal(signal.SIGUSR1)
print("ready", process.wait(), flush=True)
"""


def test_a_warning_that_comes_early_is_kept():
    program = "from dyme.fault_tolerance.preemption import Preemption, keep_warning; import time; keep_warning()\n"
    program += "print('ready', flush=True); time.sleep(1); asked = Preemption(); time.sleep(1); print(asked.asked)"
    process = child(program)
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=30)[0] == "SIGUSR1\n" and process.returncode == 0


def test_a_rank_does_not_ignore_the_warning_as_its_launcher_does():
    """Without a handler of its own it ends: an evaluation keeps the items that it has."""
    env = environment() | {"LOCAL_RANK": "0"}
    done = subprocess.run([sys.executable, "-c", INHERITS], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"ready {-signal.SIGUSR1}\n", done.stderr


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "from dyme.fault_tolerance.preemption import die_with_parent; "
                          "die_with_parent(); "
                          "print('ready', flush=True); import time; time.sleep(100)"])
time.sleep(0.2)
print(child.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize(("launched", "survives"), [({"LOCAL_RANK": "0"}, False), ({}, True)])
def test_a_rank_dies_with_its_launcher(launched, survives):
    # unbuffered, print writes a line and its end apart, and two processes write here
    env = {k: v for k, v in environment().items() if k not in ("LOCAL_RANK", "PYTHONUNBUFFERED")} | launched
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=env, stdout=subprocess.PIPE, text=True)
    said = [parent.stdout.readline().strip() for _ in range(2)]
    pid = int(next(line for line in said if line != "ready"))
    parent.kill()
    parent.wait()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until and not survives:
        time.sleep(0.05)
    time.sleep(0.3)
    assert alive(pid) == survives
    if survives:
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


CONVERTS = """
import os, subprocess, sys, time
environment = {**os.environ, "DYME_PARENT": str(os.getpid())}
child = subprocess.Popen([sys.executable, "-m", "dyme.checkpoint.convert"], env=environment)
print(child.pid, flush=True)
time.sleep(100)
"""
SLOW_CONVERTER = """
import os, sys, time
worker = os.fork()
if worker:
    open(sys.argv[0] + ".pids", "w").write(f"{os.getpid()} {worker}\\n")
time.sleep(60)
"""


def test_the_converter_and_its_workers_end_with_the_run(tmp_path):
    """A run that is killed while it converts a checkpoint leaves no process behind that goes on to write."""
    package = tmp_path / "deepspeed" / "checkpoint"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "ds_to_universal.py").write_text(SLOW_CONVERTER)
    env = environment()
    env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
    parent = subprocess.Popen([sys.executable, "-c", CONVERTS], env=env, stdout=subprocess.PIPE, text=True)
    pids = package / "ds_to_universal.py.pids"
    until = time.monotonic() + 60
    while not (pids.exists() and pids.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.05)
    started = [int(pid) for pid in pids.read_text().split()]
    assert all(alive(pid) for pid in started)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 5
    while any(alive(pid) for pid in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in started)
