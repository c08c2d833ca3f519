"""LLaVA-OneVision and InternVL: pictures in tiles, their features as the real vision tower makes them, and batches."""

from __future__ import annotations

import copy
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.checkpoints.common import write_checkpoint
from dyme.batching.packing import pack
from dyme.families import ModelError, load_family
from dyme.families.attention import set_attention
from tests.helpers.checkpoints import makers
from tests.helpers.checkpoints.internvl import published_tokenizer_config, tiny, tokenizer
from tests.helpers.groups import picture
from tests.helpers.packed import assert_close, gradients, packed_logprobs, separate_logprobs

TILED = ("internvl-qwen2", "llava-onevision")
# width and height: of one tile, smaller, larger, strips both ways, and so thin that an unpadded grid has no rows at all
SIZES = [(16, 16), (1, 1), (3, 3), (40, 24), (24, 40), (33, 31), (1000, 900), (70, 20), (20, 70), (300, 7), (7, 300)]


@pytest.fixture(scope="module", params=TILED)
def held(request, checkpoint):
    family, model = load_family(checkpoint(request.param))
    return family, model.eval()


@pytest.fixture(scope="module")
def llava(checkpoint):
    family, model = load_family(checkpoint("llava-onevision"))
    return family, model.eval()


def made(model, pixels) -> int:
    """Features that the model makes of pixels, counted by running it."""
    with torch.no_grad():
        features = model.model.get_image_features(**pixels, return_dict=True).pooler_output
    return sum(each.shape[0] for each in features) if isinstance(features, tuple | list) else features.shape[:2].numel()


@pytest.mark.parametrize("size", SIZES)
def test_counted_features_are_those_the_model_makes(held, size):
    family, model = held
    prompt = family.encode("What?", [picture(0, size)])
    assert family.image_features(prompt.pixels) == made(model, prompt.pixels) > 0


def test_every_pair_of_pictures(held):
    family, model = held
    for size in SIZES:
        prompt = family.encode("What?", [picture(0, size), picture(1)])
        assert family.image_features(prompt.pixels) == made(model, prompt.pixels)
        with torch.no_grad():
            assert torch.isfinite(model(input_ids=prompt.input_ids[None], **prompt.pixels).logits).all()


def test_the_sizes_meet_every_rule_of_llava_onevision(llava):
    """Grids that are scaled down, grids that are not, and one without rows: else the counts above would say little."""
    family, _ = llava
    kept = [family.image_features(family.encode("?", [picture(0, size)]).pixels) - 16 for size in SIZES]
    assert 0 in kept and 4 * 5 in kept and 8 * 9 not in kept and max(kept) > 2 * 16


def test_more_features_than_the_processor_wrote_are_refused(llava, tmp_path):
    """preprocessor_config.json and config.json must have the same grids."""
    files = write_checkpoint(tmp_path / "other", makers()["llava-onevision"][1]())
    config = json.loads((files / "preprocessor_config.json").read_text())
    (files / "preprocessor_config.json").write_text(json.dumps({**config, "image_grid_pinpoints": [[16, 16]]}))
    with pytest.raises(ModelError, match="36 image placeholder tokens but 46 image features"):
        load_family(files)


# --- batches ----------


def test_llava_onevision_pads_to_the_most_tiles_of_the_batch(llava):
    family, _ = llava
    one, two, big = (
        family.encode("What?", images)
        for images in ([picture(0, (16, 16))], [picture(1), picture(2)], [picture(3, (40, 24))])
    )
    tiles = [p.pixels["pixel_values"].shape[1] for p in (one, two, big)]
    assert tiles == [2, 1, 5]
    before = {key: value.clone() for key, value in two.pixels.items()}
    joined = family.collate_pixels([one, family.encode("text"), two, big])
    assert joined["pixel_values"].shape == (4, 5, 3, 16, 16)
    assert joined["batch_num_images"].tolist() == [1, 2, 1]
    assert joined["image_sizes"].tolist() == [[16, 16], [24, 40], [24, 40], [24, 40]]
    for row, (prompt, at) in enumerate([(one, 0), (two, 0), (two, 1), (big, 0)]):
        own = prompt.pixels["pixel_values"][at]
        assert torch.equal(joined["pixel_values"][row, : len(own)], own)
        assert not joined["pixel_values"][row, len(own) :].any()
    assert all(torch.equal(two.pixels[key], value) for key, value in before.items()), "the prompt itself stays"
    assert family.collate_pixels([family.encode("text")]) == {}


def test_a_prompts_own_number_of_pictures_decides_about_its_tiles(llava):
    """Two prompts of one picture each are tiled, one prompt of two is not, though their tensors have equal shapes."""
    family, model = llava
    apart = family.collate_pixels([family.encode("What?", [picture(i)]) for i in range(2)])
    together = family.encode("What?", [picture(0), picture(1)]).pixels
    assert torch.equal(apart["image_sizes"], together["image_sizes"])
    assert made(model, apart) == 2 * 52 and made(model, together) == 2 * 17
    confused = {**apart, "batch_num_images": together["batch_num_images"]}
    assert made(model, confused) == 2 * 17


def test_internvl_joins_tiles(checkpoint):
    family, _ = load_family(checkpoint("internvl-qwen2"))
    prompts = [family.encode("What?", [picture(0, s)]) for s in ((16, 16), (40, 24))]
    joined = family.collate_pixels(prompts)["pixel_values"]
    assert joined.shape == (1 + 7, 3, 16, 16)  # 3 x 2 tiles and a thumbnail; one tile has none
    assert torch.equal(joined[1:], prompts[1].pixels["pixel_values"])


# --- training ----------


@pytest.mark.parametrize("sizes", [[(40, 24)], [(40, 24), (9, 60)], [(300, 7)]])
def test_the_whole_connector_is_in_every_graph(held, sizes):
    """Also image_newline, also where no tile keeps a row: ZeRO-3 would repeat the gradients of the last step."""
    family, model = held
    prompt = family.encode("What?", [picture(i, size) for i, size in enumerate(sizes)])
    grads = gradients(model, packed_logprobs(family, model, pack(family, [(prompt, [[70, 71]])], frozenset())).sum())
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in family.parts(model)["connector"].parameters()} <= set(grads)


def test_llava_onevisions_newline_belongs_to_the_connector(llava):
    family, model = llava
    connector = family.parts(model)["connector"]
    assert any(p is model.model.image_newline for p in connector.parameters())


def test_gradient_checkpointing_changes_nothing(held):
    """The models read features from the tower's hidden states, which recomputing must not lose."""
    family, model = held
    batch = pack(family, [(family.encode("What?", [picture(0), picture(1)]), [[70, 71], [72]])], frozenset())
    expected = gradients(model, packed_logprobs(family, model, batch).sum())
    again = copy.deepcopy(model).train()
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_close(gradients(again, packed_logprobs(family, again, batch).sum()), expected, 1e-5)


def test_internvl_over_llama(tmp_path):
    """InternVL 2.5 has Llama models too."""
    family, model = load_family(write_checkpoint(tmp_path / "internvl-llama", tiny("llama")))
    model = model.double().eval()
    sequences = [
        (family.encode("What?", [picture(0)]), [[70, 71], [72]]),
        (family.encode("Which?", [picture(1, (24, 24)), picture(2, (9, 60))]), [[80], [81, 82]]),
    ]
    together = packed_logprobs(family, model, pack(family, sequences, frozenset()))
    apart = torch.cat([separate_logprobs(family, model, p, b) for p, branches in sequences for b in branches])
    assert (together - apart).abs().max() < 1e-6


def test_attention_is_set_part_by_part(held):
    family, model = held
    changed = set_attention(copy.deepcopy(model), "eager", "sdpa")
    assert family.language(changed).config._attn_implementation == "eager"
    assert family.parts(changed)["vision"].config._attn_implementation == "sdpa"


# --- loading ----------


def test_internvl_without_named_tokens_is_refused(tmp_path):
    """As of checkpoints in OpenGVLab's own format, or converted before transformers asked for the names."""
    tokens = tokenizer()
    folder = write_checkpoint(tmp_path / "old", tiny("qwen2"))
    config = published_tokenizer_config(tokens)
    named = {k: v for k, v in config["extra_special_tokens"].items() if k != "video_token"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "extra_special_tokens": named}))
    with pytest.raises(ModelError, match=r"tokenizer_config.json: names no video_token: take the checkpoint"):
        load_family(folder)


def test_published_weights_of_llava_onevision(llava, checkpoint, tmp_path):
    """Checkpoints on the Hub name the tower's weights as transformers did when they were written."""
    shutil.copytree(checkpoint("llava-onevision"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    old = {re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", k): v for k, v in weights.items()}
    assert set(old) != set(weights)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, model = load_family(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), llava[1].parameters(), strict=True))


def test_the_real_models_sizes():
    """Parameters in billions, as published, and tokens of a tile."""
    from transformers import AutoModelForImageTextToText

    expected = {
        "llava-onevision-0.5b": (0.894, 729),
        "internvl3-1b": (0.938, 256),
        "smolvlm-500m": (0.507, 64),
        "smolvlm2-500m": (0.507, 64),
        "gemma3-4b": (4.300, 256),
    }
    for name, (billions, tokens) in expected.items():
        shape = makers("SHAPES")[name][1]()
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(shape.model)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
        settings = shape.files["processor_config.json"]
        names = {"num_image_tokens", "image_seq_length", "image_seq_len"}
        assert [settings[name] for name in names & settings.keys()] == [tokens]
        assert shape.model.image_token_id in shape.tokenizer.added_tokens_decoder
