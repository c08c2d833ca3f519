"""Processors of checkpoint folders, with and without torchvision.

Without torchvision transformers has no video processors, and most vision-language processors insist on one. Pictures
do not need it, so processors are built without one here; otherwise they are transformers' own.
"""

from __future__ import annotations

import importlib
import shutil
import stat
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, ProcessorMixin
from transformers.utils import is_torchvision_available

FILES = (
    "*.jinja",
    "added_tokens.json",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer*",
    "video_preprocessor_config.json",
    "vocab.*",
)
"""Files of processors and tokenizers of Hugging Face checkpoints."""


def load_processor(path: Path, processor_class: str | None, image_processor_class: str | None) -> Any:
    """The processor of a checkpoint folder, or its tokenizer for text-only models. Raises OSError or ValueError."""
    if processor_class is None:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    kind = getattr(transformers, processor_class)
    if is_torchvision_available():
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    assert image_processor_class is not None, "a processor of pictures has an image processor"
    image_processor = pil_class(image_processor_class).from_pretrained(path, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    settings, _ = kind.get_processor_dict(path, local_files_only=True)
    parts = [image_processor, tokenizer]
    if "video_processor" in kind.get_attributes():
        parts, kind = [*parts, None], without_video(kind)
    return kind.from_args_and_dict(parts, settings)


def without_video(kind: type) -> type:
    """A processor class that accepts None as video processor, also while it applies a chat template, where it would
    read the frames to sample from it."""

    def check(self: Any, name: str, value: Any) -> Any:
        return type(None) if name == "video_processor" and value is None else checked(self, name, value)

    checked = kind.check_argument_for_proper_class  # type: ignore[attr-defined]
    changed = {
        "check_argument_for_proper_class": check,
        "apply_chat_template": ProcessorMixin.apply_chat_template,
        "__module__": kind.__module__,
    }
    return type(kind.__name__, (kind,), changed)


def pil_class(name: str) -> Any:
    """The image processor for PIL and NumPy, taken from its own module: without torchvision, transformers 5.17 exports
    a placeholder instead, although this processor does not need torchvision."""
    found = getattr(transformers, f"{name}Pil")
    return getattr(importlib.import_module(found.__module__), f"{name}Pil")


def copy_processor(source: Path, folder: Path) -> int:
    """Copies the files of a checkpoint's processor, tokenizer and chat template with their permissions, as far as new
    files have them too. Returns how many. Raises `ValueError` for a link out of the checkpoint, see `strays`."""
    if strays(source):
        raise ValueError(f"{strays(source)[0]} is a link out of its folder: put the file itself there")
    files = _files(source)
    for file in files:
        target = folder / file.name
        shutil.copyfile(file, target)
        target.chmod(target.stat().st_mode & file.stat().st_mode | stat.S_IWUSR)
    return len(files)


def strays(source: Path) -> list[Path]:
    """The files `copy_processor` does not copy: links to what lies outside the checkpoint, which may be meant for other
    eyes. In a snapshot of the Hugging Face cache the links into its `blobs` belong to the checkpoint."""
    full = source.resolve()
    inside = [full, *([full.parent.parent / "blobs"] if full.parent.name == "snapshots" else [])]
    return [file for file in _files(source) if not any(place in file.resolve().parents for place in inside)]


def _files(source: Path) -> list[Path]:
    return sorted({file for pattern in FILES for file in source.glob(pattern) if file.is_file()})
