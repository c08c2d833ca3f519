"""The comparison as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from dyme.compare.items import Reply
from dyme.compare.paired import Comparison, Difference, Flip, Section, is_right

WIDTH = 60  # characters of model text in a line


def render_text(comparison: Comparison, limit: int) -> str:
    """The whole comparison; at most `limit` flipped items in each direction."""
    head = [f"A  {comparison.name_a}", f"B  {comparison.name_b}", *comparison.notes]
    parts = ["\n".join(head), *(_section(section, limit) for section in comparison.sections)]
    return "\n\n".join(parts)


def signed(difference: Difference) -> str:
    """The difference with its interval: "+0.120 [+0.031, +0.209]"."""
    interval = difference.interval
    told = f" [{interval.low:+.3f}, {interval.high:+.3f}]" if interval else ""
    return f"{difference.delta:+.3f}{told}"


def said_test(section: Section) -> str:
    """The paired test in words."""
    p = f"{section.p_value:.4f}" if section.p_value >= 0.001 else f"{section.p_value:.1e}"
    if section.sampled:
        samples = "/".join(map(str, section.samples))
        counts = f"{section.lower} items lower in B, {section.higher} higher"
        return f"sign test on mean scores of {samples} samples: {counts}, p = {p}"
    return f"exact McNemar test: {section.only_a} right in A only, {section.only_b} in B only, p = {p}"


def shown_reply(replies: Sequence[Reply]) -> Reply:
    """The first sample with the verdict of the item."""
    right = is_right(replies)
    return next(reply for reply in replies if reply.score is not None and reply.correct == right)


def _section(section: Section, limit: int) -> str:
    lines = [f"== {section.title}, {section.n} items =="]
    if section.accuracy is not None:
        lines.append(f"accuracy      {_row(section.accuracy)}   (95 % paired bootstrap)")
    if section.unscored:
        lines.append(f"left out: {section.unscored} items whose verifier failed")
    lines += [
        f"              {'B right':>9}{'B wrong':>9}",
        f"     A right  {section.both:>9}{section.only_a:>9}",
        f"     A wrong  {section.only_b:>9}{section.neither:>9}",
        said_test(section),
    ]
    if section.faithfulness is not None:
        lines.append(f"faithfulness  {_row(section.faithfulness)}   ({section.faithfulness.n} items)")
    if section.kinds:
        width = max(len(_plain(kind) or "no kind") for kind, _ in section.kinds)
        lines += ["by kind"]
        lines += [f"  {_plain(kind) or 'no kind':<{width}}  {d.n:>6} items   {_row(d)}" for kind, d in section.kinds]
    for gained, told in ((False, "right in A, wrong in B"), (True, "wrong in A, right in B")):
        flips = [flip for flip in section.flips if flip.gained == gained]
        more = f", {limit} shown" if len(flips) > limit else ""
        lines += ["", f"{told}: {len(flips)}{more}", *(_flip(flip) for flip in flips[:limit])]
    return "\n".join(lines)


def _row(difference: Difference) -> str:
    return f"A {difference.a:.3f}   B {difference.b:.3f}   B - A {signed(difference)}"


def _flip(flip: Flip) -> str:
    item = flip.answered.item
    a, b = (_plain(shown_reply(replies).answer) or "none" for replies in (flip.answered.a, flip.answered.b))
    gold = _plain(item.gold[0]) if item.gold else "none"
    return f"  {_plain(item.id)}  {_plain(item.question)}  gold: {gold}  A: {a}  B: {b}"


def _plain(text: str) -> str:
    """One short line without unprintable characters, because escape sequences must not reach the terminal."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
