"""Control tokens that a user's text quotes stay text, in every family; the system prompt."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, LlamaConfig, PreTrainedTokenizerFast

from dyme.batching.packing import pack
from dyme.families import PromptError, load_family
from dyme.families.causal_lm import CausalLM
from dyme.families.quotes import split_ids
from dyme.rollout.types import RolloutRequest, Sampling
from tests.helpers.generating import generate
from tests.helpers.groups import NONE, picture, sees
from tests.helpers.packed import packed_logprobs

QUIET = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SYSTEM = "You answer in French."


def controls(family) -> list[str]:
    """`<image>` in a question is the place of a picture."""
    return sorted(family.control_tokens - {"<image>"})


def counts(family, ids) -> Counter[str]:
    names = family.tokenizer.convert_ids_to_tokens([int(i) for i in ids])
    return Counter(name for name in names if name in family.control_tokens)


def shown(family) -> list:
    return [picture(0)] if sees(family) else []


def test_control_tokens(opened):
    family, _ = opened
    end = family.tokenizer.convert_ids_to_tokens(family.end_of_turn)
    assert {end, family.tokenizer.eos_token} <= family.control_tokens
    assert {*family.image_texts, family.placeholder} - {""} <= family.control_tokens
    assert not {"<b>", "the", "", "\n"} & family.control_tokens
    if family.name == "causal_lm" and "<think>" in family.tokenizer.get_vocab():
        assert {"<think>", "</think>"} <= family.control_tokens, "the chat template writes them"


def test_quotes_are_text(opened):
    """All of them in one question, touching words and each other: as many control tokens as in an ordinary one, the
    same pictures, and the question is read back."""
    family, model = opened
    quoted = controls(family)
    question = f"Why does {quoted[0]}user write{' and '.join(quoted)}? {''.join(quoted)}{quoted[-1]}x"
    images = shown(family)
    plain, prompt = family.encode("Why?", images), family.encode(question, images)
    assert counts(family, prompt.input_ids) == counts(family, plain.input_ids)
    assert question in family.tokenizer.decode(prompt.input_ids)
    assert prompt.input_ids.dtype == plain.input_ids.dtype and int(prompt.input_ids.max()) < family.vocab_size
    assert all(torch.equal(prompt.pixels[key], plain.pixels[key]) for key in plain.pixels)
    again = family.encode(question, images)
    assert torch.equal(prompt.input_ids, again.input_ids)
    assert torch.equal(family.encode("Why?", images).input_ids, plain.input_ids), "nothing is left behind"
    (rollout,) = generate(family, model, [RolloutRequest(prompt)], Sampling(4, temperature=0.0))
    assert len(rollout.tokens) >= 1
    reply = family.encode_reply(question)
    with torch.no_grad():
        assert torch.isfinite(packed_logprobs(family, model, pack(family, [(prompt, [reply])], NONE))).all()


def test_quotes_in_a_reply_are_text(opened):
    family, _ = opened
    special = [token for token in controls(family) if token not in ("<think>", "</think>")]
    reply = f"it writes {' and '.join(special)}."
    ids = family.encode_reply(reply)
    assert counts(family, ids) == counts(family, family.encode_reply("x")), "one end of turn"
    assert family.decode(ids) == reply


def test_other_threads_quote_too(opened):
    family, _ = opened
    question = f"What is {controls(family)[0]}?"
    expected = family.encode(question).input_ids
    apart = family.apart()
    assert torch.equal(apart.encode(question).input_ids, expected)
    assert apart._quotes is not family._quotes


@pytest.mark.parametrize("name", ["smolvlm2", "qwen2.5-vl", "gemma3", "qwen3", "llava-onevision"])
def test_any_mixture(checkpoint, name):
    """Whole tokens, halves of tokens and ordinary text in any order; what quotes nothing keeps its ids to the bit."""
    family, _ = load_family(checkpoint(name))
    quoted = controls(family)[:8]  # of tags that differ in a number
    pieces = st.one_of(
        st.sampled_from(quoted),
        st.sampled_from(quoted).map(lambda token: token[: len(token) // 2]),
        st.sampled_from(quoted).map(lambda token: token[1:]),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=6),
        st.sampled_from([" ", "\n", "<", "|", "<|", "4 bars", "<b>"]),
    )

    @settings(max_examples=30, **QUIET)
    @given(st.lists(pieces, min_size=1, max_size=8).map("".join))
    def holds(text: str) -> None:
        if not text.strip() or "<image>" in text:
            return
        ids = family.encode(text).input_ids
        assert counts(family, ids) == counts(family, family.encode("a").input_ids)
        if not any(token in text for token in family.control_tokens):
            chat = family.messages(text)
            out = family.processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            assert torch.equal(ids, out["input_ids"][0])

    holds()


def test_an_image_token_without_a_picture(opened):
    """The processor would look for a picture there, or count placeholders."""
    family, _ = opened
    tokens = [token for token in (family.placeholder, *family.image_texts) if token not in ("", "<image>")]
    if not sees(family) or not tokens:
        pytest.skip("no image token but <image>")
    ids = family.encode(f"What is {' '.join(tokens)}?").input_ids
    assert not (ids == family.config.image_token_id).any() and " ".join(tokens) in family.tokenizer.decode(ids)
    two = [picture(0), picture(1)]
    text = f"<image> {tokens[0]} <image> and {tokens[-1]}"
    placed, plain = family.encode(text, two), family.encode("<image> a <image> and b", two)
    assert counts(family, placed.input_ids) == counts(family, plain.input_ids)


def test_tokens_that_are_not_special(checkpoint):
    """A tokenizer keeps them whole even where special tokens are split."""
    family, _ = load_family(checkpoint("qwen3"))
    think = family.tokenizer.convert_tokens_to_ids("<think>")
    assert think in split_ids(family.tokenizer, "a <think> b")
    assert think not in family.encode("a <think> b").input_ids
    assert think in family.encode_reply("<think>so</think> 4"), "a reply has the tokens that the model generates"
    # an added token that the chat template does not write is a word
    family.tokenizer.add_tokens([AddedToken("<word>", special=False)])
    assert "<word>" not in type(family)(family.processor, family.config).control_tokens


def with_tokens(folder: Path, **settings: object) -> Path:
    """Changes the added tokens of a copied checkpoint."""
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    fields["normalizer"] = settings.pop("normalizer", fields["normalizer"])
    for token in fields["added_tokens"]:
        token |= settings
    file.write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("name", ["llama", "qwen2.5-vl", "smolvlm2"])
@pytest.mark.parametrize("kind", ["NFKC", "Lowercase"])
def test_tokens_that_are_looked_for_after_the_normalizer(checkpoint, tmp_path, name, kind):
    """Full-width letters, or capitals, would become control tokens."""
    copied = Path(shutil.copytree(checkpoint(name), tmp_path / "model"))
    family, _ = load_family(with_tokens(copied, normalized=True, normalizer={"type": kind}))
    plain = counts(family, family.encode("Why?").input_ids)
    for token in controls(family)[:8]:
        wide = "".join(chr(ord(c) + 0xFEE0) for c in token)
        for quote in (wide, token.upper(), f"{wide} {token}", f"  {wide}{token} "):
            assert counts(family, family.encode(f"a {quote} b").input_ids) == plain, quote
            assert counts(family, family.encode(quote).input_ids) == plain, quote
            assert counts(family, family.encode_reply(quote)) == counts(family, family.encode_reply("x")), quote


def test_turn_tokens_that_are_not_special(checkpoint, tmp_path):
    """Such as those of the distilled DeepSeek-R1. Only tags in pairs belong in replies."""
    copied = Path(shutil.copytree(checkpoint("qwen3"), tmp_path / "model"))
    family, _ = load_family(with_tokens(copied, special=False))
    start = family.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in family._special_ids and start in family.forbidden_ids
    reply = "<think>the text says <|im_start|>user</think> 4"
    ids = family.encode_reply(reply)
    assert start not in ids and family.tokenizer.convert_tokens_to_ids("<think>") in ids
    assert family.decode(ids) == reply
    assert counts(family, family.encode(reply).input_ids) == counts(family, family.encode("x").input_ids)


def test_image_tokens_that_are_not_special(checkpoint):
    family, _ = load_family(checkpoint("llama"))
    family.tokenizer.add_tokens([AddedToken("<video>", special=False, normalized=False)])
    video = family.tokenizer.convert_tokens_to_ids("<video>")
    family = type("Sees", (type(family),), {"image_texts": ("<video>",)})(family.processor, family.config)
    for ids in (family.encode("a <video> b").input_ids.tolist(), family.encode_reply("a <video> b")):
        assert video not in ids and "a <video> b" in family.tokenizer.decode(ids)


def test_a_chat_template_that_changes_texts(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("message['content']", "message['content'] | upper"))
    family, _ = load_family(folder)
    family.encode("what is 4?")
    with pytest.raises(ValueError, match=r"the chat template changes .* take them out of the text"):
        family.encode("what is <|im_end|>?")


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def sentencepiece(kind: str) -> PreTrainedTokenizerFast:
    """BPE with blanks as in Llama 2: one before the first word, before every stretch of text, or by a normalizer."""
    held = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if kind == "prepend":
        held.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        held.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=reserved, show_progress=False)
    held.train_from_iterator(["user why and assistant system ? x < > / s"] * 30, trainer)
    blank = decoders.Replace("▁", " ")
    held.decoder = decoders.Sequence([blank, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=held, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["first", "always", "prepend", "python"])
def test_other_tokenizers(kind):
    """SentencePiece puts blanks before texts; some tokenizers are written in Python."""
    tokenizer = ByT5Tokenizer() if kind == "python" else sentencepiece(kind)
    tokenizer.add_tokens([AddedToken("<s>", special=True)], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    family = CausalLM(tokenizer, LlamaConfig(vocab_size=len(tokenizer)))
    question = "why </s>and <s>x</s> ?"
    prompt = family.encode(question).input_ids
    assert counts(family, prompt)["<s>"] == 2 and counts(family, prompt)["</s>"] == 1
    assert question in tokenizer.decode(prompt)
    assert family.decode(family.encode_reply(question)) == question


# --- the system prompt ----------


def test_system(opened):
    family, _ = opened
    images = shown(family)
    plain, told = family.encode("Why?", images), family.encode("Why?", images, SYSTEM)
    assert torch.equal(family.encode("Why?", images, None).input_ids, plain.input_ids)
    text = family.tokenizer.decode(told.input_ids)
    assert text.count(SYSTEM) == 1 and text.index(SYSTEM) < text.index("Why?") and told.system == SYSTEM
    assert counts(family, told.input_ids)[family.placeholder] == counts(family, plain.input_ids)[family.placeholder]
    if "gemma3" in family.config.model_type:  # as published: before the text of the user turn
        assert f"user\n{SYSTEM}\n\n" in text and counts(family, told.input_ids) == counts(family, plain.input_ids)


def test_quotes_in_the_system_prompt(opened):
    family, _ = opened
    quoted = controls(family)
    system, question = f"Never write {' '.join(quoted)}.", f"What is {' '.join(reversed(quoted))}?"
    told = family.encode(question, shown(family), system)
    assert counts(family, told.input_ids) == counts(family, family.encode("a", shown(family), "b").input_ids)
    text = family.tokenizer.decode(told.input_ids)
    assert system in text and question in text


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("name", ["llama", "smolvlm2"])
def test_a_chat_template_without_a_system_role(checkpoint, tmp_path, name, refuses):
    folder = shutil.copytree(checkpoint(name), tmp_path / "model")
    file = folder / "chat_template.jinja"
    says = "{{ raise_exception('no system role') }}" if refuses else ""
    file.write_text(
        "{% if messages[0]['role'] == 'system' %}" + says + "{% set messages = messages[1:] %}{% endif %}"
        + file.read_text()
    )  # fmt: skip
    family, _ = load_family(folder)
    assert not family.has_system_role
    told, plain = family.encode("Why?", (), SYSTEM), family.encode(f"{SYSTEM}\n\nWhy?")
    assert torch.equal(told.input_ids, plain.input_ids)
    if sees(family):
        placed = family.encode("Here <image> is?", [picture(0)], SYSTEM)
        assert torch.equal(placed.input_ids, family.encode(f"{SYSTEM}\n\nHere <image> is?", [picture(0)]).input_ids)


def test_too_few_pictures_stay_an_error(opened):
    family, _ = opened
    if sees(family):
        with pytest.raises(PromptError, match="2 image placeholders"):
            family.encode("<image> or <image>?", [picture(0)])


def test_the_original_is_not_touched(opened):
    family, _ = opened
    before = len(family.tokenizer), copy.copy(family.forbidden_ids)
    family.encode(f"What is {controls(family)[0]}?")
    assert (len(family.tokenizer), family.forbidden_ids) == before
