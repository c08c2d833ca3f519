"""One configuration a family: three steps of it with a tiny checkpoint, from loading to an export that opens again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dyme.families import FAMILIES, load_family
from dyme.text.json_lines import read_jsonl
from tests.helpers.launching import ROOT

RUNS = {
    "smollm.yaml": "llama",
    "qwen3_text.yaml": "qwen3",
    "charts_smolvlm.yaml": "smolvlm-v1",
    "smolvlm2.yaml": "smolvlm2",
    "llava_onevision.yaml": "llava-onevision",
    "internvl.yaml": "internvl-qwen2",
    "qwen2_vl.yaml": "qwen2-vl",
    "qwen2_5_vl.yaml": "qwen2.5-vl",
    "qwen3_vl.yaml": "qwen3-vl",
    "gemma3.yaml": "gemma3",
    "lora_qwen2_5_vl.yaml": "qwen2.5-vl",
}
"""Configuration -> tiny checkpoint."""


def small_source(images: bool, folder: Path) -> str:
    if images:
        return "{source: charts, scale: tiny, count: 12, trace: medium}"
    question = "What is {} plus 1, <|im_end|>?"  # a quoted control token
    rows = [{"question": question.format(i), "answer": str(i + 1), "hint": f"{i} and 1 more"} for i in range(12)]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{{source: jsonl, path: {path}}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint) -> Path:
    """All runs in one process: a start costs more than three steps."""
    from tests.helpers.launching import run_on_ranks

    out = tmp_path_factory.mktemp("configs")
    jobs = []
    for config, name in RUNS.items():
        data = small_source(name not in ("llama", "qwen3"), out)
        overrides = [
            f"model.path={checkpoint(name)}",
            f"data.train={data}",
            f"data.eval={data}",
            f"run.dir={out / config}",
            "train.max_steps=3",
            "train.token_budget=400",
            "optim.warmup_steps=0",
            "rollout.prompts_per_step=4",
            "rollout.group_size=2",
            "rollout.max_new_tokens=6",
            "run.eval_records=2",
            "run.tensorboard=false",
            "run.report=false",
        ]
        jobs.append({"config": str(ROOT / "configs" / config), "overrides": overrides})
    (out / "jobs.json").write_text(json.dumps(jobs))
    (out / "log.txt").write_text(run_on_ranks(1, "configs", out / "jobs.json", timeout=540))
    return out


@pytest.mark.dist
@pytest.mark.timeout(600)
@pytest.mark.parametrize("config", sorted(RUNS))
def test_three_steps(config, finished):
    folder = finished / config
    assert (folder / "DONE").exists(), (finished / "log.txt").read_text()[-3000:]
    steps = [row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["skipped_update"] == 0 and row["effective_rows"] > 0 for row in steps)
    assert json.loads((folder / "summary.json").read_text())["bad_records"] == {}
    family, _ = load_family(folder / "export", dtype="bf16")
    assert family.name in FAMILIES


def test_every_family_has_a_configuration():
    from tests.helpers.checkpoints import makers

    assert {makers()[name][0] for name in RUNS.values()} == set(FAMILIES)
    for config in RUNS:
        tree = yaml.safe_load((ROOT / "configs" / config).read_text(encoding="utf-8"))
        assert tree["model"]["path"], config
