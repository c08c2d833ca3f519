"""Every JSON in ds_configs/: DeepSpeed's parser takes it, and on two CPU ranks all train the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dyme.config import load_config
from dyme.engine.train_engine import deepspeed_config
from tests.helpers.launching import ROOT
from tests.helpers.runs import write_config

FILES = sorted((ROOT / "ds_configs").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_deepspeed_takes_it(path, dtype, tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig

    cfg = load_config(write_config(tmp_path, model__dtype=dtype), [f"deepspeed={path}"])
    parsed = DeepSpeedConfig(deepspeed_config(cfg)).zero_config
    told = json.loads(path.read_text())["zero_optimization"]
    for key, value in told.items():
        held = getattr(parsed, key.removeprefix("stage3_"), None)  # DeepSpeed's own names of some
        assert isinstance(value, dict) or held == value or getattr(parsed, key, None) == value, key


def on_cpu(path: Path, folder: Path) -> Path:
    """The same JSON without quantized weights, which DeepSpeed has on GPUs alone. hpZ takes two ranks as one node."""
    tree = json.loads(path.read_text())
    tree["zero_optimization"].pop("zero_quantized_weights", None)
    (folder / path.name).write_text(json.dumps(tree))
    return folder / path.name


@pytest.mark.dist
def test_two_ranks_train_the_same_weights_with_each(tmp_path, run_ranks):
    config = write_config(tmp_path, method="sft", train__max_steps=2, data__eval=None)
    runs = {path.stem: tmp_path / "runs" / path.stem for path in FILES}
    base = tmp_path / "base"
    jobs = [{"config": str(config), "overrides": [f"run.dir={base}"]}]
    for path in sorted(FILES, key=lambda p: "hpz" in p.name):  # DeepSpeed keeps hpZ's groups in the process for good
        overrides = [f"model={{path: {base}/export}}", f"deepspeed={on_cpu(path, tmp_path)}"]
        jobs.append({"config": str(config), "overrides": [*overrides, f"run.dir={runs[path.stem]}"]})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_ranks(2, "configs", tmp_path / "jobs.json")
    expected = load_file(runs["zero3"] / "export" / "model.safetensors")
    for name, run in runs.items():
        assert (run / "DONE").exists(), name
        found = load_file(run / "export" / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert torch.allclose(value, expected[key], rtol=0, atol=1e-6), (name, key)
