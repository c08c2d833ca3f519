"""`python -m dyme.supervision.judge ping --config FILE`: is the judge there, how fast, and what to mend if not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dyme.settings.errors import ConfigError
from dyme.supervision.judge.ping import ping, read_sections


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 where every endpoint answers, 1 where one does not, 2 where the configuration is wrong."""
    options = _parser().parse_args(arguments)
    try:
        found = ping(read_sections(options.config).judge)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    for each in found:
        print(each.line())
    return 0 if all(each.ok for each in found) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dyme.supervision.judge", description="Look at the judge of a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    asks = commands.add_parser("ping", help="ask every endpoint one question and print a line for each")
    asks.add_argument("--config", type=Path, required=True, help="run YAML with a section judge")
    return parser


if __name__ == "__main__":
    sys.exit(main())
