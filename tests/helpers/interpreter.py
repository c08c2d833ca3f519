"""Triton's interpreter: kernels run on CPU tensors, slowly. To be asked for before Triton is imported."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import version
from typing import Any


def interpret_triton() -> None:
    """Turns the interpreter on, unless the environment says otherwise."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None and version("triton").startswith("3.6."):
        _mend_loops()


def _mend_loops() -> None:
    """Triton 3.6 interprets the bound of a loop as int(array of one number), an error since NumPy 2.4."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend
