"""Families are named in dyme/families/ only: what goes by a name elsewhere would have to change with every new one."""

from __future__ import annotations

import re

from dyme.families import FAMILIES
from tests.helpers.launching import ROOT

# the kernels' presets and the benchmarks measure shapes of published models, which they call by name
FOLDERS = ("dyme", "launchers", "kernels")
WORDS = {"idefics", "smolvlm", "smollm", "qwen", "llava", "internvl", "gemma", "llama", "siglip"}


def test_no_family_is_named_outside_its_folder():
    assert all(any(word in name for word in WORDS) or name == "causal_lm" for name in FAMILIES)
    pattern = re.compile(f"(?i:{'|'.join(sorted(WORDS))})|{'|'.join(FAMILIES)}")  # CAUSAL_LM is a word of peft
    files = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*.py") if "families" not in f.parts]
    assert len(files) > 50
    named = [f"{f.relative_to(ROOT)}: {m[0]}" for f in files if (m := pattern.search(f.read_text(encoding="utf-8")))]
    assert named == []
