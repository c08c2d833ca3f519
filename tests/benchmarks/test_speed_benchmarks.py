"""benchmarks.rollout and benchmarks.step in their smallest sizes: everybody runs the same data, and what they claim to
run they run."""

from __future__ import annotations

import sys
import types
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu.progress import Options
from benchmarks.kernels.results import load, save
from benchmarks.rollout import NAMES
from benchmarks.rollout import __main__ as rollout
from benchmarks.rollout.meter import Cost, measured, medians
from benchmarks.step import __main__ as step
from benchmarks.step import scaling
from benchmarks.step.case import REGIMES, RIGHT, Case, mixed_groups, scripted
from benchmarks.step.one import measure
from dyme.rollout.engine import LocalEngine
from dyme.settings.engines import ENGINES

CPU = torch.device("cpu")


def options(out: Path) -> Options:
    return Options(out, 10.0, True)


# --- rollout ----------


def test_rollout_rehearsal(tmp_path):
    size = rollout.PRESETS["rehearsal"]
    assert rollout.benchmark(size, options(tmp_path)) == 0
    data = load(tmp_path / "rollout.json")
    assert data["done"] and data["size"]["group_size"] == 2 and data["versions"]["transformers"]
    found = {name: data["steps"][f"llava-onevision | {name}"] for name in NAMES}
    copy = data["steps"]["ceilings"]["copy"]
    for name in ("dyme hf", "transformers dynamic", "transformers static"):
        row = found[name]
        assert row["status"] == "passed", row
        assert row["rows"] == 4 and row["tokens_per_s"] == pytest.approx(4 * 4 / row["wall_s"])
        assert row["prefill_s"] > 0 and row["decode_bound_s"] * copy == pytest.approx(row["decode_bytes"])
        assert (row["over_generate"] is None) == (name == "transformers dynamic")
    assert found["dyme shared_prefix"]["status"] in ("passed", "skipped")
    assert "vllm" not in found or found["vllm"]["status"] == "skipped"
    assert not (tmp_path / "checkpoints").exists()
    before = (tmp_path / "rollout.json").read_text()
    assert rollout.benchmark(size, options(tmp_path)) == 0
    assert (tmp_path / "rollout.json").read_text() == before
    assert "llava-onevision | dyme hf | " in rollout.summary(data)


def test_an_engine_that_makes_other_lengths_is_no_time():
    with pytest.raises(AssertionError, match="7 tokens where 2 rows of 4"):
        rollout.timed(lambda n: 7, None, 2, 4, 1, CPU)


def test_decode_steps_are_what_n_tokens_take_beyond_one(monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def engine(n: int) -> int:
        clock.now += 0.5 + 0.01 * n  # prefill and n steps, the last of which nobody needs
        return 3 * n

    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    found = rollout.timed(engine, lambda n: engine(n) and engine(n), 3, 11, 3, CPU)
    assert found["prefill_s"] == pytest.approx(0.51) and found["decode_step_s"] == pytest.approx(0.01)
    assert found["over_generate"]["wall"] == pytest.approx(2.0)
    assert found["tokens_per_s"] == pytest.approx(33 / 0.61)


def test_our_engines_are_found_by_their_name(monkeypatch):
    from benchmarks.rollout import engines

    asked = []

    class Another(LocalEngine):
        def generate(self, rows, sampling):
            asked.append((rows, sampling))
            return [SimpleNamespace(tokens=(1,) * sampling.max_new_tokens) for _ in rows]

    module = types.ModuleType("dyme.rollout.another")
    module.Another = Another
    assert engines.obstacle("dyme another") == "dyme/settings/engines.py has no engine another"
    monkeypatch.setitem(sys.modules, "dyme.rollout.another", module)
    monkeypatch.setitem(ENGINES, "another", "dyme.rollout.another:Another")
    assert engines.obstacle("dyme another") is None
    prompts = [SimpleNamespace(pixels={}), SimpleNamespace(pixels={})]
    assert engines.ours("another", None, None, prompts, 3)(5) == 30
    rows, sampling = asked[0]
    assert [row.prompt for row in rows] == [prompts[0]] * 3 + [prompts[1]] * 3
    assert len({row.key for row in rows}) == 6 and sampling.batch_size == 6


def test_vllm_makes_all_tokens_and_forgets_its_prompts(monkeypatch, opened_llava):
    from benchmarks.rollout import engines
    from benchmarks.rollout.workload import picture

    calls = []

    class LLM:
        def __init__(self, **settings):
            calls.append(settings)

        def reset_prefix_cache(self):
            calls.append("reset")

        def generate(self, requests, sampling, use_tqdm):
            calls.append(requests)
            made = SimpleNamespace(token_ids=[1] * sampling.max_tokens)
            return [SimpleNamespace(outputs=[made] * sampling.n) for _ in requests]

    library = types.ModuleType("vllm")
    library.LLM, library.SamplingParams = LLM, lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", library)
    image = picture((48, 32), 0)
    engine = engines.vllm(Path("x"), opened_llava, ["one?", "two?"], [image, image], 4, 99)
    assert engine(6) == 2 * 4 * 6
    assert calls[0]["max_model_len"] == 99 and calls[1] == "reset"
    assert "one?" in calls[2][0]["prompt"] and calls[2][0]["multi_modal_data"] == {"image": image}


@pytest.fixture
def opened_llava(checkpoint):
    from dyme.families import load_family

    return load_family(checkpoint("llava-onevision"), dtype="fp32")[0]


def test_the_bound_counts_what_a_decode_step_reads(checkpoint):
    from benchmarks.rollout.workload import kv_bytes, weight_bytes
    from dyme.families import load_family

    tied, model = load_family(checkpoint("llava-onevision"), dtype="fp32")
    read = sum(p.numel() for p in model.model.language_model.parameters())
    assert weight_bytes(tied, model) == 4 * read  # the embedding is the head
    untied, other = load_family(checkpoint("smolvlm-v1"), dtype="fp32")
    text = sum(p.numel() for p in other.model.text_model.parameters())
    table = other.get_input_embeddings().weight.numel()
    assert weight_bytes(untied, other) == 4 * (text - table + other.lm_head.weight.numel())
    # 3 layers, keys and values of 2 heads of 12 values of 4 bytes, halfway through 8 new tokens
    assert kv_bytes(tied, model, [10, 20], 3, 8) == 2 * 3 * 2 * 12 * 4 * (10 + 12 + 20 + 12)


def test_the_meter_sees_what_a_call_takes():
    def take() -> int:
        return int(torch.ones(16 << 20).sum())  # 67 MB

    cost, result = measured(CPU, take)
    assert result == 16 << 20 and cost.wall_s > 0
    if cost.before_mb is not None:
        assert 60 < cost.peak_mb - cost.before_mb < 90
    told = medians([Cost(1.0, 2.0, 10.0, 4.0), Cost(3.0, 2.0, 12.0, 9.0), Cost(2.0, 5.0, None, None)])
    assert (told["wall_s"], told["cpu_s"], told["peak_mb"], told["extra_mb"]) == (2.0, 2.0, 12.0, 6.0)


# --- step ----------


def test_step_rehearsal(tmp_path):
    """Ours, TRL and the published behaviour get the same prompts and make as many tokens; the published behaviour runs
    every row of every group, TRL too; the scripted regimes have the live fractions that they claim."""
    preset = step.PRESETS["rehearsal"]
    [case] = preset.cases
    k, groups, n = case.group_size, case.prompts, case.new_tokens
    assert step.benchmark(preset, options(tmp_path), measure) == 0
    data = load(tmp_path / "step.json")
    assert {s["status"] for s in data["steps"].values()} == {"passed"}, data["steps"]
    ours, trl, published = (data["steps"][f"{case.model} | {name}"]["regimes"] for name in ("ours", "trl", "published"))
    for regime, share in REGIMES.items():
        mixed = mixed_groups(case, share)
        assert mixed == share * groups
        rows = [found[regime] for found in (ours, trl, published)]
        assert len({row["data"] for row in rows}) == 1
        assert all(row["prompt_tokens"] == rows[0]["prompt_tokens"] for row in rows)
        assert [row["reply_tokens"] for row in rows] == [groups * k * n] * 3
        live = mixed * k + groups - mixed
        assert [row["rows"] for row in rows] == [live, groups * k, groups * k]
        assert (
            rows[0]["train_sequences"] == rows[2]["train_sequences"] == live and rows[1]["train_sequences"] == mixed * k
        )
        assert rows[0]["live_fraction"] == live / (groups * k)
        prompt = sum(rows[0]["prompt_tokens"])
        references = rows[0]["tokens"] - prompt - mixed * k * n  # ours runs each prompt once
        assert (references == 0) == (mixed == groups)
        dead = (groups - mixed) * (k - 1)
        assert rows[2]["tokens"] == k * prompt + references + (mixed * k + dead) * n
        assert rows[1]["tokens"] == k * prompt + groups * k * n
        assert all({"rollout", "update", "forward and backward"} <= set(row["phases"]) for row in rows)
    assert set(data["fits"]) == {"live", "K"} and (tmp_path / "step-scaling.png").stat().st_size > 10_000
    told = step.summary(data)
    assert "published | 30 % mixed" in told and "processor seconds against live: ours step" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-scaling.png", "step.json"]


def test_dead_rows_change_nothing_but_the_cost(tmp_path):
    """Loss and gradient of a step with the published behaviour are those of ours."""
    from benchmarks.step.ours import Ours

    case = Case("smolvlm-v1", "fp32", ((48, 32),), 0, prompts=2, group_size=4, new_tokens=3, shares=(0.5,))
    told = []
    for published in (False, True):
        run = Ours(case, tmp_path, CPU, published=published)
        _, _, counts = run.step(0)
        told.append((counts, run.step_metrics["loss"], run.step_metrics["grad_norm"]))
        assert run.run.engine.family.packs_trees
        run.close()
    (few, loss, norm), (many, their_loss, their_norm) = told
    assert (few.rows, many.rows) == (5, 8)
    assert norm > 0 and their_norm == pytest.approx(norm, rel=1e-4)
    assert their_loss == pytest.approx(loss, rel=1e-4, abs=1e-6)


def test_the_script_is_right_in_every_second_row_of_mixed_groups():
    rows = ["mixed-0-0"] * 4 + ["wrong-0-1"] * 2 + ["mixed-0-2"] * 2
    assert scripted(rows) == [RIGHT, 0, RIGHT, 0, 0, 0, RIGHT, 0]
    case = Case("x", "fp32", (), 0)
    assert [mixed_groups(case, share) for share in REGIMES.values()] == [0, 3, 10]
    assert [case.share(s) for s in range(4)] == [0.0, 0.3, 1.0, 0.0]


def test_lines_go_through_their_points(tmp_path):
    def held(x: float) -> dict:
        return {"x": x, "ours": {"step": 1 + 2 * x, "update": x}, "published": {"step": 9.0, "update": 4 + 3 * x}}

    points = [held(x) for x in (0.0, 0.5, 1.0)]
    steps = {"scaling live": {"status": "passed", "axis": "live", "points": points[::-1]}}
    steps["scaling K=2"] = {"status": "failed", "axis": "K"}
    lines = scaling.fits(steps)
    assert list(lines) == ["live"]
    fitted = {what: (fit["intercept"], fit["slope"]) for what, fit in lines["live"].items()}
    assert fitted["ours step"] == pytest.approx((1, 2)) and fitted["published update"] == pytest.approx((4, 3))
    assert fitted["published step"] == pytest.approx((9, 0))


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "NEEDED", {name: ("no_such_package",) for name in step.NEEDED})
    monkeypatch.setattr(rollout, "NEEDED", ("no_such_package",))
    assert step.benchmark(step.Preset(step.PRESETS["rehearsal"].cases), options(tmp_path), measure) == 0
    assert rollout.benchmark(rollout.PRESETS["rehearsal"], options(tmp_path)) == 0
    for name in ("step", "rollout"):
        steps = {k: v for k, v in load(tmp_path / f"{name}.json")["steps"].items() if " | " in k}
        assert {(s["status"], s["detail"]) for s in steps.values()} == {("skipped", "not installed: no_such_package")}


def test_a_case_survives_its_way_to_another_process(tmp_path, monkeypatch):
    from benchmarks.step import one

    case = step.PRESETS["full"].cases[0]
    save(tmp_path / "case.json", asdict(case))
    seen = []
    monkeypatch.setattr(one, "measure", lambda *arguments: seen.append(arguments) or [])
    text = (tmp_path / "case.json").read_text()
    monkeypatch.setattr(sys, "argv", ["one", "trl", text, str(tmp_path), "cpu"])
    assert one.main() == 0
    assert seen == [(case, tmp_path, CPU, "trl")]


def test_full_wants_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for program in (rollout, step):
        with pytest.raises(SystemExit, match="--preset tiny"):
            program.main(["--preset", "full"])
