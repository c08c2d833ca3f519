"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: M-RoPE positions, windows, DeepStack, and positions kept between calls."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dyme.batching.packing import pack
from dyme.families import FAMILIES, Family, Prompt, load_family
from dyme.families.attention import set_attention
from dyme.rollout.types import Rollout, RolloutRequest, Sampling
from tests.helpers.checkpoints import makers
from tests.helpers.generating import generate
from tests.helpers.packed import assert_close, gradients, packed_logprobs, separate_logprobs

NAMES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]
NONE: frozenset[str] = frozenset()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, checkpoint):
    family, model = load_family(checkpoint(request.param))
    return family, model.eval()


def in_float64(name: str, checkpoint):
    family, model = load_family(checkpoint(name))
    return family, model.double().eval()


# --- files ----------


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_of_the_hub(name, checkpoint):
    """config.json from before transformers 5, and the parameter names of the published safetensors."""
    from safetensors import safe_open

    folder = checkpoint(name)
    fields = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as weights:
        keys = list(weights.keys())
    if name == "qwen3-vl":
        assert "text_config" in fields and any(k.startswith("model.visual.") for k in keys)
    else:
        assert "text_config" not in fields and fields["rope_scaling"]["type"] == "mrope"
        assert any(k.startswith("visual.") for k in keys) and any(k.startswith("model.layers.0.") for k in keys)
    _, model = load_family(folder)
    made = makers()[name][1]().model
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), model.state_dict().values(), strict=True))
    expected, got = (m.config.text_config.rope_parameters for m in (made, model))
    assert {key: got[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("shape", "billions", "tokens"),
    [("qwen2-vl-2b", 2.209, 23 * 17), ("qwen2.5-vl-3b", 3.755, 23 * 17), ("qwen3-vl-2b", 2.128, 20 * 15)],
)
def test_published_dimensions(shape, billions, tokens, tmp_path):
    """Parameters as the model cards have them, and placeholders of a 640 x 480 picture with the published limits."""
    name, make = makers("SHAPES")[shape]
    tiny = make()
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[name].model_class)(tiny.model)
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    for file, content in tiny.files.items():
        (tmp_path / file).write_text(json.dumps(content))
    prompt = FAMILIES[name].open(tmp_path).encode("What is it?", [picture(640, 480)])
    assert int((prompt.input_ids == tiny.model.image_token_id).sum()) == tokens


def test_the_default_system_turn(checkpoint):
    for name in NAMES:
        family, _ = load_family(checkpoint(name))
        text = family.tokenizer.decode(family.encode("What is it?", [picture(40, 24)]).input_ids)
        vision = "<|vision_start|>" + "<|image_pad|>" * 15 + "<|vision_end|>"
        turn = f"<|im_start|>user\n{vision}What is it?<|im_end|>\n<|im_start|>assistant\n"
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        assert text == (turn if name == "qwen3-vl" else system + turn)


def test_parts(loaded):
    family, model = loaded
    parts = {id(p): part for part, module in family.parts(model).items() for p in module.parameters()}
    for name, parameter in model.model.visual.named_parameters():
        assert parts[id(parameter)] == ("connector" if "merger" in name else "vision"), name
    assert any("deepstack" in n for n, _ in family.parts(model)["connector"].named_parameters()) == (
        family.name == "qwen3_vl"
    )


# --- positions ----------


def prompts(family: Family) -> list[Prompt]:
    return [
        family.encode("Say a number"),
        family.encode("What is it?", [picture(40, 24)]),
        family.encode("First <image> then, after some words, <image> and the end", [picture(9, 60), picture(70, 20)]),
        family.encode("<image><image>", [picture(24, 24), picture(16, 64)]),
        family.encode("A <image> b <image> c <image>", [picture(64, 8), picture(24, 40), picture(33, 33)]),
    ]


def test_positions_are_the_stock_models(loaded):
    family, model = loaded
    for prompt in prompts(family):
        ids = prompt.input_ids[None]
        types = (ids == family.config.image_token_id).int()
        expected, delta = model.model.get_rope_index(
            ids, mm_token_type_ids=types, image_grid_thw=prompt.pixels.get("image_grid_thw")
        )
        positions, start = family.prompt_positions(prompt)
        assert torch.equal(positions, expected[:, 0]) and start == len(prompt) + int(delta)
        assert (start < len(prompt)) == bool(prompt.pixels), "pictures take fewer positions than tokens"


def test_token_types_are_the_processors(loaded):
    family, _ = loaded
    out = family.processor.apply_chat_template(
        family.messages("A <image> b <image> c", [picture(40, 24), picture(9, 60)]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"return_mm_token_type_ids": True},
    )
    prompt = family.encode("A <image> b <image> c", [picture(40, 24), picture(9, 60)])
    inputs = family.generate_inputs([prompt], prompt.input_ids[None])
    assert set(inputs) == {"pixel_values", "image_grid_thw", "mm_token_type_ids"}
    assert inputs["mm_token_type_ids"].tolist() == out["mm_token_type_ids"].tolist()


def test_positions_matter(loaded):
    """One-dimensional positions give other probabilities: the checks of packing would see them."""
    family, model = loaded
    sequences = [(family.encode("What is it?", [picture(40, 24)]), [[70, 80, 90]])]
    batch = pack(family, sequences, NONE)
    assert batch.position_ids.shape == (3, 1, batch.input_ids.shape[1])
    flat = torch.arange(batch.input_ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        good = packed_logprobs(family, model, batch)
        bad = packed_logprobs(family, model, type(batch)(**{**vars(batch), "position_ids": flat}))
    assert (good - bad).abs().max() > 1e-3


# --- pictures ----------


def features(model, pixels) -> torch.Tensor:
    with torch.no_grad():
        return model.model.visual(pixels["pixel_values"].double(), grid_thw=pixels["image_grid_thw"]).pooler_output


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_two_prompts_do_not_mix(name, checkpoint):
    """Windows and attention stay within a picture when the pictures of several prompts run together."""
    family, model = in_float64(name, checkpoint)
    sizes = [(40, 24), (9, 60), (24, 24)]
    held = [family.encode("What?", [picture(*size, seed)]) for seed, size in enumerate(sizes)]
    joined = family.collate_pixels([held[0], family.encode("text"), held[1], held[2]])
    together = features(model, joined)
    assert len(together) == sum(family.image_features(p.pixels) for p in held)
    # the learnt positions are interpolated in float32
    assert torch.allclose(together, torch.cat([features(model, p.pixels) for p in held]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_two_groups_with_different_pictures(name, checkpoint):
    """Each group keeps its own picture, whatever the order in the batch."""
    family, model = in_float64(name, checkpoint)
    branches = [[70, 80, 90], [71, 72]]
    groups = [(family.encode("What?", [picture(40, 24, seed)]), branches) for seed in (1, 2)]
    with torch.no_grad():
        alone = [packed_logprobs(family, model, pack(family, [g], NONE)) for g in groups]
        for order in ((0, 1), (1, 0)):
            both = packed_logprobs(family, model, pack(family, [groups[i] for i in order], NONE))
            assert torch.allclose(both, torch.cat([alone[i] for i in order]), atol=1e-6)
    assert (alone[0] - alone[1]).abs().max() > 1e-2, "the pictures make no difference"


def test_windows(checkpoint):
    """The tiny checkpoint has several windows, and only its one block of full attention looks across them."""
    family, model = in_float64("qwen2.5-vl", checkpoint)
    pixels = family.encode("What?", [picture(40, 24)]).pixels  # 5 x 3 features in windows of 2 x 2
    visual = model.model.visual
    assert visual.config.fullatt_block_indexes == [1] and visual.config.depth == 3
    changed = {**pixels, "pixel_values": pixels["pixel_values"].clone()}
    changed["pixel_values"][:4] += 1.0  # the four patches of the first feature

    def moved() -> list[int]:
        difference = (features(model, changed) - features(model, pixels)).abs().amax(-1)
        return (difference > 1e-9).nonzero()[:, 0].tolist()

    assert moved() == list(range(15))
    visual.fullatt_block_indexes = []
    assert moved() == [0, 1, 5, 6], "the first window: two features of each of the first two rows"


def test_deepstack(checkpoint):
    """Pictures reach the decoder through the first layers too, each row of a packed batch with its own features."""
    family, model = in_float64("qwen3-vl", checkpoint)
    see = lambda seed: family.encode("What?", [picture(40, 24, seed)])  # noqa: E731
    branches = [[70, 80, 90], [71, 72]]
    sequences = [(see(1), branches), (family.encode("Say a number"), [[60, 61]]), (see(2), branches)]
    with torch.no_grad():
        before = packed_logprobs(family, model, pack(family, sequences, NONE))
        for parameter in model.model.visual.merger.parameters():
            parameter.zero_()  # what is left of the pictures comes by DeepStack
        left = packed_logprobs(family, model, pack(family, sequences, NONE))
        apart = torch.cat([separate_logprobs(family, model, p, b) for p, bs in sequences for b in bs])
        assert (left - apart).abs().max() < 1e-6 and (left - before).abs().max() > 1e-3
        assert (left[:5] - left[7:]).abs().max() > 1e-3, "two pictures, nothing but DeepStack"
        for parameter in model.model.visual.deepstack_merger_list.parameters():
            parameter.zero_()
        blind = packed_logprobs(family, model, pack(family, sequences, NONE))
        assert torch.allclose(blind[:5], blind[7:], atol=1e-9)


def test_flex_attention(loaded):
    """What a GPU trains with: the language model alone on FlexAttention, its block mask instead of the dense one."""
    family, model = loaded
    sequences = [(p, [[70, 80, 90], [71]]) for p in prompts(family)[:3]]
    with torch.no_grad():
        expected = packed_logprobs(family, model, pack(family, sequences, NONE))
        flexible = set_attention(copy.deepcopy(model), "flex_attention", "sdpa")
        assert flexible.model.language_model.config._attn_implementation == "flex_attention"
        assert flexible.model.visual.config._attn_implementation == "sdpa"
        with torch.compiler.set_stance("force_eager"):  # compiling takes a minute on a CPU
            got = packed_logprobs(family, flexible, pack(family, sequences, NONE))
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "connector")])
def test_gradient_checkpointing_and_frozen_parts(loaded, frozen):
    family, model = loaded
    model = copy.deepcopy(model).double()
    for part in frozen:
        family.parts(model)[part].requires_grad_(False)
    sequences = [(p, [[70, 80, 90], [71]]) for p in prompts(family)[:3]]
    expected = gradients(model, packed_logprobs(family, model, pack(family, sequences, NONE)).sum())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    calls: list[int] = []
    family.decoder_layers(model)[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_close(gradients(model, packed_logprobs(family, model, pack(family, sequences, NONE)).sum()), expected)
    assert len(calls) == 2, "nothing was recomputed"
    assert set(expected) == {name for name, p in model.named_parameters() if p.requires_grad}


# --- rollouts ----------


def test_no_positions_of_the_last_call(loaded):
    """The model keeps the offset of its last prompts: calls with other pictures, more rows, fewer rows or none follow
    each other as if each were the first, and training in between is not moved."""
    family, model = loaded
    text, one, two, beside, three = prompts(family)
    calls = [[one, two], [text], [three], [text, family.encode("Say another number, a long one")], [beside, one]]
    sampling = Sampling(5, temperature=0.0)

    def rollouts(model, call) -> list[Rollout]:
        return generate(family, model, [RolloutRequest(p) for p in call], sampling)

    fresh = [rollouts(copy.deepcopy(model), call) for call in calls]
    used = copy.deepcopy(model)
    sequences = [(text, [[60, 61]]), (one, [[70, 80, 90], [71]]), (three, [[70]])]
    with torch.no_grad():
        expected = packed_logprobs(family, model, pack(family, sequences, NONE))
        for call, first in zip(calls, fresh):
            assert rollouts(used, call) == first
            assert torch.equal(packed_logprobs(family, used, pack(family, sequences, NONE)), expected)
    assert len({r.tokens for call in fresh for r in call}) > 3, "the prompts make no difference"


def test_left_padding_does_not_move_positions(loaded):
    family, model = loaded
    held = prompts(family)[1:]
    sampling = Sampling(5, temperature=0.0)
    together = generate(family, model, [RolloutRequest(p) for p in held], sampling)
    alone = [generate(family, model, [RolloutRequest(p)], sampling)[0] for p in held]
    assert together == alone


def test_tokens_that_are_never_sampled(loaded):
    family, _ = loaded
    added = family.tokenizer.added_tokens_decoder
    special = {t for t, info in added.items() if info.special}
    banned = set(family.forbidden_ids)
    assert banned >= special - set(family.stop_ids) and len(special) == 14
    names = family.tokenizer.convert_ids_to_tokens(sorted(banned & set(added)))
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"} <= set(names)
    assert {"<|endoftext|>", "<|im_start|>"} <= set(names) and "<tool_call>" not in names
    assert family.tokenizer.convert_ids_to_tokens(family.end_of_turn) == "<|im_end|>"
