"""How a family decodes, in the words of transformers' `generate`: for engine hf, and for the exported model."""

from __future__ import annotations

from transformers import GenerationConfig

from dyme.families.base import Family


def greedy_generation(family: Family, max_new_tokens: int) -> GenerationConfig:
    """The arg-max of the policy, as our evaluation takes it: no penalty and no cuts, whatever the checkpoint's own
    generation_config.json says. `suppress_tokens` holds what our engines never draw: a model that was trained without
    these tokens has learnt nothing about them. There is no `temperature`: transformers refuses to save one that greedy
    decoding does not use."""
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(family.stop_ids),
        pad_token_id=family.pad_id,
        bos_token_id=family.tokenizer.bos_token_id,
        suppress_tokens=list(family.forbidden_ids) or None,
        use_cache=True,
    )
