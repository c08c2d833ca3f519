"""The judge's server, an OpenAI-compatible endpoint: requests in the form it accepts, replies, failures, cost."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import ipaddress
import json
import re
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from dyme.settings.judge import JudgeConfig, JudgeEndpoint, chat_url
from dyme.supervision.judge.answers import writable
from dyme.supervision.judge.types import Counters, Question, Reason

MAX_BYTES = 4 << 20
"""Most bytes of a reply."""
MAX_WAIT_S = 3600.0
"""Upper limit of a Retry-After."""
ADVICE = {
    **dict.fromkeys((301, 302, 307, 308), "check url (http or https, path)"),
    401: "check the variable named by api_key_env",
    402: "check the account behind the key",
    403: "check the variable named by api_key_env, and whether the key may use this model",
    404: "check url and model",
    405: "check url (path)",
}
"""Advice on a status caused by the settings rather than the question."""
_VERDICT = {"verdict": {"type": "string", "enum": ["ok"]}}
PING = Question(
    purpose="ping",
    version="1",
    system="You answer with JSON.",
    user='Set "verdict" to "ok".',
    schema={"type": "object", "properties": _VERDICT, "required": ["verdict"], "additionalProperties": False},
    max_tokens=64,
)
"""The question that tests whether a server answers."""
_PICTURES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True)
class Reply:
    """The result of one request. `text` of the answer if `reason` is ""; `wait_s` of a Retry-After; `status` 0 without
    an HTTP reply; `detail` for people: one printable line without the key. `cut`: the answer hit its token limit."""

    text: str = ""
    reason: Reason = ""
    status: int = 0
    detail: str = ""
    wait_s: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = False


def request_body(question: Question, cfg: JudgeConfig, refused: Set[str], told_schema: bool) -> dict[str, Any]:
    """The JSON body of a chat completion without the `refused` fields. `told_schema`: the text holds the schema."""
    text = writable(question.user)
    if told_schema or "response_format" in refused:
        schema = json.dumps(question.schema, ensure_ascii=False)
        text += f"\n\nReply with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    content: Any = text
    if question.images:
        pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in question.images]
        content = [*pictures, {"type": "text", "text": text}]
    system = [{"role": "system", "content": writable(question.system)}] if question.system else []
    body = {
        "model": cfg.endpoints[0].model,
        "messages": [*system, {"role": "user", "content": content}],
        "max_completion_tokens" if "max_tokens" in refused else "max_tokens": question.max_tokens or cfg.max_tokens,
    }
    if "temperature" not in refused:
        body["temperature"] = cfg.temperature
    if "response_format" not in refused:
        form = {"name": question.purpose, "strict": True, "schema": question.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def data_url(image: bytes) -> str:
    kind = next((kind for magic, kind in _PICTURES if image.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def refused_field(refused: Set[str], message: str) -> str | None:
    """The field that a server rejects with `message` (400, 422) after a request without the `refused` ones. If it names
    none, the field may be `response_format`."""
    hints = {"max_tokens": "max_completion_tokens", "temperature": "temperature", "response_format": ""}
    return next((field for field, hint in hints.items() if field not in refused and hint in message.casefold()), None)


def open_client(url: str, key: str, connections: int) -> httpx2.AsyncClient:
    """A client for the chat address `url`. Proxies of the environment apply to other networks only."""
    parts = urlsplit(url)
    local = is_local(parts.hostname or "")
    return httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        trust_env=not local,
        # the system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR; local http has no TLS
        verify=httpx2.create_ssl_context() if parts.scheme == "https" or not local else False,
        limits=httpx2.Limits(max_connections=connections + 1, max_keepalive_connections=connections),
        timeout=None,  # a call has a deadline; this would only limit the time between two bytes
        follow_redirects=False,
    )


def is_local(host: str) -> bool:
    """Whether `host` needs no proxy: this machine, private addresses, names without a dot (cluster nodes)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host.rstrip(".") or host.endswith(".localhost")
    return address.is_loopback or address.is_private


async def send(client: httpx2.AsyncClient, url: str, body: bytes, purpose: str, key: str) -> Reply:
    """Sends one request and reads the whole reply. Raises nothing but asyncio's own cancellation."""
    try:
        headers = {"Content-Type": "application/json", "X-DyME-Purpose": purpose}
        async with client.stream("POST", url, content=body, headers=headers) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    return Reply(reason="bad_answer", status=response.status_code, detail="reply of more than 4 MiB")
            return read_reply(response.status_code, bytes(content), response.headers.get("retry-after"), key)
    except Exception as error:  # an edge: network, TLS, proxies, encodings; the text of the error may hold anything
        return Reply(reason="connection", detail=printable(f"{type(error).__name__}: {error}", key))


def read_reply(status: int, content: bytes, retry_after: str | None, key: str) -> Reply:
    """A whole HTTP reply as a `Reply`."""
    if status != 200:
        wait_s = parse_retry_after(retry_after)
        paced = status == 429 or (status == 503 and wait_s is not None)
        passing = status >= 500 or status in (408, 409, 425)
        reason: Reason = "rate_limited" if paced else "server_error" if passing else "refused"
        # a server's message about a wrong key tends to repeat the key
        message = "" if status in (401, 403) else _error_message(content)
        return Reply(reason=reason, status=status, detail=printable(f"HTTP {status} {message}", key), wait_s=wait_s)
    try:
        tree = json.loads(content)
        choice = tree["choices"][0]
        text = _content_text(choice["message"]["content"])
    except (ValueError, LookupError, TypeError, RecursionError):  # an edge: bytes of a server
        return Reply(reason="server_error", status=status, detail="HTTP 200 whose body is no chat completion")
    usage = tree["usage"] if isinstance(tree.get("usage"), dict) else {}
    tokens_in, tokens_out = (_token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    cut = choice.get("finish_reason") == "length"
    return Reply(text=text, status=status, tokens_in=tokens_in, tokens_out=tokens_out, cut=cut)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or an HTTP date; None if it is neither."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip(), re.ASCII):
        return min(float(value), MAX_WAIT_S)
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):  # an edge: a header of a server
        return None
    return min(max(at - time.time(), 0.0), MAX_WAIT_S)


def printable(text: str, key: str, length: int = 200) -> str:
    """One line of printable ASCII without the key."""
    return _UNPRINTABLE.sub(" ", text.replace(key, "***") if key else text).strip()[:length]


def _error_message(content: bytes) -> str:
    text = content[:MAX_BYTES].decode("utf-8", "replace")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = tree.get("error", tree.get("detail")) if isinstance(tree, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else text


def _content_text(content: Any) -> str:
    """Content is a string, a list of parts, or null (a refusal, or thoughts alone)."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _token_count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 10**9 else 0


class Endpoint:
    """The server of the settings. The HTTP client opens with the first request. `say` gets messages for people."""

    def __init__(self, cfg: JudgeConfig, key: str, counters: Counters, say: Callable[[str], None]) -> None:
        self._cfg, self._key, self._counters, self._say = cfg, key, counters, say
        self.settings: JudgeEndpoint = cfg.endpoints[0]
        self.name = f"{self.settings.model} at {self.settings.url.strip()}"
        self.refused: frozenset[str] = frozenset()
        self._said = set[str]()
        self._url = chat_url(self.settings.url)
        self._client: httpx2.AsyncClient | None = None

    def say(self, message: str, once: str = "") -> None:
        """A message about the server. Of messages with the same `once` only the first is shown."""
        if not once or once not in self._said:
            self._said.add(once)
            self._say(f"judge {self.name}: {message}")

    async def ask(self, question: Question, timeout_s: float, told_schema: bool = False) -> Reply:
        """The reply within `timeout_s`, or one with the reason time_out."""
        try:
            return await asyncio.wait_for(self._exchange(question, told_schema), max(0.001, timeout_s))
        except asyncio.TimeoutError:
            return Reply(reason="time_out", detail=f"no answer for {timeout_s:.3g} s")

    async def _exchange(self, question: Question, told_schema: bool) -> Reply:
        """Asks, without further fields while the server refuses them. Remembers those once it answers."""
        refused = self.refused
        while True:
            content = json.dumps(request_body(question, self._cfg, refused, told_schema)).encode()
            try:
                self._client = self._client or open_client(self._url, self._key, self._cfg.concurrency)
            except Exception as error:  # an edge: proxies and certificates that the environment names
                advice = "check the proxy and certificate variables of the environment"
                return Reply(reason="connection", detail=f"{type(error).__name__}: {advice}")
            self._counters.sent(question.purpose)
            reply = await send(self._client, self._url, content, question.purpose, self._key)
            prices = reply.tokens_in * self.settings.input_price + reply.tokens_out * self.settings.output_price
            self._counters.add(tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, money=prices / 1e6)
            field = refused_field(refused, reply.detail) if reply.status in (400, 422) else None
            if field is None:
                break
            refused |= {field}
        if not reply.reason:
            if "response_format" in refused - self.refused:
                self.say("takes no response_format; the schema goes into the text")
            self.refused = refused
        if reply.reason == "refused" and reply.status not in ADVICE:
            about = f" about record {printable(question.record, self._key)}" if question.record else ""
            self.say(f"refused a question{about}: {reply.detail} (said once)", once="refused")
        return reply

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
