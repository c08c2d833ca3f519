"""Masks of packed groups, dense and as FlexAttention's blocks, and which implementation is taken."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig

from dyme.batching.packing import pack
from dyme.config import ModelConfig
from dyme.families import attention, load_family
from dyme.families.attention import (
    PADDING,
    PROMPT,
    Layout,
    _create_block_mask,
    has_flash_attention,
    head_width,
    joins_groups,
    resolve_attention,
    set_attention,
)
from dyme.settings.errors import ConfigError
from tests.helpers.packed import assert_close, gradients, packed_logprobs

NONE: frozenset[str] = frozenset()


def layout(block: bool = False) -> Layout:
    """A prompt of 6, branches of 3 and 2, padding of 2; an image block at 1..4 of the prompt."""
    branch = torch.tensor([[PROMPT] * 6 + [0] * 3 + [1] * 2 + [PADDING] * 2])
    depth = torch.tensor([[*range(6), 6, 7, 8, 6, 7, 0, 0]])
    blocks = torch.full((1, 13), -1)
    blocks[0, 1:5] = 0
    return Layout(branch, depth, blocks if block else None)


def joined(block: bool = False, seed: int = 0) -> Layout:
    """Two of `layout` in one row without their padding, which comes last; the same numbers of branches and pictures.
    `seed` moves the border between the trees; the length stays 25."""
    one, cut = layout(block), 11 - seed
    parts = [one.map(lambda values: values[:, :cut]), one.map(lambda values: values[:, :11])]
    pad = 3 + seed
    end = Layout(torch.full((1, pad), PADDING), torch.zeros(1, pad, dtype=torch.int64), torch.full((1, pad), -1))
    branch, depth = (torch.cat([getattr(p, name) for p in (*parts, end)], dim=1) for name in ("branch", "depth"))
    blocks = torch.cat([p.block for p in (*parts, end)], dim=1) if block else None
    tree = torch.tensor([[0] * cut + [1] * 11 + [-1] * pad])
    return Layout(branch, depth, blocks, tree)


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


def test_trees_in_one_row_do_not_see_each_other():
    alone, together = layout(block=True).dense()[:, :, :11, :11], joined(block=True).dense()
    assert torch.equal(together[:, :, :11, :11], alone) and torch.equal(together[:, :, 11:22, 11:22], alone)
    assert not together[:, :, :11, 11:].any() and not together[:, :, 11:22, :11].any()
    assert together[0, 0, 22:].sum() == 3 and seen(together, 23) == [23]


@pytest.mark.parametrize("make", [layout, joined])
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_block_masks_say_the_same(make, block, window):
    held = make(block)
    blocks, n = held.block_mask(window), held.branch.shape[1]
    b, h, at = torch.tensor(0), torch.tensor(0), torch.arange(n)
    said = blocks.mask_mod(b, h, at[:, None], at[None, :])
    assert torch.equal(said, held.dense(window)[0, 0]) and blocks.shape == (1, 1, n, n)


def test_blocks_between_trees_are_left_out():
    """Four trees of 128 tokens, one block each: nothing but the diagonal is computed."""
    tree = torch.arange(4).repeat_interleave(128)[None]
    depth = torch.arange(128).repeat(4)[None]
    blocks = Layout(torch.full((1, 512), PROMPT), depth, None, tree).block_mask()
    assert blocks.to_dense()[0, 0].tolist() == torch.eye(4).int().tolist() and blocks.BLOCK_SIZE == (128, 128)


@pytest.mark.slow  # torch.compile
def test_the_compiled_block_mask_is_the_same_and_compiles_once():
    """Other groups in a sequence of the same length are other numbers, not another program."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    create, graphs = _create_block_mask(compiled=True), []
    for seed in range(3):
        held = joined(block=True, seed=seed)
        n = held.branch.shape[1]
        plain, compiled = held.block_mask(3), create(held.mask_mod(3), 1, None, n, n, device="cpu", BLOCK_SIZE=128)
        for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
            assert torch.equal(getattr(plain, name), getattr(compiled, name)), name
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs == graphs[:1] * 3


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
    monkeypatch.setattr(attention, "has_flash_attention", lambda: flash)
    assert resolve_attention(*given, cuda=cuda, width=64) == expected


def test_narrow_heads_get_the_dense_mask():
    """FlexAttention's GPU kernels refuse them in the middle of the first step."""
    assert resolve_attention("auto", "auto", "bf16", cuda=True, width=12)[1] == "sdpa"
    assert resolve_attention("auto", "flex_attention", "bf16", cuda=True, width=12)[1] == "flex_attention"
    assert head_width(LlamaConfig(hidden_size=48, num_attention_heads=4)) == 12
    assert head_width(LlamaConfig(hidden_size=48, num_attention_heads=4, head_dim=16)) == 16


def test_a_flash_attn_that_cannot_be_imported_is_none(monkeypatch, tmp_path):
    """As where it was built for another torch: it is installed, and its library fails to load."""
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert has_flash_attention()
    monkeypatch.delitem(sys.modules, "flash_attn")
    (tmp_path / "flash_attn.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    assert not has_flash_attention()


def test_an_implementation_that_is_not_there(checkpoint):
    _, model = load_family(checkpoint("llama"))
    with pytest.raises(
        ConfigError, match=r"^model\.attention, model\.packed_attention: FlashAttention2 .*[^\n] Set both"
    ):
        set_attention(model, "flash_attention_2", "flash_attention_2")
    with pytest.raises(ValueError, match=r"model\.attention=flash_attention_2 has no fp32: set model\.dtype=bf16"):
        ModelConfig(path="x", attention="flash_attention_2")


def test_the_language_model_alone_gets_the_packed_implementation(opened):
    family, model = opened
    set_attention(model, "flex_attention", "sdpa")
    try:
        assert model.config.get_text_config()._attn_implementation == "flex_attention"
        if family.modalities:
            assert model.config.vision_config._attn_implementation == "sdpa"
    finally:
        set_attention(model, "sdpa", "sdpa")


def batch_of(family, pictures: bool, join: bool = False):
    images = [Image.effect_noise((40, 24), 90).convert("RGB")] if pictures and family.modalities else []
    prompt = family.encode("What is the value of bar one?", images)
    groups = [(prompt, [[70, 80, 90, 85], [71], [70, 80, 91]]), (family.encode("a"), [[60] * 9])]
    return pack(family, groups, NONE, joined=join)


def test_groups_are_joined_where_the_mask_is_one_of_blocks():
    assert joins_groups("flex_attention") and not joins_groups("sdpa")


@pytest.mark.slow  # FlexAttention compiles for every kind of mask
@pytest.mark.parametrize(
    ("name", "join"), [("qwen2-sliding", False), ("gemma3", False), ("internvl-qwen2", False), ("gemma3", True)]
)
def test_flex_attention_is_exact(name, join, checkpoint):
    """Forward only: FlexAttention has no backward pass on CPUs."""
    torch._dynamo.reset()  # shapes of an earlier case make the CPU code for later ones fail to compile
    family, model = load_family(checkpoint(name))
    batch = batch_of(family, True, join)
    with torch.no_grad():
        dense = packed_logprobs(family, model, batch)
        flex = packed_logprobs(family, set_attention(model, "flex_attention", "sdpa"), batch)
    assert (dense - flex).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward pass on CPUs")
@pytest.mark.parametrize(("name", "checkpointing"), [("qwen2-vl", False), ("qwen2-vl", True), ("internvl-qwen3", True)])
def test_flex_attention_has_the_gradients_of_sdpa_on_a_gpu(name, checkpointing, checkpoint):
    """Of joined groups, which is what it gets. Few models: each compiles for a minute; the heads of most tiny ones are
    too narrow."""
    family, model = load_family(checkpoint(name))
    model = model.cuda()
    if checkpointing:
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_of(family, True, True)
    found = []
    for implementation in ("sdpa", "flex_attention"):
        set_attention(model, implementation, "sdpa")
        logprobs = packed_logprobs(family, model, batch)
        found.append((logprobs.detach(), gradients(model, logprobs.sum())))
    assert (found[0][0] - found[1][0]).abs().max() < 1e-3
    assert_close(found[1][1], found[0][1], tolerance=1e-2)
