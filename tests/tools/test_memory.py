"""`python -m dyme.tools.memory`: peaks, suggestions that fit where one more does not, one line for mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.checkpoints.common import write_checkpoint
from dyme.config import load_config
from dyme.tools import memory
from tests.helpers.checkpoints import makers
from tests.helpers.launching import ROOT, environment

GIB = 2**30


@pytest.fixture
def config(checkpoint, tmp_path):
    """A run YAML of a tiny checkpoint. With 1 GiB in reserve and a tenth, 1.16 GiB of GPU leave 45 MiB of room."""
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}}))
    tree = {
        "model": {"path": str(checkpoint("smolvlm-v1"))},
        "data": {"train": {"source": "charts", "count": 1}, "eval": {"source": "charts", "count": 1}},
        "rollout": {"prompts_per_step": 64, "max_new_tokens": 32},
        "train": {"logits_budget_mb": 8},
        "deepspeed": str(ds),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "run.yaml"


def predicted(capsys, *arguments: object) -> dict:
    assert memory.main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_suggested_fits_and_one_step_more_does_not(config, capsys):
    small = ["--config", config, "--gpu_gib", 1.16]
    found = predicted(capsys, *small)
    assert found["fits"] is False and not any(found["enough"].values())
    assert found["room"] + found["reserve"] == int(1.16 * GIB) and found["reserve"] == GIB + int(1.16 * GIB) // 10
    budget, batch = found["token_budget"], found["batch_size"]
    assert budget % memory.TOKENS == 0 and batch % 8 == 0 and budget > 0 < batch
    fitting = predicted(capsys, *small, f"train.token_budget={budget}", f"rollout.batch_size={batch}")
    assert fitting["fits"] is True and max(fitting["peaks"].values()) <= found["room"]
    more = predicted(capsys, *small, f"train.token_budget={budget + memory.TOKENS}", f"rollout.batch_size={batch}")
    assert more["peaks"]["update"] > found["room"] and more["fits"] is False
    more = predicted(capsys, *small, f"rollout.batch_size={batch + 8}")
    assert max(more["peaks"]["rollout"], more["peaks"]["evaluation"]) > found["room"]
    whole = predicted(capsys, "--config", config, "--gpu_gib", 500)
    assert whole["enough"] == {"token_budget": True, "batch_size": True} and whole["batch_size"] == 64 * 8
    assert 0 <= whole["token_budget"] - 64 * 8 * (whole_row(config)) < memory.TOKENS


def whole_row(config: Path) -> int:
    size = memory.measure(load_config(config), [], 1)
    return size.load.prompt + size.load.reply


def test_more_needs_more(config, checkpoint, capsys):
    """Larger budgets, batches and pictures never take less; more GPUs and offloading never take more."""

    def peaks(*overrides: str, gpus: int = 1) -> dict[str, int]:
        return predicted(capsys, "--config", config, "--gpus", gpus, *overrides)["peaks"]

    plain = peaks()
    assert set(plain) == {"rollout", "update", "refresh", "evaluation"} and min(plain.values()) > 0
    budgets = [peaks(f"train.token_budget={n}")["update"] for n in (1024, 2048, 4096, 8192)]
    assert budgets == sorted(budgets) and len(set(budgets)) == 4 and budgets[-1] == plain["update"]
    batches = [peaks(f"rollout.batch_size={n}") for n in (8, 64, 512)]
    for phase in ("rollout", "evaluation"):
        sizes = [found[phase] for found in batches]
        assert sizes == sorted(sizes) and sizes[0] < sizes[1]
    path = f"model.path={checkpoint('qwen2.5-vl')}"
    small, large = (predicted(capsys, "--config", config, "--size", size, path) for size in ("64x64", "600x400"))
    assert all(small["peaks"][phase] < large["peaks"][phase] for phase in ("rollout", "update", "evaluation"))
    two = peaks("rollout.batch_size=8", gpus=4)
    assert two["rollout"] < batches[0]["rollout"]
    away = predicted(capsys, "--config", config, "rollout.offload=true")
    copied = away["estimate"]["host"]["rollout copy"]
    assert copied == 4 * sum(p.numel() for p in memory_model(config).parameters())
    assert plain["update"] - away["peaks"]["update"] == plain["refresh"] - away["peaks"]["refresh"] == copied
    assert away["peaks"]["rollout"] == plain["rollout"] and away["peaks"]["evaluation"] == plain["evaluation"]


def memory_model(config: Path) -> torch.nn.Module:
    from dyme.families import load_family

    return load_family(load_config(config).model.path)[1]


def test_a_copy_without_adapters(config, capsys):
    """With LoRA the copy is the plain model, and a refresh merges one Linear after the other in float32."""
    model = memory_model(config)
    total = 4 * sum(p.numel() for p in model.parameters())
    lora = predicted(capsys, "--config", config, "model.lora={r: 4, targets: [up_proj]}", "--gpus", 2)["estimate"]
    assert lora["stays"]["rollout copy"] == total < 2 * lora["stays"]["weights"]
    layer = model.model.text_model.layers[0]
    assert lora["refresh"] == {
        "gathered weights": 4 * sum(p.numel() for p in layer.parameters()),
        "merged weights": 8 * layer.mlp.up_proj.weight.numel(),
    }
    full = predicted(capsys, "--config", config, "--gpus", 2)["estimate"]
    assert full["refresh"] == {"gathered weights": 4 * model.lm_head.weight.numel()}  # larger than a layer
    assert predicted(capsys, "--config", config)["estimate"]["refresh"] == {}


def test_text(config, capsys):
    assert memory.main(["--config", str(config), "--gpu_gib", "1.16", "--size", "64x64"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("predicted peak memory per GPU (method dyme, fp32, ZeRO-3 of ")
    assert "DOES NOT FIT" in out and "of 1.16 GiB, 1.12 GiB in reserve" in out
    assert out.rpartition("\n  ")[2].startswith("train.token_budget=") and " rollout.batch_size=" in out
    assert memory.main(["--config", str(config), "method=sft", "data.eval=null", "--gpu_gib", "500"]) == 0
    out = capsys.readouterr().out
    assert "rollout" not in out.split("in all of them")[0] and "rollout.batch_size" not in out
    assert "(train.token_budget: more would be of no use)" in out


def test_from_scratch(tmp_path, capsys):
    found = predicted(capsys, "--config", ROOT / "configs/quickstart_base.yaml", f"run.dir={tmp_path}")
    assert found["fits"] and found["estimate"]["stays"]["rollout copy"] > 0


def test_mistakes(config, capsys):
    cases = [
        (["--config", "none.yaml"], "none.yaml: no such configuration file"),
        (["--config", str(config), "train.tokens=3"], "unknown key"),
        (["--config", str(config), "model.path=nowhere"], "nowhere/config.json does not exist"),
        (["--config", str(config), "deepspeed=none.json"], "deepspeed: none.json does not exist"),
    ]
    for arguments, text in cases:
        assert memory.main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and text in printed.err, printed.err
    assert memory.main(["--config", str(config), "--gpu_gib", "1.16", "train.logits_budget_mb=9999"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: update does not fit with any setting") and "to copy" not in printed.out
    for wrong in ("0", "much"):
        with pytest.raises(SystemExit):
            memory.main(["--config", str(config), "--gpu_gib", wrong])
    capsys.readouterr()


def test_as_a_program(config):
    options = ["--config", str(config), "--gpus", "2", "train.token_budget=512"]
    command = [sys.executable, "-m", "dyme.tools.memory", *options]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "ZeRO-3 of " in done.stdout and "2 GPUs" in done.stdout


# --- against a GPU ----------


def measured(folder: Path, size: str, env: dict[str, str], **changes: dict) -> tuple[Path, dict[str, int]]:
    """The run YAML, and the peaks of one step of it."""
    tree = {
        "model": {"path": str(folder), "dtype": "bf16", "gradient_checkpointing": True},
        "data": {"train": {"source": "charts", "count": 1}, "eval": {"source": "charts", "count": 1}},
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        **changes,
    }
    config, out = folder.parent / "run.yaml", folder.parent / "peaks.json"
    config.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "tests.programs.peaks", config, size, out]
    done = subprocess.run(list(map(str, command)), env=env, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return config, json.loads(out.read_text())


@pytest.mark.gpu
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llava-onevision-0.5b", "smolvlm-500m"])
def test_the_prediction_is_what_a_gpu_measures(tmp_path, capsys, name):
    """Within 15 %, for a model of real shape with made-up weights."""
    folder = write_checkpoint(tmp_path / name, makers("SHAPES")[name][1](), random_weights=True)
    env = {k: v for k, v in environment().items() if k != "DS_ACCELERATOR"}
    rollout = {"prompts_per_step": 8, "batch_size": 64, "max_new_tokens": 128}
    train, evaluation = {"token_budget": 16384}, {"eval_records": 64}
    config, peaks = measured(folder, "600x400", env, rollout=rollout, train=train, run=evaluation)
    found = predicted(capsys, "--config", config, "--size", "600x400")["peaks"]
    for phase, peak in peaks.items():
        assert found[phase] == pytest.approx(peak, rel=0.15), phase


def test_the_measuring_program_runs(checkpoint, tmp_path):
    """On a CPU, where nothing is measured, so that it does not break unseen."""
    folder = tmp_path / "model"
    os.symlink(checkpoint("smolvlm-v1"), folder)
    rollout = {"prompts_per_step": 1, "batch_size": 2, "max_new_tokens": 4, "group_size": 2}
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000}}))
    train = {"token_budget": 300, "logits_budget_mb": 8}
    run = {"eval_records": 3}
    _, peaks = measured(folder, "64x64", environment(), rollout=rollout, train=train, deepspeed=str(ds), run=run)
    assert set(peaks) == {"rollout", "update", "refresh", "evaluation"}
