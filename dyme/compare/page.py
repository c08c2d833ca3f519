"""compare.html: the numbers and every flipped item with its picture, both replies side by side, in one file.

The page makes no request. Its one script filters the cards; without scripts all cards show.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from dyme.compare.items import Item, Reply
from dyme.compare.paired import Comparison, Difference, Flip, Section, is_right
from dyme.compare.pictures import Pictures, data_uri
from dyme.compare.text import said_test, shown_reply, signed
from dyme.report.page import CSS, esc

MORE_CSS = """
h1, .quiet li { overflow-wrap: anywhere; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; max-width: 16rem; }
.pair td, .pair th { min-width: 4.5rem; }
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; margin: .75rem 0; align-items: baseline; }
.filters select { font: inherit; max-width: 12rem; }
.card { content-visibility: auto; contain-intrinsic-size: auto 320px; }
.card[hidden] { display: none; }
.way { display: inline-block; font-size: .75rem; font-weight: 600; padding: 0 .45em; border-radius: 4px; }
.gained .way { background: #dcebf7; color: #005a8e; } .lost .way { background: #fbe4d5; color: #8f3a00; }
.id { overflow-wrap: anywhere; }
"""
SCRIPT = """
const picks = [...document.querySelectorAll("select")];
function show() {
  let shown = 0;
  for (const card of document.querySelectorAll("article")) {
    card.hidden = !picks.every(pick => !pick.value || card.dataset[pick.name] === pick.value);
    shown += !card.hidden;
  }
  document.getElementById("shown").textContent = shown;
}
for (const pick of picks) pick.addEventListener("change", show);
show();
"""
WAYS = {"gained": "wrong in A, right in B", "lost": "right in A, wrong in B"}


def render_page(comparison: Comparison, pictures: Pictures) -> str:
    """The whole page as a string. Text of models and data is escaped everywhere, and only our own script may run."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    title = f"{comparison.name_a} → {comparison.name_b}"
    flips = sum(len(section.flips) for section in comparison.sections)
    cards = "".join(_card(section, flip, pictures) for section in comparison.sections for flip in section.flips)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>DyME comparison: {esc(title)}</title>
<style>{CSS}{MORE_CSS}</style>
</head>
<body>
<h1>{esc(title)}</h1>
<p><b>A</b> is {esc(comparison.name_a)}, <b>B</b> is {esc(comparison.name_b)}.</p>
<ul class="quiet">{"".join(f"<li>{esc(note)}</li>" for note in comparison.notes)}</ul>
{"".join(_numbers(section) for section in comparison.sections)}
<h2>Flipped items</h2>
{_filters(comparison.sections) if flips else '<p class="quiet">No item flipped.</p>'}
<div class="cards">{cards}</div>
<script>{SCRIPT if flips else ""}</script>
</body>
</html>
"""


def _numbers(section: Section) -> str:
    kinds = [(f"accuracy, {kind or 'no kind'}", difference) for kind, difference in section.kinds]
    rows = [("accuracy", section.accuracy), *kinds, ("faithfulness", section.faithfulness)]
    body = "".join(_row(name, difference) for name, difference in rows if difference is not None)
    left_out = f"<p>{section.unscored} items whose verifier failed are left out.</p>" if section.unscored else ""
    return f"""<h2>{esc(section.title)}: {section.n} items</h2>
<div class="scroll"><table><thead><tr><th></th><th>items</th><th>A</th><th>B</th>
<th>B − A (95 % paired bootstrap)</th></tr></thead><tbody>{body}</tbody></table></div>
{left_out}<h3>Right and wrong</h3>
<div class="scroll"><table class="pair"><thead><tr><th></th><th>B right</th><th>B wrong</th></tr></thead><tbody>
<tr><td>A right</td><td>{section.both}</td><td>{section.only_a}</td></tr>
<tr><td>A wrong</td><td>{section.only_b}</td><td>{section.neither}</td></tr></tbody></table></div>
<p>{esc(said_test(section))}</p>
"""


def _row(name: str, difference: Difference) -> str:
    return (
        f"<tr><td>{esc(name)}</td><td>{difference.n}</td><td>{difference.a:.3f}</td><td>{difference.b:.3f}</td>"
        f"<td>{esc(signed(difference))}</td></tr>"
    )


def _filters(sections: Sequence[Section]) -> str:
    kinds = sorted({flip.answered.item.kind for section in sections for flip in section.flips})
    picks = [_pick("way", "direction", WAYS.items())]
    if len(kinds) > 1:
        picks.append(_pick("kind", "kind", [(kind or "-", kind or "no kind") for kind in kinds]))
    if len(sections) > 1:
        picks.append(_pick("column", "column", [(section.title, section.title) for section in sections]))
    total = sum(len(section.flips) for section in sections)
    return f'<div class="filters">{"".join(picks)}<span><b id="shown">{total}</b> of {total} shown</span></div>'


def _pick(name: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    told = "".join(f'<option value="{esc(value)}">{esc(text)}</option>' for value, text in options)
    return f'<label>{label} <select name="{name}"><option value="">all</option>{told}</select></label>'


def _card(section: Section, flip: Flip, pictures: Pictures) -> str:
    item, way = flip.answered.item, "gained" if flip.gained else "lost"
    gold = ", ".join(item.gold) or "none"
    about = " · ".join(filter(None, (section.title, item.kind, item.id)))
    return (
        f'<article class="card {way}" data-way="{way}" data-kind="{esc(item.kind or "-")}" '
        f'data-column="{esc(section.title)}"><div class="ask">{_picture(item, pictures)}<div>'
        f'<div class="when id"><span class="way">{WAYS[way]}</span> {esc(about)}</div>'
        f'<div class="question">{esc(item.question)}</div><div class="value">gold answer: <b>{esc(gold)}</b></div>'
        f'</div></div><div class="answers">{_side("A", flip.answered.a)}{_side("B", flip.answered.b)}</div></article>'
    )


def _side(name: str, replies: Sequence[Reply]) -> str:
    right, reply = is_right(replies), shown_reply(replies)
    told = ["✓ right" if right else "✗ wrong"]
    if len(replies) > 1:
        scored = [r for r in replies if r.score is not None]
        told.append(f"{sum(r.correct for r in scored)} of {len(scored)} samples right, one shown")
    told += [text for said, text in _remarks(reply) if said]
    # without a valid format the parts of a reply mislead, so it stands whole
    trace = reply.thinking if reply.format else reply.completion
    answer = f"<b>{esc(reply.answer)}</b>" if reply.answer else "<i>none</i>"
    return (
        f'<div class="{"right" if right else "wrong"}"><div class="when">{name}</div>'
        f'<div class="trace">{esc(trace) if trace else "<i>no trace</i>"}</div>'
        f'<div class="value">answer: {answer}</div><div class="verdict">{esc(", ".join(told))}</div></div>'
    )


def _remarks(reply: Reply) -> list[tuple[bool, str]]:
    cut = "cut at the token limit"
    return [
        (reply.truncated, cut),
        (reply.guessed, "guessed"),
        (not reply.format and not reply.truncated, "format not valid"),
    ]


def _picture(item: Item, pictures: Pictures) -> str:
    picture, reason = pictures.find(item)
    if picture is None:
        return f'<div class="when id">{esc(reason)}</div>' if reason else ""
    uri, tiny = data_uri(picture)
    return f'<img{" class=tiny" if tiny else ""} alt="the picture asked about" src="{uri}">'
