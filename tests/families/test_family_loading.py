"""Checkpoints that cannot be opened, and tokenizers trained from scratch."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.families import ModelError, build_family, load_family
from dyme.families.scratch import train_tokenizer

TEXTS = ["What is the value of bar 12?", "the red bar is 4.\nAnswer: 4"]


def refused(folder, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_family(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def config(folder, text: object):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


def test_a_missing_folder(tmp_path):
    assert "does not exist: give a local Hugging Face checkpoint folder" in refused(tmp_path / "none")
    assert "config.json does not exist" in refused(tmp_path)


@pytest.mark.parametrize("text", ["{broken", "", '{"model_type": "llama"'])
def test_broken_json(tmp_path, text):
    assert "config.json: not valid JSON" in refused(config(tmp_path, text))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_type": "idefics2"}, "model_type 'idefics2' is not supported; nearest: 'idefics3'; supported: "),
        ({"model_type": "lama"}, "nearest: 'llama'"),
        ({"model_type": "xyz"}, "model_type 'xyz' is not supported; supported: "),
        ({}, "model_type '' is not supported"),
        ([1, 2], "model_type '' is not supported"),
        (
            {"model_type": "lama", "auto_map": {}},
            "give the converted Hugging Face checkpoint (often named ",
        ),
        ({"model_type": "internvl_chat"}, "'internvl_chat' is not supported: it runs code of its own, give the conver"),
        ({"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"]}, ": it runs code of its own, give the con"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "the weights are quantized (awq)"),
    ],
)
def test_unsupported_models(tmp_path, fields, text):
    assert text in refused(config(tmp_path, fields))


def test_another_familys_checkpoint(tmp_path):
    """transformers would load it with fresh random weights and a warning."""
    message = refused(config(tmp_path, {"model_type": "llama"}), family="idefics3")
    assert "model_type 'llama' is of family 'causal_lm', not model.family=idefics3" in message


def test_an_empty_folder(tmp_path):
    assert f"{tmp_path}/tokenizer.json does not exist" in refused(config(tmp_path, {"model_type": "llama"}))


# --- tokenizers ----------

TOKENIZER = train_tokenizer(TEXTS, 320, ["<image>"])
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(UNICODE)
@settings(max_examples=200, deadline=None)
def test_lossless_on_any_text(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text
    assert max(ids, default=0) < len(TOKENIZER) <= 320


@pytest.mark.parametrize("text", ["3 . 5 , is n't it ?", " 12  34 ", "a\tb\r\nc", "1,234.50 €", "日本語 🎉", "\x00"])
def test_lossless_on_awkward_text(text):
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_digits_stand_alone():
    assert len(TOKENIZER("12", add_special_tokens=False)["input_ids"]) == 2
    assert len(TOKENIZER("123456", add_special_tokens=False)["input_ids"]) == 6


def test_special_tokens_are_single():
    for token in ("<image>", "<end_of_utterance>", "<|im_start|>", "<|pad|>"):
        assert len(TOKENIZER(f"a{token}b", add_special_tokens=False)["input_ids"]) == 3
    assert TOKENIZER.eos_token == "<end_of_utterance>" and TOKENIZER.pad_token == "<|pad|>"
    assert "<image>" not in TOKENIZER.decode(TOKENIZER("a<image>b")["input_ids"], skip_special_tokens=True)


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(TEXTS, 320, ["<image>"]).get_vocab() == TOKENIZER.get_vocab()


def test_too_small_a_vocabulary(tiny_spec):
    with pytest.raises(ModelError, match=r"model\.from_scratch\.vocab_size must be at least 261, got 260"):
        train_tokenizer(TEXTS, 260, ["<image>"])
    with pytest.raises(ModelError, match=r"vocab_size must be at least"):
        build_family("idefics3", SimpleNamespace(**{**vars(tiny_spec), "vocab_size": 270}), TEXTS)


def test_precision(tiny_spec):
    assert build_family("causal_lm", tiny_spec, TEXTS, "bf16")[1].dtype == torch.bfloat16


def test_an_unknown_family_is_named_with_the_nearest(tiny_spec):
    for call in (lambda: load_family("nowhere", "idefics"), lambda: build_family("idefics", tiny_spec, ["a"])):
        with pytest.raises(ModelError, match=r"unknown family 'idefics'; nearest: 'idefics3'; allowed: auto, idefics3"):
            call()
