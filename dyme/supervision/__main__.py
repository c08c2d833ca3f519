"""python -m dyme.supervision extract SPEC --out FILE [--judge RUN.yaml]    |    ... templates RUN"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dyme.data.errors import DataError
from dyme.data.sources import read_records
from dyme.data.spec import FORMS, parse_spec
from dyme.settings.errors import ConfigError
from dyme.settings.judge import read_sections
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.extract import WINDOW, ExtractError, extract, wait_for_judge
from dyme.supervision.facts import FactStore
from dyme.supervision.judge.client import open_judge
from dyme.supervision.judge_prompts import PromptFileError, load_prompts
from dyme.supervision.templates import PoolError, TemplatePool, read_pool

NAMED = 10  # skipped records that are spelled out


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 1 when records were skipped, 2 when nothing could be done, 130 when stopped by Ctrl-C."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        if options.command == "extract":
            return _extract(console, options.spec, options.out, options.judge)
        _print_pool(console, options.run, read_pool(options.run))
        return 0
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    except (ConfigError, DataError, ExtractError, PromptFileError, PoolError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", soft_wrap=True, highlight=False)
        return 2


def _extract(console: Console, spec: str, out: Path, judge_file: Path | None) -> int:
    named = parse_spec(spec)
    records = read_records(named[0].source)
    if len(named) > 1:
        others = ", ".join(escape(other.label) for other in named[1:])
        console.print(f"of several sources the first, not {others}", soft_wrap=True, highlight=False)
    for row in records.bad:
        console.print(f"left out: {escape(str(row))}", soft_wrap=True, highlight=False)
    cfg, judge = SupervisionConfig(), None
    if judge_file:
        found = read_sections(judge_file)
        cfg = found.supervision.model_copy(update={"facts": "judge"})
        judge = open_judge(found.judge, out.parent)
    # a question may wait for all others of the window; judge.timeout_s is for a call under way
    store = FactStore(cfg, load_prompts(cfg.prompts), judge, WINDOW * judge.cfg.timeout_s if judge else None)
    columns = (TextColumn("facts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("facts", total=len(records))
            ready = (lambda: wait_for_judge(judge)) if judge else (lambda: None)
            done = extract(records, out, store, lambda n: progress.advance(bar, n), ready)
    finally:
        store.close()
        if judge is not None:
            judge.close()
    for line in done.bad[:NAMED]:
        console.print(f"skipped {escape(line)}", soft_wrap=True, highlight=False)
    sources = ", ".join(f"{name} {count}" for name, count in sorted(done.written.items())) or "none"
    console.print(
        f"{escape(str(out))}: {done.before} records before, facts of {sum(done.written.values())} more ({sources}), "
        f"{len(done.bad)} skipped" + (f", see {escape(out.name)}.bad.jsonl" if done.bad else ""),
        soft_wrap=True,
        highlight=False,
    )
    return int(bool(done.bad))


def _print_pool(console: Console, run: Path, pool: TemplatePool) -> None:
    console.print(f"{escape(str(run))}: version {pool.version}", highlight=False, soft_wrap=True)
    best = Table("kind", "score", "seen", "step", "record", "source", "template", title="templates, best first")
    for kind, entries in pool.entries.items():
        for e in entries:
            mark = "judge prefers it: " if e.preferred else "" if e.leads else "(the built-in one leads) "
            entry = (kind, f"{e.score:+.3f}", str(e.seen), str(e.step), e.record, e.source, mark + e.text)
            best.add_row(*map(escape, entry))
    history = Table("version", "step", "kind", "action", "score", "record", "source", "template", "instead of")
    history.title = "history"
    for h in pool.history:
        row = (str(h.version), str(h.step), h.kind, h.action, f"{h.score:+.3f}", h.record, h.source, h.text, h.beaten)
        history.add_row(*map(escape, row))
    console.print(best)
    console.print(history)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dyme.supervision", description="Visual facts and templates.")
    commands = parser.add_subparsers(dest="command", required=True)
    facts = commands.add_parser("extract", help="write the records of a source with their facts; goes on if stopped")
    facts.add_argument("spec", help=f"{FORMS}; of several sources the first")
    facts.add_argument("--out", type=Path, required=True, help="JSONL file, read back as jsonl:path=FILE")
    facts.add_argument("--judge", type=Path, help="YAML with a section `judge`: ask it about records without facts")
    pool = commands.add_parser("templates", help="the templates of a run and how they came about")
    pool.add_argument("run", type=Path, help="folder of the run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
