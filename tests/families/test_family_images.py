"""Idefics3: pictures, their placeholders, and batches of them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from dyme.families import ModelError, PromptError, build_family


@pytest.fixture(scope="module")
def built(tiny_spec):
    torch.manual_seed(0)
    family, model = build_family("auto", tiny_spec, ["What is it?"])
    return family, model.eval()


def test_a_question_with_a_placeholder_is_refused(built):
    family, _ = built
    with pytest.raises(PromptError, match=r"2 image placeholders '<image>' in the question but 1 images"):
        family.encode("What do <image> and <image> mean?", [Image.new("RGB", (32, 32))])
    with pytest.raises(PromptError, match=r"1 image placeholders '<image>' in the question but 0 images"):
        family.encode("What does <image> mean?")


def test_a_reply_with_a_placeholder_is_plain_text(built):
    """A trace that writes '<image>' would otherwise put a placeholder without features into the forward."""
    family, _ = built
    ids = family.encode_reply("an <image> and <end_of_utterance>\nAnswer: 4")
    assert not set(ids[:-1]) & set(family.tokenizer.all_special_ids) and ids[-1] == family.end_of_turn
    assert family.decode(ids) == "an <image> and <end_of_utterance>\nAnswer: 4"


def test_a_wrong_image_seq_len_is_refused(tiny_spec):
    family, _ = build_family("idefics3", tiny_spec, ["What is it?"])
    family.processor.image_seq_len = 9
    with pytest.raises(PromptError, match=r"9 image placeholder tokens but 4 image features: the processor"):
        family.encode("What?", [Image.new("RGB", (32, 32))])


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (32, 32), (1000, 900)])
def test_pictures_of_any_shape(built, size):
    family, model = built
    prompt = family.encode("What?", [Image.new("RGB", size, "blue")])
    assert int((prompt.input_ids == family.config.image_token_id).sum()) == 4
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=prompt.input_ids[None], **prompt.pixels).logits).all()


def test_pictures_join_in_the_order_of_the_batch(built):
    family, _ = built
    red, blue = (family.encode("What?", [Image.new("RGB", (20, 30), c)]) for c in ("red", "blue"))
    text = family.encode("What?")
    joined = family.collate_pixels([red, text, blue])
    assert torch.equal(joined["pixel_values"][0], torch.cat([p.pixels["pixel_values"][0] for p in (red, blue)]))
    assert joined["pixel_values"].shape[:2] == (1, 2) and family.collate_pixels([text]) == {}
    assert family.generate_inputs([red, blue], red.input_ids)["pixel_values"].shape[:2] == (2, 1)
    assert family.generate_inputs([text], text.input_ids) == {}


def test_pictures_in_several_tiles(tiny_spec):
    """Real checkpoints split large pictures: prompts then bring different numbers of tiles."""
    torch.manual_seed(0)
    family, model = build_family("idefics3", tiny_spec, ["What is it?"])
    model.eval()
    processor = family.processor.image_processor
    processor.do_image_splitting, processor.size = True, {"longest_edge": 64}
    prompts = [family.encode("What?", [Image.effect_noise(s, 90).convert("RGB")]) for s in ((64, 64), (64, 20))]
    tiles = [p.pixels["pixel_values"].shape[1] for p in prompts]
    assert len(set(tiles)) == 2 and min(tiles) > 1
    assert family.collate_pixels(prompts)["pixel_values"].shape[:2] == (1, sum(tiles))
    batch = family.generate_inputs(prompts, prompts[0].input_ids)
    assert batch["pixel_values"].shape[:2] == (2, max(tiles))
    with torch.no_grad():
        for at, prompt in enumerate(prompts):
            alone = model(input_ids=prompt.input_ids[None], **prompt.pixels).logits
            padded = model(input_ids=prompt.input_ids[None], **{k: v[at : at + 1] for k, v in batch.items()}).logits
            assert torch.allclose(alone, padded, atol=1e-5)


def test_a_text_only_family_refuses_pictures(tiny_spec):
    family, _ = build_family("causal_lm", tiny_spec, ["What is it?"])
    with pytest.raises(PromptError, match="text-only"):
        family.encode("What?", [Image.new("RGB", (8, 8))])


def test_sizes_that_do_not_fit(tiny_spec):
    from types import SimpleNamespace

    with pytest.raises(ModelError, match="multiple of"):
        build_family("idefics3", SimpleNamespace(**{**vars(tiny_spec), "image_size": 40, "scale_factor": 2}), ["x"])
