"""benchmarks.gpu_suite: rehearsed on the CPU, killed and continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import triton
from packaging.version import Version

from benchmarks import gpu_suite
from benchmarks.gpu import training
from benchmarks.gpu.options import candidates, forced
from benchmarks.gpu.progress import LOST, MORE, Options, Skip, run_steps
from benchmarks.gpu_suite import PARTS, Part, report, suite
from benchmarks.kernels.results import load
from dyme_kernels import triton_rows
from tests.helpers.launching import ROOT

OLD_INTERPRETER = Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4")
interpreted = pytest.mark.skipif(OLD_INTERPRETER, reason="the interpreter of Triton 3.6 needs numpy below 2.4")

SLOW_PART = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
steps = json.loads((out / "slow.json").read_text())["steps"] if (out / "slow.json").exists() else {}
for name in ("first", "second"):
    if name in steps:
        continue
    if name == "second" and not (out / "go").exists():
        time.sleep(600)
    (out / "count").open("a").write(name)
    steps[name] = {"status": "passed", "detail": "went on"}
    (out / "slow.json").write_text(json.dumps({"done": name == "second", "steps": steps}))
"""


def rehearse(out: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), "--rehearse", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    log = (out / "log.txt").read_text()
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{log[-3000:]}"
    return done.stdout


@interpreted
def test_rehearsal_of_checks_and_options(tmp_path):
    said = rehearse(tmp_path, "--parts", "checks", "options")
    checks, options = load(tmp_path / "checks.json"), load(tmp_path / "options.json")
    assert checks["done"] and options["done"] and checks["hardware"]["device"] == "cpu"
    status = {name: step["status"] for name, step in checks["steps"].items()}
    assert set(status.values()) == {"passed", "skipped"}, checks["steps"]
    assert {"backends bfloat16", "large rows", "deterministic", "groups"} <= {
        n for n, s in status.items() if s == "passed"
    }
    (tests,) = [step for name, step in checks["steps"].items() if name.startswith("pytest ")]
    assert "no test ran" in tests["detail"]
    assert "compute-sanitizer" in checks["steps"]["racecheck"]["detail"] or "needs a GPU" in str(checks["steps"])
    rows = options["steps"]["final"]["rows"]
    assert {"default"} < {row["launch"] for row in rows} and all(row["median_ms"] > 0 for row in rows)
    assert "part checks | done" in said and "all done" in said.splitlines()[-1]
    assert "best BLOCK/num_warps/programs per SM" in said
    before = (tmp_path / "checks.json").read_text()
    assert suite(tmp_path, [p for p in PARTS if p.name in ("checks", "options")], 1, rehearse=True)
    assert (tmp_path / "checks.json").read_text() == before
    with pytest.raises(SystemExit, match="choose another --out"):
        suite(tmp_path, list(PARTS), 1, rehearse=False)


@pytest.mark.slow
@interpreted
def test_rehearsal_of_everything(tmp_path):
    said = rehearse(tmp_path)
    assert "training | configs/quickstart_base.yaml | passed | 2 steps" in said
    assert all(f"part {part.name} | done" in said for part in PARTS)
    assert len(list(tmp_path.iterdir())) == 10  # few files, all in one folder


def test_a_killed_part_goes_on_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "slow_part.py").write_text(SLOW_PART)
    out = tmp_path / "out"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(gpu_suite, "LEAST_S", 0)
    monkeypatch.setattr(gpu_suite, "GRACE_S", 0)
    part = Part("slow", "slow_part", 4 / 60)
    begin = time.monotonic()
    assert not suite(out, [part], 1, rehearse=True)
    assert time.monotonic() - begin < 60  # its process group is gone, not waited for
    assert load(out / "suite.json")["parts"]["slow"]["status"] == "killed at its time limit"
    assert list(load(out / "slow.json")["steps"]) == ["first"]
    (out / "go").touch()
    assert suite(out, [part], 1, rehearse=True)
    assert (out / "count").read_text() == "firstsecond"
    assert "slow | second | passed | went on" in report(out, [part])
    assert "part slow | done" in report(out, [part])


def test_no_time_left_begins_nothing(tmp_path):
    assert not suite(tmp_path, list(PARTS), 0.1, rehearse=True)
    parts = load(tmp_path / "suite.json")["parts"]
    assert {state["status"] for state in parts.values()} == {"no time left"} and len(parts) == len(PARTS)


def options_in(out: Path, minutes: float = 1.0) -> Options:
    return Options(out, minutes, True)


def test_a_step_that_kills_the_process_twice_is_failed(tmp_path):
    path, options = tmp_path / "x.json", options_in(tmp_path)

    def dies():
        raise KeyboardInterrupt  # as a signal would end it

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_steps(path, options, {"dies": dies, "next": dict})
    assert run_steps(path, options, {"dies": dies, "next": dict}) == 0
    steps = json.loads(path.read_text())["steps"]
    assert steps["dies"]["status"] == "failed" and "the process died" in steps["dies"]["detail"]
    assert steps["next"]["status"] == "passed"


def test_failed_skipped_and_lost(tmp_path):
    def fails():
        raise AssertionError("2 is not 1")

    def skips():
        raise Skip("no tool")

    def loses():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    path, options = tmp_path / "x.json", options_in(tmp_path)
    steps = {"fails": fails, "skips": skips, "loses": loses, "last": dict}
    assert run_steps(path, options, steps) == LOST and not load(path)["done"]
    assert run_steps(path, options_in(tmp_path, -1.0), steps) == MORE
    assert run_steps(path, options, steps) == 0 and load(path)["done"]
    found = {name: (step["status"], step.get("detail")) for name, step in load(path)["steps"].items()}
    assert found["fails"] == ("failed", "AssertionError: 2 is not 1") and found["skips"] == ("skipped", "no tool")
    assert found["loses"][0] == "failed" and found["last"] == ("passed", None)


def test_training_says_what_it_misses(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "NEEDED", ("torch", "no_such_package"))
    assert training.main(["--out", str(tmp_path), "--rehearse"]) == 0
    step = load(tmp_path / "training.json")["steps"]["configs/quickstart_base.yaml"]
    assert (step["status"], step["detail"]) == ("skipped", "not installed: no_such_package")


def test_without_a_gpu_it_says_how_to_rehearse(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--rehearse"):
        training.main(["--out", str(tmp_path)])


def test_launch_options_that_are_tried_fit_a_multiprocessor():
    tried = [launch for block in (2048, 4096, 8192, 16384, 32768) for launch in candidates(block)]
    assert len(tried) == len(set(tried)) > 20
    default = triton_rows.compile_options(151936)
    names = [(launch.block, launch.warps, launch.per_sm) for launch in tried]
    assert (default["BLOCK"], default["num_warps"], 1) in names
    for launch in tried:
        assert 32 * launch.warps * launch.per_sm <= 2048
        assert launch.registers * 32 * launch.warps * launch.per_sm <= triton_rows.REGISTERS
    before = triton_rows.compile_options
    with pytest.raises(ZeroDivisionError), forced(tried[0]):
        assert triton_rows.compile_options(151936)["BLOCK"] == tried[0].block
        raise ZeroDivisionError
    assert triton_rows.compile_options is before
