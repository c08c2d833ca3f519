"""Masks of packed groups, dense and as FlexAttention's blocks, and which implementation is taken."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from packed import assert_close, gradients, packed_logprobs
from PIL import Image

from dyme.families import load_family
from dyme.families.attention import PADDING, PROMPT, Layout, resolve_attention, set_attention
from dyme.packing import pack

NONE: frozenset[str] = frozenset()


def layout(block: bool = False) -> Layout:
    """A prompt of 6, branches of 3 and 2, padding of 2; an image block at 1..4 of the prompt."""
    branch = torch.tensor([[PROMPT] * 6 + [0] * 3 + [1] * 2 + [PADDING] * 2])
    depth = torch.tensor([[*range(6), 6, 7, 8, 6, 7, 0, 0]])
    blocks = torch.full((1, 13), -1)
    blocks[0, 1:5] = 0
    return Layout(branch, depth, blocks if block else None)


def seen(mask: torch.Tensor, query: int) -> list[int]:
    return mask[0, 0, query].nonzero()[:, 0].tolist()


def test_who_sees_whom():
    mask = layout().dense()
    assert mask.shape == (1, 1, 13, 13) and mask.dtype == torch.bool
    assert seen(mask, 3) == [0, 1, 2, 3]
    assert seen(mask, 8) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert seen(mask, 10) == [0, 1, 2, 3, 4, 5, 9, 10]
    assert seen(mask, 11) == [11]


def test_windows_go_by_the_path():
    """The second branch stands three places behind the first in the sequence, not in its path."""
    mask = layout().dense(window=3)
    assert seen(mask, 5) == [3, 4, 5]
    assert seen(mask, 7) == [5, 6, 7]
    assert seen(mask, 9) == [4, 5, 9]


def test_image_blocks_look_both_ways():
    mask = layout(block=True).dense()
    assert seen(mask, 1) == [0, 1, 2, 3, 4] and seen(mask, 4) == [0, 1, 2, 3, 4]
    assert seen(mask, 0) == [0] and seen(mask, 5) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_block_masks_say_the_same(block, window):
    held = layout(block)
    blocks = held.block_mask(window)
    b, h, at = torch.tensor(0), torch.tensor(0), torch.arange(13)
    said = blocks.mask_mod(b, h, at[:, None], at[None, :])
    assert torch.equal(said, held.dense(window)[0, 0]) and blocks.shape == (1, 1, 13, 13)


@pytest.mark.parametrize(
    ("given", "cuda", "flash", "expected"),
    [
        (("auto", "auto", "bf16"), True, True, ("flash_attention_2", "flex_attention")),
        (("auto", "auto", "bf16"), True, False, ("sdpa", "flex_attention")),
        (("auto", "auto", "fp32"), True, True, ("sdpa", "flex_attention")),
        (("auto", "auto", "bf16"), False, True, ("sdpa", "sdpa")),
        (("sdpa", "sdpa", "bf16"), True, True, ("sdpa", "sdpa")),
        (("flash_attention_2", "auto", "bf16"), False, False, ("flash_attention_2", "sdpa")),
    ],
)
def test_what_auto_takes(monkeypatch, given, cuda, flash, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if flash else None)
    assert resolve_attention(*given, cuda=cuda) == expected


def test_the_language_model_alone_gets_the_packed_implementation(opened):
    family, model = opened
    set_attention(model, "flex_attention", "sdpa")
    try:
        assert model.config.get_text_config()._attn_implementation == "flex_attention"
        if family.modalities:
            assert model.config.vision_config._attn_implementation == "sdpa"
    finally:
        set_attention(model, "sdpa", "sdpa")


def batch_of(family, pictures: bool):
    images = [Image.effect_noise((40, 24), 90).convert("RGB")] if pictures and family.modalities else []
    prompt = family.encode("What is the value of bar one?", images)
    return pack(family, [(prompt, [[70, 80, 90, 85], [71], [70, 80, 91]]), (family.encode("a"), [[60] * 9])], NONE)


@pytest.mark.slow  # FlexAttention compiles for every kind of mask
@pytest.mark.parametrize("name", ["qwen2-sliding", "gemma3", "internvl-qwen2"])
def test_flex_attention_is_exact(name, checkpoint):
    """Forward only: FlexAttention has no backward pass on CPUs."""
    torch._dynamo.reset()  # shapes of an earlier case make the CPU code for later ones fail to compile
    family, model = load_family(checkpoint(name))
    batch = batch_of(family, True)
    with torch.no_grad():
        dense = packed_logprobs(family, model, batch)
        flex = packed_logprobs(family, set_attention(model, "flex_attention", "sdpa"), batch)
    assert (dense - flex).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward pass on CPUs")
def test_flex_attention_has_the_gradients_of_sdpa_on_a_gpu(opened):
    family, model = opened
    model = copy.deepcopy(model).cuda()
    batch = batch_of(family, True)
    found = []
    for implementation in ("sdpa", "flex_attention"):
        set_attention(model, implementation, "sdpa")
        logprobs = packed_logprobs(family, model, batch)
        found.append((logprobs.detach(), gradients(model, logprobs.sum())))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-3
    assert_close(found[1][1], found[0][1], tolerance=1e-2)
