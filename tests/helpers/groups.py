"""Pictures, and groups of replies to prompts with and without them, for a family."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dyme.families import IMAGE, Prompt

NONE: frozenset[str] = frozenset()
SIZES = [(40, 24), (24, 24), (70, 20), (9, 60)]


def picture(seed: int, size: tuple[int, int] = (40, 24)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sees(family) -> bool:
    return IMAGE in family.modalities


def groups(family) -> list[tuple[Prompt, list[list[int]]]]:
    """Groups with pictures of different sizes, one with two, a text-only one between them."""

    def see(*seeds: int) -> list[Image.Image]:
        return [picture(s, SIZES[s % len(SIZES)]) for s in seeds] if sees(family) else []

    return [
        (family.encode("What is it?", see(0)), [[70, 80, 90, 85], [71], [70, 80, 91]]),
        (family.encode("Say a number"), [[60, 61, 62, 63, 64, 65]]),
        (family.encode("What is the value of bar two?", see(2)), [[75, 76], [90, 88, 77, 66, 55], [75, 76]]),
        (family.encode("Which is larger?", see(1, 3)), [[90, 91, 92], [93]]),
    ]
