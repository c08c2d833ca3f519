"""One server of the judge: asks it in the way that it takes, and counts what that costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import httpx2

from dyme.settings.judge import JudgeConfig, chat_url
from dyme.supervision.judge.rotation import Line
from dyme.supervision.judge.tally import Tally
from dyme.supervision.judge.types import Question
from dyme.supervision.judge.wire import Dialect, Reply, open_client, other_dialect, printable, request_body, send

MENDS = {
    301: "check url (http or https, path)",
    302: "check url (http or https, path)",
    307: "check url (http or https, path)",
    308: "check url (http or https, path)",
    401: "check the variable named by api_key_env",
    402: "check the account behind the key",
    403: "check the variable named by api_key_env, and whether the key may use this model",
    404: "check url and model",
    405: "check url (path)",
}
"""Statuses that say something about the settings rather than about the question."""

PING = Question(
    purpose="ping",
    version="1",
    system="You answer with JSON.",
    user='Set "verdict" to "ok".',
    schema={
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": ["ok"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    },
    max_tokens=64,
)
"""The question that finds out whether a server answers."""


class Endpoint:
    """Endpoint `index` of the settings. `line` holds its state; the client opens with the first request."""

    def __init__(self, cfg: JudgeConfig, index: int, key: str, tally: Tally, say: Callable[[str], None]) -> None:
        self._cfg, self._key, self._tally = cfg, key, tally
        self.settings = cfg.endpoints[index]
        self.line = Line(endpoint_names(cfg)[index])
        self.dialect = Dialect()
        self._say, self._told = say, set[str]()
        self._url = chat_url(self.settings.url, f"judge.endpoints.{index}.url")
        self._client: httpx2.AsyncClient | None = None

    def say(self, message: str, once: str = "") -> None:
        """A message about this server; `once` names the kind that is told only the first time."""
        if once and once in self._told:
            return
        self._told.add(once)
        self._say(f"judge {self.line.name}: {message}")

    async def exchange(self, question: Question, told_schema: bool = False) -> Reply:
        """Asks, in another way where the server refuses the first one, and remembers the way that it takes."""
        cfg, dialect = self._cfg, self.dialect
        while True:
            asked = replace(dialect, told_schema=told_schema)
            body = request_body(question, self.settings.model, asked, cfg.max_tokens, cfg.temperature)
            content = json.dumps(body).encode()
            client = self._open()
            if isinstance(client, str):
                return Reply(reason="connection", detail=client)
            self._tally.sent(question.purpose)
            reply = await send(client, self._url, content, question.purpose, self._key)
            self._tally.add(self.price(reply), tokens_in=reply.tokens_in, tokens_out=reply.tokens_out)
            other = other_dialect(dialect, reply.detail) if reply.status in (400, 422) else None
            if other is None:
                break
            dialect = other
        if not reply.reason and dialect != self.dialect:
            if self.dialect.structured and not dialect.structured:
                self.say("takes no response_format; the schema goes into the text")
            self.dialect = dialect
        if reply.reason == "refused" and reply.status not in MENDS:
            about = f" about record {printable(question.record, self._key)}" if question.record else ""
            self.say(f"refused a question{about}: {reply.detail} (said once)", once="refused")
        return reply

    def price(self, reply: Reply) -> float:
        return (reply.tokens_in * self.settings.input_price + reply.tokens_out * self.settings.output_price) / 1e6

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> httpx2.AsyncClient | str:
        """The client, or why there is none."""
        if self._client is None:
            try:
                self._client = open_client(self._url, self._key, self._cfg.concurrency)
            except Exception as error:  # an edge: proxies and certificates that the environment names
                return f"{type(error).__name__}: check the proxy and certificate variables of the environment"
        return self._client


def endpoint_names(cfg: JudgeConfig) -> list[str]:
    """Name of each endpoint in counts and messages: its place, model and address."""
    return [f"{i} ({each.model} at {each.url.strip()})" for i, each in enumerate(cfg.endpoints)]
