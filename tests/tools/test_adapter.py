"""Adapters of peft: refused as a model with the mend, merged by the command that the mend names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from dyme.families import ModelError, load_family, open_family
from dyme.predict.__main__ import main as predict
from dyme.tools.check.__main__ import main as check
from dyme.tools.merge import main as merge


@pytest.fixture(params=["llama", "qwen2.5-vl"])
def trained(request, checkpoint, tmp_path) -> tuple[Path, Path, torch.nn.Module]:
    """A model, the folder of an adapter of it, and peft's own model of both."""
    model = checkpoint(request.param)
    kind = AutoModelForCausalLM if request.param == "llama" else AutoModelForImageTextToText
    targets = r".*(language_model|^model)\.?.*layers\.\d+\.self_attn\.(q|v)_proj"
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets)
    adapted = peft.get_peft_model(kind.from_pretrained(model, dtype=torch.float32), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter", adapted.eval()


def said_by(capsys, command, *arguments: object) -> str:
    capsys.readouterr()
    assert command([*map(str, arguments)]) != 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_an_adapter_is_no_model(trained, capsys):
    model, adapter, _ = trained
    mend = f"merge it into {model} (python -m dyme.tools.merge MODEL ADAPTER --out DIR)"
    for call in (load_family, open_family):
        with pytest.raises(ModelError) as caught:
            call(adapter)
        assert f"{adapter} holds an adapter without its model: {mend}" in str(caught.value)
    assert mend in said_by(capsys, check, adapter)
    assert mend in said_by(capsys, predict, "--model", adapter, "why?")


def test_the_merged_model(trained, tmp_path, capsys):
    model, adapter, adapted = trained
    tokens = json.loads((model / "tokenizer.json").read_text())  # as another version of transformers saves it
    (adapter / "tokenizer.json").write_text(json.dumps(tokens | {"padding": {"length": 3}}))
    (adapter / "dyme.json").write_text('{"format": 1, "max_new_tokens": 7}')
    assert merge([str(model), str(adapter), "--out", str(tmp_path / "out")]) == 0
    family, merged = load_family(tmp_path / "out")
    ids = family.encode("What is the value of bar one?").input_ids[None]
    with torch.no_grad():
        ours, theirs = merged.eval()(input_ids=ids).logits, adapted(input_ids=ids).logits
        plain = load_family(model)[1].eval()(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, plain, atol=1e-2)
    assert json.loads((tmp_path / "out" / "dyme.json").read_text())["max_new_tokens"] == 7
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert {name: w.dtype for name, w in before.items()} == {name: w.dtype for name, w in after.items()}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    decodes = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (decodes["do_sample"], decodes["max_new_tokens"]) == (False, 7)
    assert decodes["eos_token_id"] == list(family.stop_ids) and decodes["suppress_tokens"] == list(family.forbidden_ids)
    assert "is there already" in said_by(capsys, merge, model, adapter, "--out", tmp_path / "out")


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
@pytest.mark.parametrize("own", [None, '{"do_sample": false, "temperature": 0.6}', "[]"])
def test_a_model_that_is_no_export_keeps_its_generation_config(trained, tmp_path, own):
    """Also one that transformers refuses to save or to read."""
    model = Path(shutil.copytree(trained[0], tmp_path / "model"))
    file = model / "generation_config.json"
    file.unlink(missing_ok=True)
    if own is not None:
        file.write_text(own)
    assert merge([str(model), str(trained[1]), "--out", str(tmp_path / "out")]) == 0
    made = tmp_path / "out" / "generation_config.json"
    assert (made.read_text() if made.exists() else None) == own


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_an_adapter_with_a_copy_of_config_json(trained, tmp_path):
    model, adapter, _ = trained
    shutil.copy(model / "config.json", adapter)
    assert merge([str(model), str(adapter), "--out", str(tmp_path / "out")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_adapters_that_do_not_fit(trained, checkpoint, tmp_path, capsys):
    model, adapter, _ = trained
    out = ("--out", tmp_path / "out")
    assert "does not fit" in said_by(capsys, merge, checkpoint("smolvlm-v1"), adapter, *out)
    tokens = json.loads((model / "tokenizer.json").read_text())
    tokens["added_tokens"][0]["content"] = "<new>"
    (adapter / "tokenizer.json").write_text(json.dumps(tokens))
    assert "tokenizer.json of" in said_by(capsys, merge, model, adapter, *out)
    shutil.copy(model / "tokenizer.json", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), adapter / "adapter_model.safetensors")
    assert "1 of its weights have no place or are missing" in said_by(capsys, merge, model, adapter, *out)
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors does not exist" in said_by(capsys, merge, model, adapter, *out)
    assert not (tmp_path / "out").exists()
