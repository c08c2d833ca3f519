"""Files with a JSON object on every line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """`value` as strict JSON: floats keep 6 significant digits, NaN and infinities become None, tensors their item."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, [] when it does not exist; a half-written last line is left out.

    Raises ValueError, naming file and line, when any other line is not a JSON object.
    """
    if not path.exists():
        return []
    rows = []
    # Only "\n" ends a line here: model text may hold the other characters that str.splitlines() breaks at.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON ({error.msg}): delete that line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {number} is not a JSON object: delete that line")
        rows.append(row)
    return rows


def truncate_jsonl(path: Path, step: int) -> int:
    """Keep the lines of `path` with "step" <= `step`. Returns how many went that are no such lines at all, as a power
    loss leaves them. No file is no work."""
    if not path.exists():
        return 0
    kept, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            if row["step"] <= step:
                kept.append(json.dumps(row) + "\n")
        except (ValueError, TypeError, KeyError):
            torn += bool(line)
    shorter = path.with_name(path.name + ".cut")
    shorter.write_text("".join(kept), encoding="utf-8")
    shorter.replace(path)
    return torn


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append each of `rows` as a line of strict JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows))
