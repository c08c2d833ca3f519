"""The bytes bound of a decode step: weights and KV cache read once for each token, at the bandwidth of a copy; keys and
values of a prompt are read once for its group."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dyme.families import Family


def weight_bytes(family: Family, model: nn.Module) -> int:
    """Of the language model and its head. An embedding that is not the head as well is left out: few of its rows are
    read."""
    head = {id(p): p for p in family.head(model).parameters()}
    held = head | {id(p): p for p in family.language(model).parameters()}
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    if id(table) not in head:
        held.pop(id(table), None)
    return sum(p.numel() * p.element_size() for p in held.values())


def kv_bytes(family: Family, model: nn.Module, prompts: Sequence[int], group_size: int, new_tokens: int) -> float:
    """Keys and values of all prompts, and of all replies halfway through them. prompts: tokens of each, which has
    `group_size` rows. An engine that holds a prompt once for each row reads more than this."""
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = next(model.parameters()).element_size()
    return 2 * text.num_hidden_layers * heads * width * size * sum(n + group_size * new_tokens / 2 for n in prompts)
