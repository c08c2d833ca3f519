"""Processors of exported folders."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


def open_processor(folder: Path) -> Any:
    """The processor of an exported folder through transformers' auto class. transformers 5.17 finds no image processor
    there without torchvision; the family's loader has to do then."""
    from transformers import AutoProcessor, __version__

    from dyme.families import load_family

    if __version__.startswith("5.17.") and importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ValueError, match="torchvision"):
            AutoProcessor.from_pretrained(folder)
        return load_family(folder)[0].processor
    return AutoProcessor.from_pretrained(folder)
