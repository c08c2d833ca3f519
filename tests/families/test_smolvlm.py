"""SmolVLM2 beside SmolVLM v1: the same prompts, pictures and models under other class names, and no video."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dyme.families import load_family
from tests.helpers.packed import separate_logprobs


@pytest.fixture(scope="module")
def both(checkpoint):
    """(family, model) of each, the second with the weights of the first."""
    first, second = (load_family(checkpoint(name)) for name in ("smolvlm-v1", "smolvlm2"))
    second[1].load_state_dict(first[1].state_dict())
    return (first[0], first[1].eval()), (second[0], second[1].eval())


def test_it_is_smolvlm_v1_on_pictures(both):
    (one, old), (two, new) = both
    rng = np.random.default_rng(4)
    for size in ((32, 32), (40, 24), (9, 60)):
        image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        expected, prompt = one.encode("What is it?", [image]), two.encode("What is it?", [image])
        assert prompt.input_ids.tolist() == expected.input_ids.tolist()
        assert prompt.pixels.keys() == expected.pixels.keys() == {"pixel_values", "pixel_attention_mask"}
        for key, value in prompt.pixels.items():
            assert torch.equal(value, expected.pixels[key]), key
        with torch.no_grad():
            logprobs = [separate_logprobs(f, m, prompt, [70, 71, 72]) for f, m in ((one, old), (two, new))]
        assert torch.allclose(*logprobs, atol=1e-5)


def test_tiles(both):
    """Tiles of 16 pixels in rows and columns, and one of the whole picture; 4 features each."""
    _, (family, _) = both
    prompt = family.encode("What is it?", [Image.new("RGB", (40, 24))])
    tags = family.tokenizer.decode(prompt.input_ids)
    tiles = prompt.pixels["pixel_values"].shape[1]
    assert tiles == 5 and tags.count("<row_") == 4 and tags.count("<global-img>") == 1
    assert int((prompt.input_ids == family.config.image_token_id).sum()) == 4 * tiles


def test_no_video(both):
    """The processor would look for one; in a question and a reply the word is text."""
    _, (family, _) = both
    for images in ([], [Image.new("RGB", (16, 16))]):
        assert "What is <video>?" in family.tokenizer.decode(family.encode("What is <video>?", images).input_ids)
    assert family.decode(family.encode_reply("a <video> tag")) == "a <video> tag"
