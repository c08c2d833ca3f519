"""benchmarks.kernels: a whole tiny run, rows of what fails, the arithmetic of the floor, errors against the oracle."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy
import pytest
import torch
from packaging.version import Version

from benchmarks.kernels import memory, ours, peers
from benchmarks.kernels.__main__ import benchmark, main
from benchmarks.kernels.accuracy import over_torch, relative_errors
from benchmarks.kernels.case import TASKS, Case, live_mask, make_inputs
from benchmarks.kernels.churn import churn
from benchmarks.kernels.presets import PRESETS, full, tiny
from benchmarks.kernels.provider import Calls, Outcome, Provider, runs_anywhere
from benchmarks.kernels.results import finite, load, save
from benchmarks.kernels.roofline import Ceilings, floor_ms, work
from benchmarks.kernels.sweep import PROVIDERS, DeviceLost, Row, measure_case, sweep
from benchmarks.kernels.table import plot, summary, table
from benchmarks.kernels.timing import Clock, Effort, interleave, spread
from tests.helpers.launching import ROOT

CPU = torch.device("cpu")
SMALL = Case("linear_policy", 16, 37, 8, live=0.5, dtype="float32")
ONE = Ceilings(copy=1e9, matmul=1e9, dtype="float32")
OURS, EAGER = (next(p for p in PROVIDERS if p.name == name) for name in ("ours", "torch eager"))
QUICK = Effort(warmup=1, least=1, most=1)


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    """Triton's interpreter would run the peers' kernels here, in minutes."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def broken(error: Exception) -> Provider:
    def make(inputs):
        def call():
            raise error

        return Calls(call, call)

    return Provider("broken", tuple(TASKS), "computes", runs_anywhere, make)


def test_the_tiny_preset_end_to_end(tmp_path, capsys):
    assert main(["--preset", "tiny", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "kernels.json").read_text())
    assert data["schema"] == 1 and data["done"] and data["preset"] == "tiny"
    assert data["hardware"]["device"] == "cpu" and torch.__version__.startswith(data["versions"]["torch"])
    assert data["ceilings"]["copy"] > 0 and data["ceilings"]["matmul"] > 0
    names = {row["name"] for row in data["rows"]}
    assert names == {case.name for case in tiny().cases}
    for row in data["rows"]:
        assert set(row) == {f.name for f in fields(Row)}
        if row["reason"] is None:
            assert 0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] and row["runs"] >= 1
            assert row["mode"] in ("forward", "forward_backward") and row["cache"] in ("hot", "cold")
    # every provider of a task has a row in every case of it, with times or a reason
    for case in tiny().cases:
        found = {row["provider"] for row in data["rows"] if row["name"] == case.name}
        assert found == {p.name for p in PROVIDERS if case.task in p.tasks}
    measured = {row["provider"] for row in data["rows"] if row["reason"] is None}
    assert {"ours", "torch eager"} <= measured
    assert ("trl chunked_logprob" in measured) == (importlib.util.find_spec("trl") is not None)
    for row in data["rows"]:
        if row["provider"] == "ours" and row["reason"] is None and "bfloat16" not in row["name"]:
            assert all(error < 1e-5 for error in row["errors"].values()), row
    assert {row["provider"] for row in data["churn"]} >= {"ours", "torch eager"}
    assert next(row for row in data["churn"] if row["provider"] == "ours")["lengths"] == 50
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert "nothing about speed" in said and str(tmp_path) in said
    assert "| ours | forward | cold |" in table(data)

    before = (tmp_path / "kernels.json").read_text()
    begin = time.process_time()  # nothing is measured again, however busy the machine is
    assert benchmark("tiny", tmp_path, 1.0)
    assert time.process_time() - begin < 3 and json.loads(before)["rows"] == load(tmp_path / "kernels.json")["rows"]
    with pytest.raises(SystemExit, match="another --out"):
        benchmark("full", tmp_path, 1.0)


def test_out_of_time_is_continued(tmp_path):
    assert not benchmark("tiny", tmp_path, 0.0, (OURS,))
    assert load(tmp_path / "kernels.json")["rows"] == []
    assert benchmark("tiny", tmp_path, 1.0, (OURS,))


def test_a_provider_that_fails_is_a_row(monkeypatch):
    rows = measure_case(SMALL, CPU, ONE, QUICK, (OURS, broken(ValueError("first\nsecond"))))
    assert [r.reason for r in rows if r.provider == "broken"] == ["ValueError: first"]
    assert len([r for r in rows if r.provider == "ours" and r.reason is None]) == 4
    late = iter(range(99))

    def make(inputs):
        calls = ours.make_eager(inputs)

        def forward():
            if next(late) > 1:
                raise RuntimeError("later")
            return calls.forward()

        return replace(calls, forward=forward)

    provider = Provider("late", ("linear_policy",), "computes", runs_anywhere, make)
    rows = measure_case(SMALL, CPU, ONE, QUICK, (provider,))
    assert [(r.provider, r.reason, r.median_ms) for r in rows] == [("late", "RuntimeError: later", None)]


def test_what_is_missing_is_a_row(monkeypatch):
    monkeypatch.setitem(sys.modules, "quack", None)
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    case = Case("linear_ce", 16, 37, 8, dtype="float32")
    rows = {r.provider: r.reason for r in measure_case(case, CPU, ONE, QUICK, peers.PROVIDERS)}
    assert rows["quack"] == "quack is not installed"
    assert "has no torch.nn.functional.linear_cross_entropy" in rows["torch linear_cross_entropy"]
    assert "needs a GPU" in rows["liger linear ce"]


def test_a_gpu_that_is_lost_ends_the_process_and_is_not_tried_again(tmp_path):
    path = tmp_path / "kernels.json"
    providers = (OURS, EAGER, broken(RuntimeError("CUDA error: an illegal memory access was encountered")))
    with pytest.raises(DeviceLost, match="broken"):
        sweep(path, [SMALL], CPU, ONE, QUICK, time.monotonic() + 60, providers)
    assert load(path)["at"] is None and load(path)["rows"] == []
    assert sweep(path, [SMALL], CPU, ONE, QUICK, time.monotonic() + 60, providers)
    rows = load(path)["rows"]
    (why,) = [r["reason"] for r in rows if r["provider"] == "broken"]
    assert why == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert {r["provider"] for r in rows if r["reason"] is None} == {"ours", "torch eager"}


def test_a_provider_that_hung_is_not_tried_again(tmp_path):
    path = tmp_path / "kernels.json"
    save(path, {"at": [SMALL.name, "torch eager"]})
    assert sweep(path, [SMALL], CPU, ONE, QUICK, time.monotonic() + 60, (OURS, EAGER))
    rows = {r["provider"]: r["reason"] for r in load(path)["rows"]}
    assert rows == {"ours": None, "torch eager": "did not come back from its first call here in an earlier run"}


def test_the_floor_by_hand():
    logits = Case("logits_policy", 16384, 151936)
    count = 16384 * 151936
    assert work(logits, "forward").bytes == 2 * count and work(logits, "forward_backward").bytes == 4 * count
    assert work(replace(logits, live=0.25), "forward_backward").bytes == 2 * count // 4 + 2 * count
    assert work(replace(logits, task="logprobs"), "forward_backward").bytes == 6 * count
    hopper = Ceilings(copy=4.3e12, matmul=7.9e14, dtype="bfloat16")
    assert floor_ms(work(logits, "forward_backward"), hopper) == pytest.approx(2.3155, rel=1e-4)

    linear = Case("linear_policy", 16384, 151936, 896)
    needed = work(linear, "forward_backward")
    assert needed.flops == 6 * count * 896 and needed.bytes == 2 * 2 * (16384 + 151936) * 896
    assert work(linear, "forward").flops == 2 * count * 896
    assert floor_ms(needed, hopper) == pytest.approx(6 * count * 896 / 7.9e14 * 1e3)
    assert work(replace(linear, live=0.5), "forward_backward").flops == 3 * count * 896
    assert work(replace(linear, live=0.0), "forward_backward").flops == 0
    # K = 8: 64 rows, 8 groups, of which 2 explore (8 rows each) and 4 memorize (1 row each)
    assert work(replace(linear, group=8), "forward_backward").flops == 6 * 20 * 256 * 151936 * 896
    assert work(Case("advantages", 4096, group=8, dtype="float32"), "forward").bytes == 55304


def test_live_rows_of_groups():
    case = Case("linear_policy", 16384, 8, 8, group=4)
    mask = live_mask(case).view(64, 256)
    assert mask.all(1).eq(mask.any(1)).all()  # whole rows
    rows = mask[:, 0].view(16, 4).sum(1).tolist()
    assert rows == [4] * 5 + [1] * 8 + [0] * 3
    assert live_mask(replace(case, group=0, live=0.25)).float().mean() == 0.25


def test_full_preset_covers_the_sweeps():
    preset = full()
    linear = [c for c in preset.cases if c.task == "linear_policy"]
    shapes = {(151936, 896), (151936, 2048), (152064, 3584), (49280, 960)}
    plain = [c for c in linear if not (c.group or c.peaked) and c.live == 1]
    assert {(c.tokens, c.vocabulary, c.width) for c in plain} == {(n, *s) for n in (600, 4096, 16384) for s in shapes}
    assert {c.live for c in linear} == {1.0, 0.5, 0.25, 0.0} and {c.group for c in linear} == {0, 4, 8, 16}
    assert {c.task for c in preset.cases} == set(TASKS) and any(c.peaked for c in preset.cases)
    assert preset.lengths == 50 and len(set(preset.cases)) == len(preset.cases) and set(PRESETS) == {"tiny", "full"}


def test_errors_find_a_wrong_gradient():
    inputs = make_inputs(replace(SMALL, task="linear_ce"), CPU)
    calls = ours.make_eager(inputs)
    right = calls.forward_backward()
    good = relative_errors(inputs, right)
    assert set(good) == {"loss", "logprobs", "hidden", "weight"} and all(e < 1e-6 for e in good.values())
    wrong = replace(right, gradients={**right.gradients, "weight": right.gradients["weight"] * 1.01})
    bad = relative_errors(inputs, wrong)
    assert bad["weight"] == pytest.approx(0.01, rel=1e-3) and bad["hidden"] == good["hidden"]
    assert over_torch(bad, good, 6e-8)["weight"] > 1e4
    nan = relative_errors(inputs, Outcome(right.loss * torch.nan, None, right.gradients))
    assert nan["loss"] != nan["loss"] and finite(nan)["loss"] == "nan"


def test_overwritten_logits_are_restored_and_measured_in_place():
    inputs = make_inputs(Case("logits_policy", 16, 37, dtype="float32"), CPU)
    calls = ours.make_ours(inputs)
    kept = inputs.logits.clone()
    first = []
    for _ in range(2):
        calls.reset()
        outcome = calls.forward_backward()
        gradient = outcome.gradients["logits"]
        assert gradient.untyped_storage().data_ptr() == inputs.scratch.untyped_storage().data_ptr()
        first.append(gradient.clone())
    assert torch.equal(first[0], first[1]) and torch.equal(inputs.logits, kept)


def test_rounds_are_interleaved_and_quartiles_are_those_of_the_calls():
    order: list[str] = []
    calls = {name: ((lambda name=name: order.append(name)), lambda: None) for name in "ab"}
    effort = Effort(warmup=0, least=2, most=3, seconds=100)
    found = interleave(Clock(CPU), calls, effort, lambda *_: None)
    assert "".join(order) == "aabb" * 3 and {key for key in found} == {(n, c) for n in "ab" for c in ("hot", "cold")}
    assert all(s.runs == 3 for s in found.values())
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == spread([5.0, 4.0, 3.0, 2.0, 1.0])
    s = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (s.q1_ms, s.median_ms, s.q3_ms) == (2.0, 3.0, 4.0)


def test_summary_compares_providers_and_live_tokens():
    def row(provider: str, case: Case, ms: float) -> dict:
        base = Row(case.as_dict(), case.name, int(live_mask(case).sum()), provider, "drops")
        return vars(replace(base, mode="forward_backward", cache="cold", median_ms=ms, floor_percent=50.0))

    whole = replace(SMALL, live=1.0)
    part = replace(SMALL, live=0.5)
    data = {"rows": [row("ours", whole, 2.0), row("trl", whole, 3.0), row("ours", part, 1.0)]}
    data["rows"][1]["errors_over_torch"] = {"weight": 12.0}
    lines = summary(data).splitlines()
    assert lines[1].endswith("| 2 | 50 | trl 1.5x (error 12x torch's)")
    assert lines[2].endswith("50 % live: 0.5 of all")


def test_memory_and_churn_say_why_there_is_no_number(capsys):
    rows = memory.measure([SMALL, Case("advantages", 8, group=4)], EAGER)
    assert [r["reason"] for r in rows] == [memory.NO_GPU] * 2
    assert memory.main(["torch eager", json.dumps(SMALL.as_dict())]) == 0
    assert json.loads(capsys.readouterr().out) == {"reason": memory.NO_GPU}
    assert "boom" in churn(SMALL, 3, broken(ValueError("boom")), CPU)["reason"]
    assert churn(SMALL, 3, EAGER, CPU)["lengths"] == 3


def test_no_figure_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot({"rows": []}, tmp_path / "x.png") == "matplotlib is not installed: no figure"


def test_a_killed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    save(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(path, {"a": 2})
    assert load(path) == {"a": 1}


INTERPRETED = """
import torch
from benchmarks.kernels.case import Case
from benchmarks.kernels.roofline import Ceilings
from benchmarks.kernels.sweep import PROVIDERS, measure_case
from benchmarks.kernels.timing import Effort
names = ("trl logprob_entropy", "liger triton_grpo_loss", "liger linear ce")
some = [p for p in PROVIDERS if p.name in names]
options = dict(live=0.5, dtype="float32")
for case in (Case("logits_policy", 16, 37, **options), Case("linear_ce", 16, 37, 8, **options)):
    for r in measure_case(case, torch.device("cpu"), Ceilings(1e9, 1e9, "float32"), Effort(1, 1, 1), some):
        worst = max(r.errors.values(), default=0.0)
        print(f"{case.task}|{r.provider}|{r.reason}|{worst:.3g}")
"""


def test_peers_kernels_compute_the_same_loss():
    """Under Triton's interpreter: the adapters call each library with the arguments that mean the same."""
    import triton

    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton 3.6 needs numpy below 2.4")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {tuple(line.split("|")[:2]): line.split("|")[2:] for line in done.stdout.splitlines() if "|" in line}
    for module, key in (
        ("trl", ("logits_policy", "trl logprob_entropy")),
        ("liger_kernel", ("logits_policy", "liger triton_grpo_loss")),
        ("liger_kernel", ("linear_ce", "liger linear ce")),
    ):
        reason, worst = rows[key]
        if reason == f"{module} is not installed":
            continue
        assert reason == "None" and 0 < float(worst) < 1e-5, (key, reason, worst)
