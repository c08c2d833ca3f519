"""Paths as users write them in settings."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator


def expand(text: str) -> str:
    """`~` and environment variables (`$NAME`, `${NAME}`) filled in; relative paths stay relative to the working folder.

    Raises ValueError for a variable that is not set (left in place it would read as a missing file) and for a NUL byte.
    """
    if "\0" in text:
        raise ValueError(f"{text!r}: a path holds no NUL byte; take it out")
    full = os.path.expanduser(os.path.expandvars(text))
    if unset := re.search(r"\$\{?(\w+)\}?", full):
        raise ValueError(f"{text}: environment variable {unset[1]} is not set; export it or write the path out")
    return full


UserPath = Annotated[str, AfterValidator(expand)]
"""A setting that holds a path; its value is the expanded one."""
