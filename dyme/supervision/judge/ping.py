"""Asks every endpoint of a configuration one question: what to run before a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from dyme.settings.errors import ConfigError, explain
from dyme.settings.judge import JudgeConfig, read_key
from dyme.settings.schema import Schema
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.judge.answers import parse_answer
from dyme.supervision.judge.endpoint import MENDS, PING, Endpoint
from dyme.supervision.judge.tally import Tally
from dyme.supervision.judge.wire import Reply


class Sections(Schema):
    """What a run's YAML says of its judge and of what it is asked for."""

    judge: JudgeConfig
    supervision: SupervisionConfig = SupervisionConfig()


@dataclass(frozen=True)
class Ping:
    """What one endpoint said. `structured`: it took a response_format and its answer fits; `mend` "" where `ok`."""

    model: str
    url: str
    ok: bool
    seconds: float
    structured: bool
    mend: str

    def line(self) -> str:
        where = f"{self.model} at {self.url}"
        if not self.ok:
            return f"FAILED  {where}: {self.mend}"
        form = "yes" if self.structured else "no (the schema goes into the text)"
        return f"ok      {where}: {self.seconds * 1e3:.0f} ms, structured output: {form}"


def read_sections(path: Path) -> Sections:
    """Sections `judge:` and `supervision:` of a run's YAML; ConfigError, one line, where the first is missing or one
    of them is wrong."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; give the YAML of a run") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    section = tree.get("judge") if isinstance(tree, dict) else None
    if not section:
        raise ConfigError(f"{path}: no section 'judge'; write judge: {{endpoints: [{{url: ..., model: ...}}]}}")
    try:
        found = Sections.model_validate({"judge": section, "supervision": tree.get("supervision") or {}})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Sections)}") from None
    if not found.judge.endpoints:
        raise ConfigError(f"{path}: judge.endpoints is empty; write [{{url: http://HOST:PORT, model: NAME}}]")
    return found


def ping(cfg: JudgeConfig, say: Callable[[str], None] = lambda message: None) -> list[Ping]:
    """Asks all endpoints at once, each within `judge.timeout_s`. ConfigError where a key's variable is missing."""
    keys = [read_key(endpoint, f"judge.endpoints.{i}") for i, endpoint in enumerate(cfg.endpoints)]

    async def all_of_them() -> list[Ping]:
        return await asyncio.gather(*(_one(cfg, i, key, say) for i, key in enumerate(keys)))

    return asyncio.run(all_of_them())


async def _one(cfg: JudgeConfig, index: int, key: str, say: Callable[[str], None]) -> Ping:
    endpoint = Endpoint(cfg, index, key, Tally(), say)
    started, told, value = time.monotonic(), False, None
    reply = Reply(reason="time_out")
    for told in (False, True):
        left = cfg.timeout_s - (time.monotonic() - started)
        sent = time.monotonic()
        try:
            reply = await asyncio.wait_for(endpoint.exchange(PING, told), max(0.001, left))
        except (TimeoutError, asyncio.TimeoutError):
            reply = Reply(reason="time_out")
        value = parse_answer(reply.text, PING.schema)
        if value is not None or reply.reason:
            break
    seconds = time.monotonic() - sent
    await endpoint.close()
    structured = endpoint.dialect.structured and not told
    mend = "" if value is not None else _mend(cfg, index, reply)
    return Ping(endpoint.settings.model, endpoint.settings.url, value is not None, seconds, structured, mend)


def _mend(cfg: JudgeConfig, index: int, reply: Reply) -> str:
    key = f"judge.endpoints.{index}"
    if reply.status in MENDS:
        return f"{reply.detail}; {MENDS[reply.status]} ({key})"
    mends = {
        "time_out": f"no answer within judge.timeout_s ({cfg.timeout_s:g} s); look at the server, or raise it",
        "connection": f"{reply.detail}; is the server up, and is {key}.url right?",
        "rate_limited": f"{reply.detail}; wait, or ask the provider for a higher limit",
        "server_error": f"{reply.detail}; look at the server's log, and check {key}.url",
        "refused": f"{reply.detail}; check {key}",
        "": f"its answer does not fit the schema, even when told in words ({_shown(reply.text)}); use a larger model",
    }
    return mends.get(reply.reason, reply.reason)


def _shown(text: str) -> str:
    """A model's words on a terminal."""
    return repr(" ".join(text.split())[:60]).encode("ascii", "backslashreplace").decode("ascii")
