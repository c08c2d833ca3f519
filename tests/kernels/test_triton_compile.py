"""Compilation ahead of time, in programs of their own: this process interprets the kernels instead of compiling."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.helpers.launching import ROOT, environment

CASES = (
    *("losses V=151936 bf16", "losses, all options V=49280", "statistics V=257", "gradient V=257", "groups fp32"),
    *(
        "scale bf16",
        "sampling slices V=151936 bf16",
        "sampling slices, penalty V=151936",
        "sampling slices, scores V=257",
    ),
    *("sampling slices, greedy V=49280", "sampling merge, penalty V=151936", "sampling merge V=257 bf16"),
)


def run(*program: str) -> str:
    done = subprocess.run([sys.executable, *program], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def check(table: list[dict], cases: int) -> None:
    assert len(table) == 3 * cases and {row["arch"] for row in table} == {80, 90, 100}
    for row in table:
        assert row["spilled"] == 0 and row["registers"] <= 255, row


@pytest.mark.slow
def test_nothing_spills(tmp_path):
    run("-m", "benchmarks.kernel_resources", "--json", f"{tmp_path}/rows.json", "--case", *CASES)
    check(json.loads((tmp_path / "rows.json").read_text()), len(CASES))


@pytest.mark.slow
def test_nothing_spills_at_any_vocabulary(tmp_path):
    run("-m", "benchmarks.kernel_resources", "--json", f"{tmp_path}/rows.json")
    check(json.loads((tmp_path / "rows.json").read_text()), 63)


def test_a_spill_and_an_unknown_case_are_errors(monkeypatch, capsys):
    from benchmarks import kernel_resources

    spilling = {"case": "losses V=257 bf16", "arch": 90, "registers": 255, "spilled": 16, "shared": 0, "warps": 1}
    monkeypatch.setattr(kernel_resources, "usage", lambda *_: spilling)
    monkeypatch.setattr(sys, "argv", ["kernel_resources", "--arch", "90", "--case", "losses V=257 bf16"])
    assert kernel_resources.main() == 1 and "| 16 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["kernel_resources", "--case", "softmax"])
    with pytest.raises(SystemExit):
        kernel_resources.main()
    assert "--case softmax" in capsys.readouterr().err


def lengths_compile_nothing(*arguments: str) -> None:
    found = json.loads(run("-m", "tests.programs.compilations", *arguments).splitlines()[-1])
    # with and without `live`, which is a flag of the losses
    wanted = {
        "_losses_kernel": 2,
        "_statistics_kernel": 1,
        "_gradient_kernel": 1,
        "_groups_kernel": 1,
        "_slices_kernel": 1,
        "_merge_kernel": 1,
    }
    assert found == {name: [count, count] for name, count in wanted.items()}


def test_50_lengths_compile_nothing_new():
    lengths_compile_nothing("--without-gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_50_lengths_compile_nothing_new_on_a_gpu():
    lengths_compile_nothing()
