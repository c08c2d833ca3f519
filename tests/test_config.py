"""Configuration: every mistake is one line that names the key, the nearest valid key and what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml

from dyme.config import RunConfig, changed_keys, dump_config, load_config
from dyme.data import SourceConfig
from dyme.settings.errors import ConfigError, valid_keys
from dyme.settings.prompt import PromptConfig
from tests.helpers.launching import ROOT

YAMLS = sorted((ROOT / "configs").glob("*.yaml"))
SOURCES = typing.get_args(typing.get_args(SourceConfig)[0])
ALLOWED = ", ".join(sorted(model.model_fields["source"].default for model in SOURCES))
MINIMAL = {
    "model": {"path": "some/folder"},
    "data": {"train": {"source": "charts", "count": 9}, "eval": {"source": "charts", "count": 9}},
}


def write(folder: Path, tree: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture
def minimal(tmp_path) -> Path:
    return write(tmp_path, MINIMAL)


def mistake(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


# --- files ----------


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_yaml_loads_and_survives_a_round_trip(path, tmp_path):
    cfg = load_config(path)
    assert cfg.run.dir == f"runs/{path.stem}"
    assert load_config(write(tmp_path, dump_config(cfg))) == cfg


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_every_yaml_names_its_verifier(path):
    cfg = load_config(path)
    assert "verifier" in cfg.reward.model_fields_set
    metrics = {"chartqa": "relaxed", "gsm8k": "numeric", "geometry3k": "choice", "slake": "exact", "vqa_rad": "exact"}
    assert cfg.reward.verifier == metrics.get(cfg.data.eval.source, cfg.reward.verifier)
    if cfg.data.eval.source == "aokvqa":
        assert cfg.reward.verifier == {"choice": "choice", "direct": "vqa"}[cfg.data.eval.task]


def test_there_are_configurations():
    assert {"quickstart", "quickstart_base"} <= {p.stem for p in YAMLS}


def test_defaults_fill_what_is_missing(minimal):
    cfg = load_config(minimal)
    assert (cfg.method, cfg.rollout.group_size, cfg.run.dir, cfg.selector.name) == ("dyme", 8, "runs/mine", "variance")
    assert load_config(minimal, ["run.dir=elsewhere"]).run.dir == "elsewhere"


def test_round_trip_of_a_preset(minimal, tmp_path):
    cfg = load_config(minimal, ["objective.preset=dapo", "objective.epsilon_high=0.28"])
    again = load_config(write(tmp_path, dump_config(cfg)))
    assert again == cfg and again.objective.preset == "dapo"
    # what counts as set by hand decides over a preset's constants: it must not grow by writing the file
    ours = {"preset", "epsilon_low", "epsilon_high"}
    assert again.objective.model_fields_set & ours == cfg.objective.model_fields_set & ours


def test_round_trip_of_everything_optional(minimal, tmp_path):
    cfg = load_config(minimal, ["run.wandb=proj", "run.max_minutes=0.5", "optim.part_lr.vision=1e-6", "data.eval=null"])
    assert load_config(write(tmp_path, dump_config(cfg))) == cfg


def test_a_configuration_does_not_change(minimal):
    with pytest.raises(ValueError, match="frozen"):
        load_config(minimal).optim.lr = 1.0


def test_missing_and_broken_files(tmp_path):
    assert (
        mistake(tmp_path / "none.yaml")
        == f"{tmp_path}/none.yaml: no such configuration file; see configs/ for examples"
    )
    assert "not valid YAML" in mistake(write(tmp_path, "method: [dyme\n  x: {"))
    assert "not valid YAML" in mistake(write(tmp_path, "a: b: c"))
    assert "key: value" in mistake(write(tmp_path, "- a\n- b\n"))
    (tmp_path / "latin.yaml").write_bytes(b"method: \xff\xfe")
    assert "not valid YAML" in mistake(tmp_path / "latin.yaml")
    assert "'model' is required" in mistake(write(tmp_path, ""))


# --- mistakes ----------


@pytest.mark.parametrize(
    ("override", "key", "nearest", "allowed"),
    [
        ("mthod=grpo", "mthod", "method", "deepspeed"),
        ("optim.lrr=1", "optim.lrr", "optim.lr", "weight_decay"),
        ("optim.warmup=1", "optim.warmup", "optim.warmup_steps", "betas"),
        ("reward.weights.formt=1", "reward.weights.formt", "reward.weights.format", "thinking"),
        ("data.trian={}", "data.trian", "data.train", "max_bad_fraction"),
        ("data.train.counts=3", "data.train.counts", "data.train.count", "caption_fraction"),
        ("data.eval={source: gsm8k, path: x, limt: 3}", "data.eval.limt", "data.eval.limit", "path"),
        ("run.evry=3", "run.evry", "run.save_every", "keep_last"),
        ("lr=1", "lr", "optim.lr", "optim"),  # the right key stands deeper
        ("model.from_scratch.hiden_size=8", "model.from_scratch.hiden_size", "model.from_scratch.hidden_size", "heads"),
    ],
)
def test_unknown_key(minimal, override, key, nearest, allowed):
    message = mistake(minimal, override)
    assert f"unknown key '{key}'; nearest: '{nearest}'; allowed here: " in message or key == "lr"
    assert f"unknown key '{key}'" in message and allowed in message.split("allowed here: ")[1].split(", ")


def test_unknown_key_in_a_list(minimal):
    sources = "model={from_scratch: {tokenizer_sources: [{source: charts}, {source: charts, cuont: 3}]}}"
    message = mistake(minimal, sources)
    assert "unknown key 'model.from_scratch.tokenizer_sources.1.cuont'" in message
    assert "nearest: 'model.from_scratch.tokenizer_sources.1.count'" in message and " count, " in message


def test_keys_of_another_source_are_not_offered(minimal):
    message = mistake(minimal, "data.train.path=x")  # a key of jsonl, and the source is charts
    assert "unknown key 'data.train.path'" in message and "nearest: 'data.train.path'" not in message
    assert "path" not in message.split("allowed here: ")[1].split(", ")


def test_an_unknown_key_is_said_before_its_consequences(minimal):
    message = mistake(minimal, "data.train={source: jsonl, pth: x}")
    assert "unknown key 'data.train.pth'; nearest: 'data.train.path'" in message and message.endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "data.train.source=chartz",
            f"'data.train.source': unknown source 'chartz'; nearest: 'charts'; allowed: {ALLOWED}",
        ),
        ("data.train={count: 3}", f"'data.train.source' is required; allowed: {ALLOWED}"),
        ("data.train=charts", "'data.train': write settings below it (key: value), got 'charts'"),
        ("data=null", "'data': write settings below it (key: value), got None"),
        ("run=5", "'run': write settings below it (key: value), got 5"),
        ("optim.lr=fast", "'optim.lr': Input should be a valid number"),
        ("optim.lr=-1", "'optim.lr': Input should be greater than 0, got -1"),
        ("optim.lr=.inf", "'optim.lr': Input should be a finite number, got inf"),
        ("optim.lr=.nan", "'optim.lr': "),
        ("optim.betas=[0.9]", "'optim.betas.1' is required"),
        ("optim.betas=[0.9, 2]", "'optim.betas.1': Input should be less than 1, got 2"),
        ("optim.part_lr.visoin=1", "optim.part_lr: no part 'visoin'; allowed: vision, connector, language, head"),
        (
            "method=ppo",
            "'method': Input should be 'dyme', 'grpo', 'sft', 'two_stage', 'interleaved', 'progressive' or 'mixed'",
        ),
        ("rollout.group_size=1", "'rollout.group_size': Input should be greater than or equal to 2, got 1"),
        ("rollout.group_size=4.5", "'rollout.group_size': Input should be a valid integer"),
        ("rollout.top_p=0", "'rollout.top_p': Input should be greater than 0"),
        ("run.tensorboard=perhaps", "'run.tensorboard': Input should be a valid boolean"),
        ("run.seed=1e3", "'run.seed': Input should be a valid integer"),
        ("model.freeze=vision", "'model.freeze': write a list ([a, b]), got 'vision'"),
        ("model.freeze=[vison]", "'model.freeze.0': Input should be 'vision', 'connector', 'language' or 'head'"),
        ("selector.name=varience", "'selector.name': Input should be 'variance'"),
        ("data.train={source: jsonl, path: x, fields: {answr: a}}", "'data.train.fields.answr': Input should be 'id'"),
    ],
)
def test_wrong_values(minimal, override, text):
    assert text in mistake(minimal, override)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model.path=null"], "set exactly one of model.path (a local checkpoint) and model.from_scratch"),
        (["model.from_scratch={}"], "set exactly one of model.path"),
        (["prompt.style=direct"], "method=dyme needs prompt.style=think"),
        (["prompt.template=hello"], "prompt.template must contain {question}"),
        (["prompt.choices_template=pick"], "prompt.choices_template must contain {choices}"),
        (["prompt.answer_flag= ' '"], "prompt.answer_flag must not be blank"),
        (["objective.preset=grpo", "objective.surrogate=clip"], "objective.preset replaces objective.surrogate"),
        (["objective.preset=grpo", "objective.normalization=row"], "objective.preset replaces"),
        (["method=sft", "objective.beta=0.1"], "objective.beta=0.1 needs explored rows of one policy, method=sft"),
        (["method=two_stage", "objective.beta=0.1"], "from the first one's export"),
        (["method=interleaved", "objective.beta={start: 0, end: 0.1, steps: 5}"], "method=interleaved has none"),
        (["objective.beta=-0.1"], "objective.beta must not be negative"),
        (["objective.beta={start: 0.1, end: -1, steps: 5}"], "objective.beta must not be negative"),
        (["method=mixed", "rollout.prompts_per_step=1"], "rollout.prompts_per_step must be 2 at least"),
        (["selector.peak=0.1", "selector.valley=0.2"], "selector.valley=0.2 is above selector.peak=0.1"),
        (["method=mixed", "rollout.prompts_per_step=1"], "rollout.prompts_per_step must be 2 at least"),
        (["selector.peak=0.1", "selector.valley=0.2"], "selector.valley=0.2 is above selector.peak=0.1"),
        (["data.eval=null", "run.eval_every=5"], "run.eval_every needs data.eval"),
        (["method=sft", "prompt.style=direct", "memorize.on_missing_trace=skip"], "leaves nothing to train"),
        (["reward.weights={format: 0, thinking: 0, accuracy: 0}"], "every reward weight is 0"),
        (
            ["model={from_scratch: {hidden_size: 30}}"],
            "model.from_scratch.hidden_size=30 must be a multiple of heads=4",
        ),
        (["model={from_scratch: {hidden_size: 12}}"], "hidden_size / heads = 3 must be even"),
        (["model={from_scratch: {vision_hidden_size: 30}}"], "vision_hidden_size=30 must be a multiple of heads=4"),
        (
            ["model={from_scratch: {image_size: 36}}"],
            "image_size=36 must be a multiple of patch_size * scale_factor = 8",
        ),
    ],
)
def test_impossible_combinations(minimal, overrides, text):
    assert text in mistake(minimal, *overrides)


# --- overrides ----------


def test_override_values(minimal):
    cfg = load_config(
        minimal,
        [
            "optim.lr=1e-4",
            "optim.betas=[0.8, 0.99]",
            "data.eval=null",
            "run.tensorboard=off",
            "model.freeze=[vision, connector]",
        ],
    )
    assert (cfg.optim.lr, cfg.optim.betas, cfg.data.eval) == (1e-4, (0.8, 0.99), None)
    assert (cfg.run.tensorboard, cfg.model.freeze) == (False, ("vision", "connector"))


def test_override_creates_what_is_not_there(minimal, tmp_path):
    cfg = load_config(minimal, ["reward.weights.format=2", "optim.part_lr.vision=1e-6"])
    assert cfg.reward.weights.format == 2.0 and cfg.optim.part_lr == {"vision": 1e-6}
    empty = write(tmp_path, {**MINIMAL, "optim": None, "run": None})
    assert load_config(empty, ["optim.lr=1e-3"]).optim.lr == 1e-3


def test_later_overrides_win_and_the_file_stays(minimal):
    before = minimal.read_text()
    assert load_config(minimal, ["run.seed=1", "run.seed=2"]).run.seed == 2
    assert minimal.read_text() == before and load_config(minimal).run.seed == 0


def test_text_stays_text(minimal):
    """A name that looks like a number to Python is a name where one is wanted."""
    cfg = load_config(
        minimal, ["run.dir=1e5", "prompt.answer_flag=inf", "run.wandb=a=b", "prompt.template='{question}: ?'"]
    )
    assert (cfg.run.dir, cfg.prompt.answer_flag, cfg.run.wandb, cfg.prompt.template) == (
        "1e5",
        "inf",
        "a=b",
        "{question}: ?",
    )


@pytest.mark.parametrize("override", ["optim.lr", "=1", "optim..lr=1", ".lr=1"])
def test_malformed_override(minimal, override):
    assert mistake(minimal, override) == f"override '{override}': write key.sub=value"


def test_override_that_cannot_be_placed(minimal):
    assert "'path' is a plain value and has no keys" in mistake(minimal, "model.path.x=1")
    assert "not valid YAML" in mistake(minimal, "optim.betas=[1")


def test_valid_keys_are_dotted():
    keys = valid_keys(RunConfig)
    assert {
        "method",
        "optim.lr",
        "data.train.count",
        "reward.weights.format",
        "model.from_scratch.tokenizer_sources.path",
    } <= set(keys)
    assert len(keys) == len(set(keys))


# --- the launcher ----------


def launch(*arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    run = "runpy.run_path('launchers/train.py', run_name='__main__')"
    code = f"import sys, runpy; {prelude}sys.argv = {['train.py', *arguments]!r}; {run}"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


def test_print_config_needs_no_torch(tmp_path):
    forbid = "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'deepspeed'])); "  # importing them fails
    done = launch(
        "--print_config",
        "--config",
        "configs/quickstart.yaml",
        "optim.lr=3e-4",
        "--deepspeed_config",
        "ds.json",
        prelude=forbid,
    )
    assert done.returncode == 0 and done.stderr == ""
    cfg = load_config(write(tmp_path, done.stdout))
    assert (cfg.optim.lr, cfg.deepspeed, cfg.run.dir) == (3e-4, "ds.json", "runs/quickstart")


def test_a_bad_key_is_one_line_and_exit_code_2():
    done = launch("--config", "configs/quickstart.yaml", "optim.lrr=3")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(
        "error: configs/quickstart.yaml: unknown key 'optim.lrr'"
    )


def test_other_ranks_of_a_node_wait_in_silence(monkeypatch):
    """Rank 0 of each node says a mistake; the others sleep until their launcher ends them."""
    asleep = "import os, time; time.sleep = lambda seconds: os._exit(7); "
    monkeypatch.setenv("RANK", "3")
    for local, code, lines in (("0", 2, 1), ("1", 7, 0)):
        monkeypatch.setenv("LOCAL_RANK", local)
        done = launch("--config", "configs/quickstart.yaml", "optim.lrr=3", prelude=asleep)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", lines)


def test_changed_keys():
    before = "method: dyme\noptim: {lr: 0.1, betas: [0.9, 0.95]}\nrun: {seed: 0}\n"
    after = "method: dyme\noptim: {lr: 0.2, betas: [0.9, 0.95], eps: 0.1}\n"
    assert changed_keys(before, after) == ["optim.eps", "optim.lr", "run.seed"]
    assert changed_keys(before, before) == []


@pytest.mark.parametrize(("system", "told"), [(" ", "must not be blank"), ("a <image>", "must not contain <image>")])
def test_system_prompts_that_cannot_be(system, told):
    with pytest.raises(ValueError, match=told):
        PromptConfig(system=system)
    assert PromptConfig().system is None and PromptConfig(system="You read charts.").system
