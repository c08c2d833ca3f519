"""What rollout and step benchmarks run: random checkpoints of given shapes, pictures, questions of a given length;
and the bytes bound of a decode step: weights and KV cache read once for each token, keys and values of a prompt once
for its group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import nn

from benchmarks.checkpoints import makers
from benchmarks.checkpoints.common import write_checkpoint
from dyme.families import Family, Prompt, load_family


def checkpoint(name: str, folder: Path) -> Path:
    """Writes the random checkpoint `name` of benchmarks.checkpoints into a folder of its own, unless it is there: a
    tiny one, or one with the dimensions of a published model in bfloat16."""
    place = folder / name
    if not (place / "written").exists():  # a process may be killed while it writes
        held = {**makers(), **makers("SHAPES")}
        write_checkpoint(place, held[name][1](), random_weights=True)
        (place / "written").touch()
    return place


def open_model(name: str, folder: Path, device: torch.device, dtype: str) -> tuple[Family, nn.Module]:
    """A model in eval mode on the device, with replies of one fixed length (see `fix_length`)."""
    family, model = load_family(checkpoint(name, folder), dtype=dtype)
    fix_length(family)
    return family, model.eval().requires_grad_(False).to(device)


def fix_length(family: Family) -> None:
    """Bans the end of the turn in our engines, as min_new_tokens does in transformers, so that everybody makes the
    same number of tokens; and of all other tokens only the placeholders, which a model cannot take in a reply."""
    family.forbidden_ids = tuple(sorted({*placeholders(family), *family.stop_ids}))


def placeholders(family: Family) -> list[int]:
    names = ("image_token_id", "video_token_id")
    return [token for name in names if (token := getattr(family.config, name, None)) is not None]


def picture(size: tuple[int, int], number: int) -> Image.Image:
    """A bar chart without words; another one for each number."""
    width, height = size
    image = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for bar in range(4):
        tall = height * (1 + (7 * number + 3 * bar) % 9) // 10
        box = (bar * width // 4 + 1, height - tall, (bar + 1) * width // 4 - 2, height)
        draw.rectangle(box, fill=((53 * number) % 256, 60 * bar, (97 * (number + bar)) % 256))
    return image


def question(family: Family, number: int, image: Image.Image, tokens: int) -> str:
    """A question whose prompt with the picture has about `tokens` tokens; 0: as short as it is."""
    text = f"What is the value of bar {number % 10}?"
    base = len(family.encode(text, [image]))
    per_word = (len(family.encode(text + " the" * 20, [image])) - base) / 20
    return text + " the" * max(0, math.floor((tokens - base) / per_word))


def prompts(family: Family, sizes: Sequence[tuple[int, int]], count: int, tokens: int) -> list[tuple[str, Any, Prompt]]:
    """(question, picture, encoded prompt), pictures of the sizes in turn."""
    found = []
    for number in range(count):
        image = picture(sizes[number % len(sizes)], number)
        text = question(family, number, image, tokens)
        found.append((text, image, family.encode(text, [image])))
    return found


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
