"""Rollout engines are found by their names, and one from outside needs a class and a line in the registry."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from dyme.data.record import LazyImage, Record
from dyme.families import build_family
from dyme.prompts import PromptCache
from dyme.rollout.registry import engine_class
from dyme.settings.engines import ENGINES
from dyme.settings.prompt import PromptConfig
from dyme.settings.rollout import RolloutConfig
from tests.helpers.launching import launch, run_on_ranks
from tests.helpers.runs import lines, same, same_weights, write_config


def test_names_of_the_settings_are_those_of_the_registry():
    for name in ("auto", *ENGINES):
        assert RolloutConfig(engine=name).engine == name
    *others, last = [repr(name) for name in ("auto", *ENGINES)]
    with pytest.raises(ValueError, match=f"{', '.join(others)} or {last}"):
        RolloutConfig(engine="unheard_of")


@pytest.mark.parametrize(("trees", "found"), [(True, "SharedPrefixEngine"), (False, "HfEngine")])
def test_auto_is_the_first_engine_that_can_serve_the_family(trees, found):
    family = SimpleNamespace(name="x", packs_trees=trees)
    assert engine_class("auto", family).__name__ == found
    assert engine_class("hf", family).__name__ == "HfEngine"


@pytest.mark.dist
def test_an_engine_from_outside_trains_as_engine_hf_does(tmp_path):
    """Its model has the weights of each step, and what it encodes from text and pictures is the prompt."""
    config = write_config(tmp_path, rollout__engine="hf", model__max_pixels=600)
    launch("--config", config, f"run.dir={tmp_path / 'hf'}")
    run_on_ranks(2, "outside", config, tmp_path / "outside", tmp_path / "events.json")
    same(lines(tmp_path / "hf"), lines(tmp_path / "outside"))
    same_weights(tmp_path / "hf", tmp_path / "outside")
    events = json.loads((tmp_path / "events.json").read_text())
    step = ["generate", "sleep", "update", "weights"]
    assert events == ["weights", "generate", *step * 3, "generate", "close"], "evaluations at both ends"


def test_a_prompt_tells_what_it_is_made_of(tiny_spec):
    family, _ = build_family("idefics3", tiny_spec, ["What is shown? Answer:"])
    drawn = []

    def draw() -> Image.Image:
        drawn.append(1)
        return Image.new("RGB", (60, 40), "red")

    cache = PromptCache(family, PromptConfig(), print, max_pixels=600)
    record = Record("r", "What is shown?", ("red",), images=(LazyImage(draw=draw), LazyImage(draw=draw)))
    prompt = cache.encode(record)
    assert len(drawn) == 2
    assert [picture.size for picture in prompt.pictures()] == [(30, 20)] * 2 and len(drawn) == 4
    again = family.encode(prompt.text, prompt.pictures())
    assert again.input_ids.equal(prompt.input_ids)
    assert all(again.pixels[key].equal(prompt.pixels[key]) for key in prompt.pixels)
    chat = family.messages(prompt.text, prompt.pictures())
    assert [part["type"] for part in chat[0]["content"]] == ["image", "image", "text"]
