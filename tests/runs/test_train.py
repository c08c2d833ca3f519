"""The loop end to end, through the real launcher: run folder, ranks, methods, bad records, NaN."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dyme.checkpoint.recipe import read_recipe
from dyme.fault_tolerance.launch import say_error
from tests.helpers.launching import launch
from tests.helpers.processors import open_processor
from tests.helpers.runs import lines, same, same_weights, write_config
from tests.helpers.tiny import TINY

pytestmark = pytest.mark.dist


def test_three_steps_leave_a_whole_run_folder(tmp_path):
    config = write_config(
        tmp_path,
        run__report=True,
        run__tensorboard=True,
        train__component_norms_every=2,
        prompt__system="You read charts.",
    )
    done = launch("--config", config, f"run.dir={tmp_path / 'run'}")
    run = tmp_path / "run"
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{20000 + os.getpid() % 20000}_*")), "memory left behind"
    assert "step 3/3" in done.stderr and done.stderr.count("held-out accuracy") == 2  # said by one rank only
    assert done.stderr.count("warning: no reply has a valid format, and ") == 1, "an untrained model, cut at 6 tokens"
    for name in ("config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "report.png", "report.html", "DONE"):
        assert (run / name).is_file(), name
    assert (run / "tensorboard").is_dir() and (run / "checkpoints" / "step-00000003").is_dir()
    assert len(list((run / "samples").glob("*.png"))) == 3
    steps = [line for line in lines(run) if not line.get("eval")]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        shares = [line[f"mode/{mode}_ratio"] for mode in ("explore", "memorize", "skip", "joint")]
        assert sum(shares) == pytest.approx(1)
        of_kinds = {key.split("/")[1] for key in line if key.startswith("mode/") and key.count("/") == 2}
        assert of_kinds and all(0 <= line[f"rollout/truncated/{kind}"] <= 1 for kind in of_kinds)
        assert line["skipped_update"] == 0 and line["grad_norm"] > 0
        assert line["memorize/nll"] > 0 and line["memorize/ref_len"] > 5
    assert steps[0]["grad/memorize_norm"] > 0 and "grad/memorize_norm" not in steps[1]
    assert [line["step"] for line in lines(run) if line.get("eval")] == [0, 3]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"] == "dyme" and summary["steps"] == 3 and summary["ranks"] == 2
    # the export opens in plain transformers and gives the trained model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(run / "export")
    processor = open_processor(run / "export")
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": Image.new("RGB", (32, 32))},
                {"type": "text", "text": "value of red?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model(**inputs).logits.isfinite().all()
    recipe = read_recipe(run / "export")
    assert recipe and recipe.prompt.template == "{question}" and recipe.prompt.answer_flag == "Answer:"
    assert recipe.max_new_tokens == 6 and recipe.family == "idefics3" and recipe.prompt.system == "You read charts."
    # the same command again does nothing
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    assert "nothing to do" in launch("--config", config, f"run.dir={run}").stderr
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_result_does_not_depend_on_the_number_of_ranks(tmp_path, ranks):
    # random models are never right; a digit of the chart now and then gives some groups a thinking reward
    selector = {"name": "reward_threshold", "threshold": 0.02}
    config = write_config(tmp_path, selector=selector, rollout__max_new_tokens=16)
    for number in (1, ranks):
        launch("--config", config, f"run.dir={tmp_path / str(number)}", ranks=number)
    steps = [line for line in lines(tmp_path / "1") if not line.get("eval")]
    assert any(line["mode/explore_ratio"] > 0 for line in steps) and any(
        line["mode/memorize_ratio"] > 0 for line in steps
    )
    same(lines(tmp_path / "1"), lines(tmp_path / str(ranks)), rel=2e-4)
    same_weights(tmp_path / "1", tmp_path / str(ranks), atol=2e-5)


def test_a_picture_that_fails_in_mid_run_costs_its_rows_only(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 200 - 30 * i, 90)).save(data / f"{i}.png")
        rows.append(
            {"id": f"r{i}", "question": f"what is {i}?", "answer": str(i), "hint": f"it is {i}", "image": f"{i}.png"}
        )
    (data / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    whole = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(whole[: len(whole) // 2])  # the header is fine, the pixels are not
    config = write_config(
        tmp_path, data={"train": {"source": "jsonl", "path": str(data / "train.jsonl")}}, rollout__prompts_per_step=6
    )
    done = launch("--config", config, f"run.dir={tmp_path / 'run'}")
    assert done.stderr.count("record r3 left out") >= 1 and "3.png" in done.stderr
    steps = lines(tmp_path / "run")
    assert len(steps) == 3 and all(line["rollout/unscored"] == pytest.approx(1 / 6, abs=1e-5) for line in steps)
    assert all(line["mode/skip_ratio"] >= 1 / 6 - 1e-5 for line in steps)


def test_a_nan_update_is_skipped_and_counted(tmp_path, run_ranks):
    """One rank sees a NaN loss in step 2: nobody steps, the run goes on; three in a row end it, and the newest
    checkpoint is from before."""
    config = write_config(tmp_path, train__max_steps=4, run__max_skipped_updates=3)
    run_ranks(2, "nan_step", config, tmp_path / "one", 2, 2)
    steps = [line for line in lines(tmp_path / "one") if not line.get("eval")]
    assert [line["skipped_update"] for line in steps] == [0, 1, 0, 0]
    assert steps[1]["loss"] is None and all(math.isfinite(steps[i]["loss"]) for i in (0, 2, 3))
    config = write_config(tmp_path, train__max_steps=8, run__max_skipped_updates=3, run__save_every=1)
    out = run_ranks(2, "nan_step", config, tmp_path / "many", 2, 4)
    assert "3 updates in a row had a non-finite loss" in out
    assert [p.name for p in (tmp_path / "many" / "checkpoints").glob("step-*")] == ["step-00000001"]
    bad = json.loads((tmp_path / "many" / "bad_steps" / "step-00000002.json").read_text())
    assert bad["ranks"] == [1] and len(list((tmp_path / "many" / "bad_steps").iterdir())) == 3
    assert bad["records"] == sorted({row["record"] for row in bad["rows"]})
    assert all(row["token_ids"] and row["rank"] in (0, 1) for row in bad["rows"])


@pytest.mark.parametrize("method", ["grpo", "sft", "two_stage"])
def test_the_other_methods_run(tmp_path, method):
    config = write_config(tmp_path, method=method, train__max_steps=4)
    launch("--config", config, f"run.dir={tmp_path / 'run'}")
    steps = [line for line in lines(tmp_path / "run") if not line.get("eval")]
    explores = [line["mode/explore_ratio"] for line in steps]
    assert explores == {"grpo": [1, 1, 1, 1], "sft": [0, 0, 0, 0], "two_stage": [0, 0, 1, 1]}[method]
    assert ["accuracy" in line for line in steps] == [share == 1 for share in explores]


@pytest.mark.parametrize(
    ("changes", "mode", "ratios"),
    [
        ({"method": "interleaved"}, "explore", [0, 1, 0]),
        ({"method": "progressive"}, "explore", [0, 1, 1]),
        ({"method": "mixed"}, "memorize", [2 / 3] * 3),
        ({"selector": {"name": "annealed"}, "objective": {"normalization": "token"}}, "joint", [1, 1, 1]),
        ({"selector": {"name": "scheduled"}}, "joint", [1, 1, 1]),
        (
            {
                "selector": {"name": "difficulty_weighted"},
                "objective": {"beta": {"start": 0.0, "end": 0.5, "steps": 2}},
            },
            "memorize",
            [0, 0, 0],
        ),
    ],
    ids=["interleaved", "progressive", "mixed", "annealed", "scheduled", "difficulty_weighted, scheduled KL"],
)
def test_rules_that_mix_and_weigh_run(tmp_path, changes, mode, ratios):
    config = write_config(tmp_path, **changes, data__eval=None, run__samples=0, run__export=False)
    launch("--config", config, f"run.dir={tmp_path / 'run'}", ranks=1)
    steps = [line for line in lines(tmp_path / "run") if not line.get("eval")]
    assert [line[f"mode/{mode}_ratio"] for line in steps] == pytest.approx(ratios)
    if mode == "joint":
        assert all(line["memorize/nll"] > 0 for line in steps)
    if "beta" in changes.get("objective", {}):
        assert any("policy/kl" in line for line in steps)


@pytest.mark.slow
def test_text_only_model_and_bf16_under_every_stage(tmp_path):
    """In bf16 DeepSpeed has another optimizer for each stage."""
    text = {"source": "jsonl", "path": str(tmp_path / "t.jsonl")}
    rows = [
        {"question": f"what is {i} plus 1?", "answer": str(i + 1), "hint": f"{i} and 1 is {i + 1}"} for i in range(12)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = write_config(
        tmp_path,
        data={"train": text, "eval": text},
        model={"from_scratch": TINY, "family": "causal_lm", "dtype": "bf16"},
    )
    norms = {}
    for stage in (1, 2, 3):
        ds, run = tmp_path / f"zero{stage}.json", tmp_path / f"run{stage}"
        ds.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        launch("--config", config, f"run.dir={run}", f"deepspeed={ds}")
        steps = [line for line in lines(run) if not line.get("eval")]
        assert [line["step"] for line in steps] == [1, 2, 3]
        norms[stage] = steps[0]["grad_norm"]
        weights = load_file(run / "export" / "model.safetensors")
        assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert norms[1] == pytest.approx(norms[2], rel=1e-2) and norms[3] == pytest.approx(norms[2], rel=1e-2)


def test_a_mistake_is_said_before_the_launcher_ends_the_others(monkeypatch, capsys):
    """It ends all ranks when the first one leaves: rank 0 speaks and leaves, the others only where it does not."""
    monkeypatch.setattr("dyme.fault_tolerance.launch.AFTER_YOU_S", 0.3)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # of this process
    for local, rank, least, said in (("0", "0", 0.0, "error: no file\n"), ("1", "3", 0.3, "error: rank 3: no file\n")):
        monkeypatch.setenv("LOCAL_RANK", local)
        monkeypatch.setenv("RANK", rank)
        begin = time.monotonic()
        assert say_error(ValueError("no file")) == 2
        assert time.monotonic() - begin >= least and capsys.readouterr().err == said


def test_bad_input_is_one_line(tmp_path):
    config = write_config(tmp_path)
    cases = {
        "rollout.group_sise=4": "unknown key 'rollout.group_sise'; nearest: 'rollout.group_size'",
        "model.freeze=[tower]": "or 'head', got 'tower'",
        "model.freeze=[vision,connector,language,head]": "leave at least one to train",
        f"data.train={{source: jsonl, path: {tmp_path / 'none.jsonl'}}}": "none.jsonl",
        "rollout.max_new_tokens=5000": "rollout.max_new_tokens=5000 exceeds the model's context of 4096 tokens",
    }
    for override, message in cases.items():
        failed = launch("--config", config, f"run.dir={tmp_path / 'run'}", override, check=False)
        errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
        assert failed.returncode != 0 and len(errors) == 1 and message in errors[0], failed.stderr[-2000:]
        assert "Traceback" not in failed.stderr
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
