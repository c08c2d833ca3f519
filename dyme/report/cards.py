"""Sample cards: the same held-out records before and after training, right and wrong in their true proportion."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dyme.report.figure import run_color
from dyme.report.runs import Run

SHOWN_ALONE = 12
SHOWN_EACH = 6
MAX_SIDE = 384


@dataclass(frozen=True)
class Pair:
    """One record's lines of samples.jsonl at the first and the last evaluation; `before` is None after only one."""

    before: dict[str, Any] | None
    after: dict[str, Any]


def pair_samples(samples: Sequence[dict[str, Any]]) -> list[Pair]:
    """The records of the last evaluation, by id, each with its answer at the first one."""
    if not samples:
        return []
    first, last = samples[0]["step"], samples[-1]["step"]
    start = {row["id"]: row for row in samples if row["step"] == first} if first != last else {}
    end = {row["id"]: row for row in samples if row["step"] == last}
    return [Pair(start.get(key), end[key]) for key in sorted(end, key=str)]


def choose(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` of `pairs`, right and wrong answers in proportion, one at least of each that occurs, kinds in turn.

    Depends on ids and verdicts only: nobody picks the good ones.
    """
    if len(pairs) <= count:
        return list(pairs)
    right = [pair for pair in pairs if pair.after.get("correct")]
    wrong = [pair for pair in pairs if not pair.after.get("correct")]
    share = round(count * len(right) / len(pairs))
    share = max(min(share, count - bool(wrong)), int(bool(right)))
    chosen = _by_kind_in_turn(right)[:share] + _by_kind_in_turn(wrong)[: count - share]
    return sorted(chosen, key=pairs.index)


def render_samples(run: Run, index: int, esc: Callable[[Any], str], *, alone: bool) -> str:
    """The cards of one run with a line that says how they were chosen; `esc` makes text safe for HTML."""
    swatch = f'<span class="swatch" style="background:{run_color(index)}"></span>'
    title = "" if alone else f"<h3>{swatch}{esc(run.name)} ({esc(run.method)})</h3>"
    pairs = pair_samples(run.samples)
    if not pairs:
        return f'{title}<p class="quiet">No sample answers yet.</p>'
    shown = choose(pairs, SHOWN_ALONE if alone else SHOWN_EACH)
    right = sum(bool(pair.after.get("correct")) for pair in pairs)
    told = f"{len(shown)} of {len(pairs)} sampled held-out records, chosen by id; {right} of {len(pairs)} are right"
    if run.samples[0]["step"] == run.samples[-1]["step"]:
        told += f" at step {run.samples[-1]['step']}, the only evaluation so far"
    cards = "".join(_card(pair, run.path, esc) for pair in shown)
    return f'{title}<p class="quiet">{esc(told)}.</p><div class="cards">{cards}</div>'


def _by_kind_in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    kinds: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        kinds[str(pair.after.get("kind", ""))].append(pair)
    longest = max((len(group) for group in kinds.values()), default=0)
    return [kinds[kind][turn] for turn in range(longest) for kind in sorted(kinds) if turn < len(kinds[kind])]


def _card(pair: Pair, run_dir: Path, esc: Callable[[Any], str]) -> str:
    row = pair.after
    kind = f'<div class="when">{esc(row["kind"])}</div>' if row.get("kind") else ""
    before = _answer("before", pair.before, esc) if pair.before is not None else ""
    return (
        f'<article class="card"><div class="ask">{_picture(row.get("image"), run_dir, esc)}<div>{kind}'
        f'<div class="question">{esc(row.get("question", ""))}</div>'
        f"<div>gold answer: <b>{esc(row.get('gold', ''))}</b></div></div></div>"
        f'<div class="answers">{before}{_answer("after", row, esc)}</div></article>'
    )


def _answer(when: str, row: dict[str, Any], esc: Callable[[Any], str]) -> str:
    right = bool(row.get("correct"))
    verdict = ("✓ right" if right else "✗ wrong") + ("" if row.get("format") else ", format not valid")
    # Without the answer flag nothing can be split, so the whole completion stands where the trace would.
    trace = row.get("thinking") if row.get("format") else row.get("completion")
    answer = f"<b>{esc(row['answer'])}</b>" if row.get("answer") else "<i>none</i>"
    return (
        f'<div class="{"right" if right else "wrong"}"><div class="when">{when} (step {esc(row["step"])})</div>'
        f'<div class="trace">{esc(trace) if trace else "<i>no trace</i>"}</div>'
        f'<div class="value">answer: {answer}</div><div class="verdict">{verdict}</div></div>'
    )


def _picture(name: Any, run_dir: Path, esc: Callable[[Any], str]) -> str:
    if not name:
        return ""
    # Only the last part counts: a line of samples.jsonl cannot make the page hold a file from elsewhere.
    path = run_dir / "samples" / Path(str(name)).name
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return '<div class="when">picture missing</div>'
    tiny = ' class="tiny"' if max(picture.size) <= 128 else ""
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img{tiny} alt="the picture asked about" src="data:image/png;base64,{data}">'
