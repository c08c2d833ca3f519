"""`python -m dyme.supervision.judge ping --config FILE`: whether the judge answers, how fast, and how to fix it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from dyme.settings.errors import ConfigError
from dyme.settings.judge import KEY, JudgeConfig, read_key, read_sections
from dyme.supervision.judge.answers import parse_answer
from dyme.supervision.judge.endpoint import ADVICE, PING, Endpoint, Reply
from dyme.supervision.judge.types import Counters


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if the judge answers, 1 if it does not, 2 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="python -m dyme.supervision.judge", description="Look at the judge of a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    asks = commands.add_parser("ping", help="ask the judge one question and print a line about it")
    asks.add_argument("--config", type=Path, required=True, help="run YAML with a section judge")
    options = parser.parse_args(arguments)
    try:
        cfg = read_sections(options.config).judge
        ok, line = asyncio.run(ping(cfg, read_key(cfg)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(line)
    return 0 if ok else 1


async def ping(cfg: JudgeConfig, key: str) -> tuple[bool, str]:
    """Asks one question within `judge.timeout_s`. Whether the answer fits its schema, and a line about the server."""
    endpoint = Endpoint(cfg, key, Counters(), say=lambda message: None)
    end = time.monotonic() + cfg.timeout_s
    for told_schema in (False, True):
        sent = time.monotonic()
        reply = await endpoint.ask(PING, end - sent, told_schema)
        ok = not reply.reason and parse_answer(reply.text, PING.schema) is not None
        if ok or reply.reason:
            break
    seconds = time.monotonic() - sent
    await endpoint.close()
    if not ok:
        return False, f"FAILED  {endpoint.name}: {_advice(cfg, reply)}"
    structured = "response_format" not in endpoint.refused and not told_schema
    form = "yes" if structured else "no (the schema goes into the text)"
    return True, f"ok      {endpoint.name}: {seconds * 1e3:.0f} ms, structured output: {form}"


def _advice(cfg: JudgeConfig, reply: Reply) -> str:
    if reply.status in ADVICE:
        return f"{reply.detail}; {ADVICE[reply.status]} ({KEY})"
    # the words of a model, made safe for a terminal
    shown = repr(" ".join(reply.text.split())[:60]).encode("ascii", "backslashreplace").decode("ascii")
    advice = {
        "time_out": f"no answer within judge.timeout_s ({cfg.timeout_s:g} s); look at the server, or raise it",
        "connection": f"{reply.detail}; is the server up, and is {KEY}.url right?",
        "rate_limited": f"{reply.detail}; wait, or ask the provider for a higher limit",
        "server_error": f"{reply.detail}; look at the server's log, and check {KEY}.url",
        "refused": f"{reply.detail}; check {KEY}",
        "": f"its answer does not fit the schema, even when told in words ({shown}); use a larger model",
    }
    return advice.get(reply.reason, reply.reason)


if __name__ == "__main__":
    sys.exit(main())
