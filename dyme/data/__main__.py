"""python -m dyme.data check SPEC [--all] | show SPEC [--n 12] [--out sheet.png], both with --fields question=problem"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from dyme.data.check import MAX_BAD_FRACTION, check, print_report
from dyme.data.errors import DataError
from dyme.data.paths import expand
from dyme.data.sheet import contact_sheet, unwritten
from dyme.data.sources import Check, read_records, unreadable
from dyme.data.spec import FORMS, NamedSource, parse_spec, snippet
from dyme.rewards.round_trip import round_trip
from dyme.settings.errors import explain
from dyme.settings.prompt import PromptConfig
from dyme.settings.rewards import RewardConfig
from dyme.text.printable import print_anything, printable

_RUN = (".yaml", ".yml")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 when more than 1 % of a source's rows are bad; 2 when there is nothing to read."""
    print_anything()
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        if options.command == "check":
            sources = parse_spec(options.spec, options.fields)
            return _check(console, sources, _usable(options.spec), options.all)
        return _show(console, parse_spec(options.spec, options.fields)[0], options.n, options.out)
    except (DataError, OSError) as error:
        reason = unreadable(error) if isinstance(error, OSError) else str(error)
        console.print(f"[red]{escape(printable(reason))}[/red]", soft_wrap=True, highlight=False)
        return 2


def _check(console: Console, sources: list[NamedSource], usable: Check, decode_all: bool) -> int:
    status = 0
    for named in sources:
        report = check(named.source, decode_all, usable)
        if not report.total:
            raise DataError(f"{named.label}: no rows; name another file")
        print_report(console, named, report)
        status = max(status, int(report.bad_fraction > MAX_BAD_FRACTION))
    console.print("\nfor a run configuration:", highlight=False)
    console.print(escape(snippet(sources)), soft_wrap=True, highlight=False, end="")
    return status


def _usable(spec: str) -> Check:
    """Whether a reply to a record can be right, by the settings of the run that `spec` names or else the defaults."""
    path = expand(spec)
    run = yaml.safe_load(path.read_text(encoding="utf-8")) if path.suffix in _RUN and path.is_file() else {}
    chosen = {name: run.get(name) or {} for name in ("reward", "prompt")}
    try:
        return round_trip(RewardConfig.model_validate(chosen["reward"]), PromptConfig.model_validate(chosen["prompt"]))
    except ValidationError as error:
        model = RewardConfig if error.title == "RewardConfig" else PromptConfig
        raise DataError(f"{path}: {explain(error, model)}") from error


def _show(console: Console, named: NamedSource, n: int, out: Path) -> int:
    records = read_records(named.source)
    if not records:
        raise DataError(f"{named.label}: no good row to show; see python -m dyme.data check")
    try:
        contact_sheet(records, n).save(out)
    except ValueError as error:  # of an ending that PIL does not know
        raise DataError(f"--out {out}: {error}; name a file that ends in .png") from error
    lacking = unwritten(records, n)
    if lacking:
        console.print(escape(lacking), soft_wrap=True, highlight=False)
    console.print(
        f"{escape(printable(named.label))}: {min(n, len(records))} of {len(records)} records -> {out}", soft_wrap=True
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dyme.data", description="Look at data before training on it.")
    commands = parser.add_subparsers(dest="command", required=True)
    looks = commands.add_parser("check", help="counts, coverage, answer types, picture sizes and every bad row")
    looks.add_argument("spec", help=FORMS)
    looks.add_argument("--all", action="store_true", help="decode every picture, not a sample of 200")
    shows = commands.add_parser("show", help="a page of pictures with question, answer, hint and facts")
    shows.add_argument("spec", help=f"{FORMS}; the first of several sources")
    shows.add_argument("--n", type=int, default=12, choices=range(1, 201), metavar="N", help="records, 1 to 200")
    for command in (looks, shows):
        command.add_argument("--fields", default="", help="our names and the file's: question=problem,answer=label")
    shows.add_argument("--out", type=Path, default=Path("sheet.png"), help="file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
