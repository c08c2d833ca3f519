"""The answers file of a batch: one line per question, in input order, so that a stopped batch can continue."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dyme.evaluation.folder import write_whole
from dyme.predict.answer import Answer
from dyme.predict.questions import Question
from dyme.predict.settings import PredictError, Settings

OURS = frozenset(
    ("id", "image", "question", "thinking", "answer", "format", "guessed", "truncated", "completion", "error")
)
_ELSEWHERE = "name another --out, or delete it to start again"


def answer_row(question: Question, answer: Answer | str) -> dict[str, Any]:
    """A line of the answers file. A carried key with the name of one of our keys becomes `input_<key>`."""
    carried = {f"input_{key}" if key in OURS else key: value for key, value in question.carried.items()}
    row = {"id": question.id, "image": question.image, "question": question.text}
    return row | ({"error": answer} if isinstance(answer, str) else asdict(answer)) | carried


def origin(model: Path, source: Path, settings: Settings, dtype: str) -> dict[str, Any]:
    """Settings that all answers of one file share."""
    weights = [
        (p.name, p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(model.iterdir())
        if p.suffix in (".safetensors", ".bin", ".json")
    ]
    return {
        "model": str(model.resolve()),
        "weights": hashlib.sha256(json.dumps(weights).encode()).hexdigest()[:16],
        "input": str(source.resolve()),
        "dtype": dtype,
        **settings.as_json(),
    }


def begin(out: Path, questions: Sequence[Question], made_from: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines already in `out`, which is then ready to be appended to; [] for a new file.

    A half-written last line is cut off. Raises `PredictError` when `out` was made from something else.
    """
    beside = out.with_name(f"{out.name}.origin.json")
    if out.is_dir():
        raise PredictError(f"--out {out}: is a folder; name a .jsonl file")
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(beside, json.dumps(made_from, indent=1) + "\n")
        out.touch()
        return []
    _same_origin(out, beside, made_from)
    whole = out.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(kept.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise PredictError(f"{out}:{number}: is not JSON; {_ELSEWHERE}") from None
        if not isinstance(row, dict):
            raise PredictError(f"{out}:{number}: is not a JSON object; {_ELSEWHERE}")
        asked = questions[number - 1] if number <= len(questions) else None
        held = (row.get("id"), row.get("question"), row.get("image"))
        if asked is None or held != (asked.id, asked.text, asked.image):
            raise PredictError(f"{out}:{number}: is not about row {number} of the input; {_ELSEWHERE}")
        rows.append(row)
    os.truncate(out, len(kept))
    return rows


def _same_origin(out: Path, beside: Path, made_from: dict[str, Any]) -> None:
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise PredictError(f"--out {out}: exists, but not {beside.name} that says what made it; {_ELSEWHERE}") from None
    held = before if isinstance(before, dict) else {}
    changed = [key for key in made_from if held.get(key) != made_from[key]]
    if changed:
        raise PredictError(f"--out {out}: was made with another {', '.join(changed)}; {_ELSEWHERE}")
