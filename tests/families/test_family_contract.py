"""What every family promises: prompts, replies, stops, parts, and checkpoints that other programs open."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerFast

from dyme.batching.packing import pack
from dyme.families import IMAGE, Family, build_family, load_family
from dyme.families.causal_lm import CausalLM
from tests.helpers.processors import open_processor

TEXTS = ["What is the value of bar one?", "the red bar is 4.\nAnswer: 4", "Ünïcode ☃"]
REPLIES = ["4", "the bar is 12.5 %\nAnswer: 12.5", "Ünïcode ☃ and <b>more</b>", "trailing space ", "a  b"]
NAMES = ["causal_lm", "idefics3"]


def build(name: str, spec: SimpleNamespace) -> tuple[Family, nn.Module]:
    torch.manual_seed(3)
    family, model = build_family(name, spec, TEXTS)
    return family, model.eval()


@pytest.fixture(scope="module", params=NAMES)
def built(request, tiny_spec) -> tuple[Family, nn.Module]:
    return build(request.param, tiny_spec)


def picture(family: Family, color: str = "red") -> list[Image.Image]:
    return [Image.new("RGB", (40, 24), color)] if IMAGE in family.modalities else []


def conversation(family: Family, question: str, reply: str | None, **options) -> list[int]:
    """Token ids of the whole chat, by the processor itself."""
    messages = family.messages(question, picture(family))
    if reply is not None:
        parts = isinstance(messages[0]["content"], list)
        messages += [{"role": "assistant", "content": [{"type": "text", "text": reply}] if parts else reply}]
    out = family.processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    ids = out["input_ids"]
    return list(ids[0] if isinstance(ids[0], list) else ids)


def test_encode_is_the_processors_chat_template(built):
    family, _ = built
    prompt = family.encode("How tall is it?", picture(family))
    assert prompt.input_ids.tolist() == conversation(family, "How tall is it?", None, add_generation_prompt=True)
    assert prompt.input_ids.dtype == torch.int64 and len(prompt) == prompt.input_ids.numel()
    assert prompt.modalities == family.modalities == frozenset(prompt.pixels and {IMAGE})


@pytest.mark.parametrize("reply", REPLIES)
def test_prompt_and_reply_are_the_full_conversation(built, reply):
    """What is memorized is what the chat template would have written, token for token."""
    family, _ = built
    question = "What is the value of bar one?"
    ours = [*family.encode(question, picture(family)).input_ids.tolist(), *family.encode_reply(reply)]
    full = conversation(family, question, reply)
    assert full[: len(ours)] == ours
    assert family.tokenizer.decode(full[len(ours) :]).strip() == ""  # the template may end a turn with a newline


@pytest.mark.parametrize("reply", REPLIES)
def test_replies_decode_to_themselves(built, reply):
    family, _ = built
    ids = family.encode_reply(reply)
    assert family.decode(ids) == reply.strip() and ids[-1] == family.end_of_turn
    assert not set(ids) & set(family.forbidden_ids)  # a rollout could have produced it


def test_end_of_turn_and_stops(built):
    family, _ = built
    assert family.tokenizer.convert_ids_to_tokens(family.end_of_turn) == "<end_of_utterance>"
    assert family.end_of_turn in family.stop_ids and family.tokenizer.eos_token_id in family.stop_ids
    assert family.encode_reply("x").count(family.end_of_turn) == 1


def test_end_of_turn_may_differ_from_eos(tiny_spec):
    """SmolVLM and Qwen end turns with one token and texts with another: both stop, and the turn's end is trained."""
    family, _ = build("causal_lm", tiny_spec)
    family.tokenizer.eos_token = "<|endoftext|>"
    assert family.tokenizer.convert_ids_to_tokens(list(family.stop_ids)) == ["<end_of_utterance>", "<|endoftext|>"]
    assert not set(family.stop_ids) & set(family.forbidden_ids)
    assert family.encode_reply("x")[-1] == family.end_of_turn != family.tokenizer.eos_token_id


def test_a_template_that_starts_replies_otherwise_than_its_generation_prompt(tiny_spec):
    """Replies follow the generation prompt; what ends them comes from the template all the same."""
    family, _ = build("causal_lm", tiny_spec)
    family.tokenizer.eos_token = "<|endoftext|>"
    family.tokenizer.chat_template = family.tokenizer.chat_template.replace(
        "{{ message['role'] }}\n", "{{ message['role'] }} "
    )
    assert family.tokenizer.decode(family.encode_reply("4")) == "4<end_of_utterance>"
    assert family.tokenizer.convert_ids_to_tokens(list(family.stop_ids)) == ["<end_of_utterance>", "<|endoftext|>"]


@pytest.mark.parametrize("style", ["normalizer", "metaspace"])
def test_replies_of_sentencepiece_tokenizers(style):
    """Those of Llama 2 and TinyLlama put a space before a text, which a reply does not begin with."""
    family = CausalLM(sentencepiece(style), LlamaConfig())
    for reply in REPLIES:
        ours = [*family.encode("How tall is it?").input_ids.tolist(), *family.encode_reply(reply)]
        assert conversation(family, "How tall is it?", reply)[: len(ours)] == ours


def sentencepiece(style: str) -> PreTrainedTokenizerFast:
    """As transformers converts it, with the chat template of TinyLlama."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if style == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        TEXTS * 20, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    template = (
        "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    names = dict(eos_token="</s>", bos_token="<s>", unk_token="<unk>", pad_token="</s>")
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names)


def test_forbidden_tokens(built):
    family, model = built
    assert family.vocab_size == family.head(model).weight.shape[0]
    specials = set(family.tokenizer.all_special_ids)
    assert specials - set(family.stop_ids) <= set(family.forbidden_ids) and family.pad_id in family.forbidden_ids
    ordinary = set(family.tokenizer("the value of 12 bars", add_special_tokens=False)["input_ids"])
    assert not ordinary & set(family.forbidden_ids)


def test_padded_vocabulary_is_forbidden(tiny_spec):
    family, model = build("causal_lm", tiny_spec)
    model.resize_token_embeddings(len(family.tokenizer) + 5)
    family.config = model.config
    assert set(family.forbidden_ids) >= set(range(len(family.tokenizer), len(family.tokenizer) + 5))


def test_parts_hold_every_parameter(built):
    family, model = built
    held = {id(p) for part in family.parts(model).values() for p in part.parameters()}
    assert held == {id(p) for p in model.parameters()}
    assert set(family.parts(model)) >= {"language", "head"}
    assert ("vision" in family.parts(model)) == (IMAGE in family.modalities)


def test_anchors(built):
    family, _ = built
    assert set(family.anchors) == ({frozenset(), frozenset({IMAGE})} if family.modalities else {frozenset()})
    assert all(prompt.modalities == key for key, prompt in family.anchors.items())


def test_hidden_and_head_are_the_stock_forward(built):
    family, model = built
    prompt = family.encode("How tall?", picture(family))
    positions, start = family.prompt_positions(prompt)
    batch = pack(family, [(prompt, ())], prompt.modalities)
    with torch.no_grad():
        hidden = family.hidden(
            model,
            prompt.input_ids[None],
            family.attention_mask(model, batch.layout),
            positions[None],
            family.collate_pixels([prompt]),
        )
        stock = model(input_ids=prompt.input_ids[None], **prompt.pixels).logits
    assert start == len(prompt)
    assert torch.allclose(family.head(model)(hidden), stock, atol=1e-5)


# --- checkpoints ----------


def logits(family: Family, model: nn.Module) -> torch.Tensor:
    prompt = family.encode("How tall?", picture(family))
    with torch.no_grad():
        return model(input_ids=prompt.input_ids[None], **prompt.pixels).logits


def test_export_and_load(built, tmp_path):
    family, model = built
    model.save_pretrained(tmp_path)
    family.export(tmp_path)
    again, loaded = load_family(str(tmp_path))
    assert type(again) is type(family)
    assert torch.equal(logits(again, loaded.eval()), logits(family, model))
    for what in ("stop_ids", "forbidden_ids", "pad_id", "vocab_size"):
        assert getattr(again, what) == getattr(family, what), what
    assert again.encode_reply(REPLIES[1]) == family.encode_reply(REPLIES[1])
    assert load_family(str(tmp_path), dtype="bf16")[1].dtype == torch.bfloat16


def test_exports_open_with_the_auto_classes(built, tmp_path):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    family, model = built
    model.save_pretrained(tmp_path)
    family.export(tmp_path)
    if IMAGE in family.modalities:
        opened, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), open_processor(tmp_path)
    else:
        opened, processor = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    out = processor.apply_chat_template(
        family.messages("How tall?", picture(family)),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        assert torch.equal(opened.eval()(**out).logits, logits(family, model))


def test_the_same_seed_builds_the_same_model(tiny_spec, built):
    family, model = built
    again, other = build(family.name, tiny_spec)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert again.tokenizer.get_vocab() == family.tokenizer.get_vocab()
