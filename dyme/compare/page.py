"""compare.html: the numbers and every flipped item with its picture, both replies side by side, in one file.

The page makes no request. Its one script filters the cards; without scripts all cards show.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from dyme.compare.items import Reply
from dyme.compare.paired import Comparison, Section, is_right
from dyme.compare.pictures import Pictures
from dyme.compare.text import said_test, shown_reply, signed
from dyme.report.html import render

WAYS = {"gained": "wrong in A, right in B", "lost": "right in A, wrong in B"}


def render_page(comparison: Comparison, pictures: Pictures) -> str:
    """The whole page as a string. The browser runs only the page's own script, by its SHA-256."""
    flips = [
        (section, "gained" if flip.gained else "lost", flip.answered, pictures.find(flip.answered.item))
        for section in comparison.sections
        for flip in section.flips
    ]
    return render(
        "compare.html.j2",
        names=f"{comparison.name_a} → {comparison.name_b}",
        comparison=comparison,
        flips=flips,
        ways=WAYS,
        filters=_filters(comparison.sections),
        digest=base64.b64encode(hashlib.sha256(render("filter.js").encode()).digest()).decode("ascii"),
        signed=signed,
        said_test=said_test,
        shown_reply=shown_reply,
        is_right=is_right,
        remarks=_remarks,
    )


def _filters(sections: Sequence[Section]) -> list[tuple[str, str, Iterable[tuple[str, str]]]]:
    """Name, label and options of each filter."""
    kinds = sorted({flip.answered.item.kind for section in sections for flip in section.flips})
    filters: list[tuple[str, str, Iterable[tuple[str, str]]]] = [("way", "direction", WAYS.items())]
    if len(kinds) > 1:
        filters.append(("kind", "kind", [(kind or "-", kind or "no kind") for kind in kinds]))
    if len(sections) > 1:
        filters.append(("column", "column", [(section.title, section.title) for section in sections]))
    return filters


def _remarks(replies: Sequence[Reply], shown: Reply) -> list[str]:
    """Remarks on one side, after its verdict."""
    scored = [reply for reply in replies if reply.score is not None]
    remarks = {
        f"{sum(reply.correct for reply in scored)} of {len(scored)} samples right, one shown": len(replies) > 1,
        "cut at the token limit": shown.truncated,
        "guessed": shown.guessed,
        "format not valid": not shown.format and not shown.truncated,
    }
    return [remark for remark, holds in remarks.items() if holds]
