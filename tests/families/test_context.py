"""How many tokens a model takes: its configuration, replies that cannot fit, prompts that leave too little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dyme.data import Record
from dyme.families import load_family
from dyme.families.context import context_of
from dyme.predict.__main__ import main as predict
from dyme.prompts import PromptCache, check_context
from dyme.settings.errors import ConfigError
from dyme.settings.prompt import PromptConfig
from dyme.tools.check.__main__ import main as check

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 64, "sliding_window": 16}, 64),
        ({"max_position_embeddings": 32_768, "rope_scaling": YARN}, 131_072),
        ({"max_position_embeddings": 131_072, "rope_parameters": YARN}, 131_072),
        ({"max_position_embeddings": 131_072, "rope_scaling": LLAMA3}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}, 4096),
        (
            {
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            32_768,
        ),
    ],
)
def test_context_of(fields, expected):
    assert context_of(SimpleNamespace(**fields)) == expected


@pytest.fixture(params=["llama", "smolvlm-v1"])
def short(request, checkpoint, tmp_path) -> Path:
    """A checkpoint with a context of 64 tokens, in config.json or in its text_config."""
    folder = Path(shutil.copytree(checkpoint(request.param), tmp_path / "model"))
    fields = json.loads((folder / "config.json").read_text())
    fields.get("text_config", fields)["max_position_embeddings"] = 64
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_replies_that_cannot_fit(short):
    family, _ = load_family(short)
    assert family.context == 64
    prompt = PromptConfig(template="{question}")
    with pytest.raises(ConfigError) as caught:
        check_context(family, prompt, 128)
    said = str(caught.value)
    assert said.startswith("rollout.max_new_tokens=128 exceeds the model's context of 64 tokens") and "\n" not in said
    shortest = len(family.encode("-"))
    check_context(family, prompt, 64 - shortest)
    with pytest.raises(ConfigError, match=f"lower it to {64 - shortest} at most"):
        check_context(family, prompt, 65 - shortest)
    with pytest.raises(ConfigError, match=r"shorten prompt.template or prompt.system"):
        check_context(family, PromptConfig(template="{question}", system="many words " * 40), 1)


def test_prompts_that_leave_too_little(short):
    """A row is left out with the reason; the others stay."""
    family, _ = load_family(short)
    said: list[str] = []
    cache = PromptCache(family, PromptConfig(template="{question}"), said.append, new_tokens=30)
    fits, long = (Record(id=id_, question=text, answers=("4",)) for id_, text in (("a", "Why?"), ("b", "why " * 60)))
    assert cache.encode(fits) is not None and cache.encode(long) is None
    length = len(family.encode("why " * 60))
    reason = f"its prompt of {length} tokens and a reply of 30 exceed the model's context of 64 tokens: lower max_new"
    assert cache.failed["b"].startswith(reason) and len(said) == 1
    exact = PromptCache(
        family, PromptConfig(template="{question}"), said.append, new_tokens=64 - len(family.encode("Why?"))
    )
    assert exact.encode(fits) is not None


def test_commands_refuse_in_one_line(short, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    tree = {"model": {"path": str(short)}, "data": {"train": {"source": "charts", "count": 1}}}
    tree |= {"rollout": {"max_new_tokens": 128}, "prompt": {"template": "{question}"}}
    config.write_text(yaml.safe_dump(tree))
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    tree["deepspeed"] = str(tmp_path / "ds.json")
    config.write_text(yaml.safe_dump(tree))
    capsys.readouterr()
    assert check([str(short), "--config", str(config)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("not usable: rollout.max_new_tokens=128 exceeds") and said.count("\n") == 1
    assert predict(["--model", str(short), "--template", "{question}", "--max_new_tokens", "128", "why?"]) == 2
    said = capsys.readouterr().err
    assert "predict: --max_new_tokens=128 exceeds the model's context of 64 tokens" in said
    assert predict(["--model", str(short), "--template", "{question}", "--max_new_tokens", "4", "why?"]) == 0
