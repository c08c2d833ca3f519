"""Gemma 3's masks against those of the stock model, its pictures and crops, its special tokens."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dyme.batching.packing import pack
from dyme.families import ModelError, Prompt, load_family
from tests.helpers.packed import packed_logprobs, separate_logprobs

NONE: frozenset[str] = frozenset()
WINDOW = 6


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module", params=["gemma3", "gemma3-large-pictures"])
def gemma(request, checkpoint):
    family, model = load_family(checkpoint(request.param))
    return family, model.double().eval()


@pytest.fixture(scope="module")
def plain(checkpoint):
    family, model = load_family(checkpoint("gemma3"))
    return family, model.eval()


def stock_masks(family, model, prompt, tokens: list[int]) -> dict[str, Tensor]:
    """What the stock forward gives its decoder, bool [L, L] for each kind of layer."""
    seen: dict[str, Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        separate_logprobs(family, model, prompt, tokens)
    hook.remove()
    return {kind: mask[0, 0] for kind, mask in seen.items()}


def test_masks_are_the_stock_models(gemma):
    """Both kinds of layers, two pictures; in one case a picture is longer than the window and is cut by it."""
    family, model = gemma
    features = family.config.mm_tokens_per_image
    prompt = family.encode("<image> and <image>, which?", pictures((16, 16), (20, 17)))
    blocks = family.image_blocks(prompt)
    assert [int((blocks == n).sum()) for n in range(-1, 3)][1:] == [features, features, 0]
    layout = pack(family, [(prompt, [[300, 301, 302]])], NONE).layout
    ours = {kind: mask[0, 0] for kind, mask in family.attention_mask(model, layout).items()}
    stock = stock_masks(family, model, prompt, [300, 301, 302])
    assert ours.keys() == stock.keys() == {"full_attention", "sliding_attention"}
    for kind in ours:
        assert torch.equal(ours[kind], stock[kind]), kind
    first, second = ((blocks == n).nonzero()[:, 0] for n in (0, 1))
    full, sliding = stock["full_attention"], stock["sliding_attention"]
    assert full[first[0], first[-1]] and full[second[-1], first[0]] and not full[first[-1], second[0]]
    assert sliding[first[0], first[-1]], "the window does not look ahead"
    assert bool(sliding[first[-1], first[0]]) == (features <= WINDOW), "it cuts what lies behind, in pictures too"


def test_a_wrong_mask_shows(gemma):
    """Pictures read causally, no window, and pictures exempt from the window give other log-probabilities."""
    family, model = gemma
    prompt = family.encode("Which is larger?", pictures((16, 16), (16, 20)))
    reply = [300, 301, 302]
    batch = pack(family, [(prompt, [reply])], NONE)
    with torch.no_grad():
        stock = separate_logprobs(family, model, prompt, reply)
        right = packed_logprobs(family, model, batch)
        causal = packed_logprobs(family, model, replace(batch, layout=replace(batch.layout, block=None)))
        # a token without depth is nowhere beyond the window
        endless = replace(batch.layout, depth=torch.zeros_like(batch.layout.depth))
        unlimited = packed_logprobs(family, model, replace(batch, layout=endless))
    assert (right - stock).abs().max() < 1e-6
    assert (causal - stock).abs().max() > 1e-3
    assert (unlimited - stock).abs().max() > 1e-3


def test_branches_count_the_window_from_the_prompt(gemma):
    """The second branch stands far behind the prompt in the sequence, but next to it in its own path."""
    family, model = gemma
    prompt = family.encode("Which?", pictures((16, 16)))
    branches = [list(range(300, 320)), [301, 302, 303, 304, 305, 306, 307, 308]]
    with torch.no_grad():
        apart = torch.cat([separate_logprobs(family, model, prompt, branch) for branch in branches])
        batch = pack(family, [(prompt, branches)], NONE)
        together = packed_logprobs(family, model, batch)
        along = replace(batch.layout, depth=torch.arange(batch.input_ids.shape[1])[None])
        wrong = packed_logprobs(family, model, replace(batch, layout=along))
    assert (together - apart).abs().max() < 1e-6
    assert (wrong - apart).abs().max() > 1e-3


def test_crops_count_as_pictures(plain):
    """The processor cuts crops only when a call asks for them, whatever preprocessor_config.json says; `encode` does
    not. Where they come, each is a picture of its own."""
    family, model = plain
    flat, square = pictures((70, 20), (16, 16))
    assert family.encode("What is it?", [flat]).pixels["pixel_values"].shape == (1, 3, 16, 16)
    text = family.processor.apply_chat_template(
        family.messages("<image>, then <image>?", [square, flat]), add_generation_prompt=True, tokenize=False
    )
    out = family.processor(
        text=text,
        images=[[square, flat]],
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=8,
        add_special_tokens=False,
        return_tensors="pt",
    )
    prompt = Prompt(out["input_ids"][0], {"pixel_values": out["pixel_values"]})
    assert "crops to help you see better" in family.tokenizer.decode(prompt.input_ids)
    assert len(prompt.pixels["pixel_values"]) == 6, "both pictures, and four crops of the flat one"
    family.check_placeholders(prompt)
    assert family.image_blocks(prompt).max() + 1 == 6
    assert torch.equal((family.image_blocks(prompt) >= 0).long(), out["token_type_ids"][0])
    branches = [[300, 301, 302], [303]]
    apart = torch.cat([separate_logprobs(family, model, prompt, branch) for branch in branches])
    assert (packed_logprobs(family, model, pack(family, [(prompt, branches)], NONE)) - apart).abs().max() < 1e-4


def test_one_bos(plain):
    """The template writes <bos>, and so does the tokenizer on every text."""
    family, _ = plain
    bos = family.tokenizer.bos_token_id
    assert family.tokenizer("a")["input_ids"][0] == bos
    for images in ([], pictures((16, 16)), pictures((16, 16), (30, 16))):
        ids = family.encode("What is it?", images).input_ids
        assert ids[0] == bos and int((ids == bos).sum()) == 1
        texts = family.tokenizer.decode(ids)
        assert texts.startswith("<bos><start_of_turn>user\n")
        assert texts.endswith("What is it?<end_of_turn>\n<start_of_turn>model\n")
    assert bos not in family.encode_reply("4")


def test_special_tokens(plain):
    family, _ = plain
    end, start, soft, boi, eoi = family.tokenizer.convert_tokens_to_ids(
        ["<end_of_turn>", "<start_of_turn>", "<image_soft_token>", "<start_of_image>", "<end_of_image>"]
    )
    assert end not in family.tokenizer.all_special_ids, "as published: special, without a name"
    assert family.end_of_turn == end and set(family.stop_ids) == {end, family.tokenizer.eos_token_id}
    assert {start, soft, boi, eoi} <= set(family.forbidden_ids)
    assert family.decode(family.encode_reply("so\nAnswer: 4")) == "so\nAnswer: 4"
    for token in ("<start_of_image>", "<end_of_image>", "<image_soft_token>"):
        assert not {soft, boi, eoi} & {*family.encode(f"What is {token}?").input_ids.tolist()}, "text, not a picture"


def test_another_tokenizers_files(plain):
    family, _ = plain
    config = copy.copy(family.config)
    config.image_token_index = family.config.boi_token_index
    with pytest.raises(ModelError, match=r"config\.json has image_token_id .* for '<image_soft_token>'"):
        type(family)(family.processor, config).check_tokens()


def test_generation_reads_pictures_both_ways(plain):
    """Padding on the left is no picture; without token types the prefill would be causal."""
    family, model = plain
    prompt = family.encode("Which?", pictures((16, 16)))
    padded = torch.cat([torch.full((3,), family.pad_id), prompt.input_ids])[None]
    types = family.generate_inputs([prompt], padded)["token_type_ids"]
    assert types.shape == padded.shape and torch.equal(types[0, 3:], (family.image_blocks(prompt) >= 0).long())
    assert not types[0, :3].any()
    ids = prompt.input_ids[None]
    with torch.no_grad():
        full = model(input_ids=ids, **family.generate_inputs([prompt], ids)).logits[0, -1]
        causal = model(input_ids=ids, **family.collate_pixels([prompt])).logits[0, -1]
    assert (full - causal).abs().max() > 1e-3
