"""The engines that are compared. Each is opened once and called with a number of new tokens; it returns how many
tokens it made, which for all of them are prompts x K x new tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import nn

from benchmarks.rollout import CACHES
from benchmarks.rollout.workload import placeholders
from dyme.families import Family, Prompt
from dyme.rollout.engine import FixedWeights
from dyme.rollout.noise import row_key
from dyme.rollout.registry import open_engine
from dyme.rollout.types import RolloutRequest, Sampling
from dyme.settings.engines import ENGINES

TrainEngine = Callable[[int], int]


def obstacle(name: str) -> str | None:
    """Why an engine cannot run here; None where it can."""
    if name == "vllm":
        return None if importlib.util.find_spec("vllm") else "vllm is not installed"
    if name in CACHES:
        return None
    own = name.removeprefix("dyme ")
    return None if own in ENGINES else f"dyme/settings/engines.py has no engine {own}"


def ours(name: str, family: Family, model: nn.Module, prompts: Sequence[Prompt], group_size: int) -> TrainEngine:
    """One of our engines, all rows in one batch."""
    engine = open_engine(name, family, FixedWeights(model))
    rows = [RolloutRequest(p, row_key(0, 0, str(g), k)) for g, p in enumerate(prompts) for k in range(group_size)]

    def run(new_tokens: int) -> int:
        made = engine.generate(rows, Sampling(new_tokens, batch_size=len(rows)))
        return sum(len(rollout.tokens) for rollout in made)

    return run


def transformers(
    cache: str | None, family: Family, model: Any, prompts: Sequence[Prompt], group_size: int, device: torch.device
) -> TrainEngine:
    """`model.generate` as its documentation shows it: the rows of all groups as one left-padded batch, sampling at
    temperature 1 from the whole distribution."""
    from transformers import GenerationConfig

    rows = [prompt for prompt in prompts for _ in range(group_size)]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), family.pad_id)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(rows):
        ids[i, length - len(prompt) :] = prompt.input_ids
        mask[i, length - len(prompt) :] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, **family.generate_inputs(rows, ids)}
    inputs = {name: value.to(device) for name, value in inputs.items()}

    def run(new_tokens: int) -> int:
        config = GenerationConfig(
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=True,
            top_k=0,
            suppress_tokens=placeholders(family) or None,
            eos_token_id=list(family.stop_ids),
            pad_token_id=family.pad_id,
            cache_implementation=cache,
        )
        # the checkpoint's own settings would fill what this configuration leaves open
        with torch.no_grad(), mock.patch.object(model, "generation_config", GenerationConfig()):
            tokens = model.generate(**inputs, generation_config=config)
        return tokens[:, length:].numel()

    return run


def vllm(
    folder: Path, family: Family, texts: Sequence[str], images: Sequence[Image.Image], group_size: int, length: int
) -> TrainEngine:
    """vLLM with its own processing of the pictures; length: most tokens of a prompt and its reply. Its cache of prompts
    is emptied before every call, and the others process no pictures inside theirs: its prefill is the whole of it."""
    import vllm as library

    engine = library.LLM(
        model=str(folder),
        dtype="bfloat16",
        max_model_len=length,
        limit_mm_per_prompt={"image": 1},
        gpu_memory_utilization=0.6,
    )
    chat = partial(family.processor.apply_chat_template, add_generation_prompt=True, tokenize=False)
    requests = [
        {"prompt": chat(family.messages(text, [image])), "multi_modal_data": {"image": image}}
        for text, image in zip(texts, images, strict=True)
    ]

    def run(new_tokens: int) -> int:
        if hasattr(engine, "reset_prefix_cache"):
            engine.reset_prefix_cache()
        sampling = library.SamplingParams(
            n=group_size, temperature=1.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        return sum(len(o.token_ids) for r in engine.generate(requests, sampling, use_tqdm=False) for o in r.outputs)

    return run
