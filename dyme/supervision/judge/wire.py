"""One request to an OpenAI-compatible server: its body, and what comes back, sorted into answers and failures."""

from __future__ import annotations

import base64
import email.utils
import ipaddress
import json
import re
import ssl
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import httpx2

from dyme.supervision.judge.types import Question, Reason

MAX_BYTES = 4 << 20
"""Longer replies are given up."""
MAX_WAIT_S = 3600.0
"""A longer Retry-After is read as this."""
_PICTURES = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))
_TELLING = re.compile(r"[^\x20-\x7e]+")


@dataclass(frozen=True)
class Dialect:
    """How a server wants to be asked; `told_schema`: the schema stands in the text, besides or instead of
    `response_format`."""

    structured: bool = True
    told_schema: bool = False
    length_key: str = "max_tokens"
    temperature: bool = True


@dataclass(frozen=True)
class Reply:
    """What one request brought. `text` of the answer, where `reason` is ""; `wait_s` of a Retry-After; `status` 0
    where there was none; `detail` is for people: one printable line without the key. `cut`: at its longest length."""

    text: str = ""
    reason: Reason = ""
    status: int = 0
    detail: str = ""
    wait_s: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    cut: bool = False


def request_body(
    question: Question, model: str, dialect: Dialect, max_tokens: int, temperature: float
) -> dict[str, Any]:
    """The JSON body of a chat completion."""
    text = _sendable(question.user)
    if dialect.told_schema or not dialect.structured:
        schema = json.dumps(question.schema, ensure_ascii=False)
        text += f"\n\nReply with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    content: Any = text
    if question.images:
        pictures = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in question.images]
        content = [*pictures, {"type": "text", "text": text}]
    system = [{"role": "system", "content": _sendable(question.system)}] if question.system else []
    body = {
        "model": model,
        "messages": [*system, {"role": "user", "content": content}],
        dialect.length_key: question.max_tokens or max_tokens,
    }
    if dialect.temperature:
        body["temperature"] = temperature
    if dialect.structured:
        form = {"name": question.purpose, "strict": True, "schema": question.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _sendable(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot spell and servers choke on."""
    return text.encode("utf-8", "replace").decode("utf-8")


def data_url(image: bytes) -> str:
    kind = next((kind for magic, kind in _PICTURES if image.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def other_dialect(dialect: Dialect, detail: str) -> Dialect | None:
    """Another way to ask a server that refused `dialect` (400, 422) saying `detail`; None where none is left."""
    said = detail.casefold()
    if dialect.length_key == "max_tokens" and "max_completion_tokens" in said:
        return replace(dialect, length_key="max_completion_tokens")
    if dialect.temperature and "temperature" in said:
        return replace(dialect, temperature=False)
    return replace(dialect, structured=False) if dialect.structured else None


def open_client(url: str, key: str, connections: int) -> httpx2.AsyncClient:
    """A client for the chat address `url`. Proxies of the environment hold for other networks only."""
    parts = urlsplit(url)
    near = is_near(parts.hostname or "")
    return httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        trust_env=not near,
        verify=_certificates() if parts.scheme == "https" or not near else False,  # no TLS in near http
        limits=httpx2.Limits(max_connections=connections + 1, max_keepalive_connections=connections),
        timeout=None,  # the deadline of the call holds, which no time-out between two bytes does
        follow_redirects=False,
    )


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """The system's certificates, or those that SSL_CERT_FILE and SSL_CERT_DIR name. Loaded once: it takes a while."""
    return httpx2.create_ssl_context()


def is_near(host: str) -> bool:
    """Whether no proxy can lead to `host`: this machine, private addresses, names without a dot (cluster nodes)."""
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
        # what a server says about a wrong key tends to repeat the key
        said = "" if status in (401, 403) else _message(content)
        return Reply(reason=reason, status=status, detail=printable(f"HTTP {status} {said}", key), wait_s=wait_s)
    try:
        tree = json.loads(content)
        choice = tree["choices"][0]
        text = _text(choice["message"]["content"])
    except (ValueError, LookupError, TypeError, RecursionError):  # an edge: bytes of a server
        return Reply(reason="server_error", status=status, detail="HTTP 200 whose body is no chat completion")
    usage = tree.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    return Reply(
        text=text,
        status=status,
        tokens_in=_count(counted.get("prompt_tokens")),
        tokens_out=_count(counted.get("completion_tokens")),
        cut=choice.get("finish_reason") == "length",
    )


def parse_retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or an HTTP date; None where it is neither."""
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
    if key:
        text = text.replace(key, "***")
    return _TELLING.sub(" ", text).strip()[:length]


def _message(content: bytes) -> str:
    text = content[:MAX_BYTES].decode("utf-8", "replace")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = tree.get("error", tree.get("detail")) if isinstance(tree, dict) else None
    told = error.get("message") if isinstance(error, dict) else error
    return told if isinstance(told, str) else text


def _text(content: Any) -> str:
    """Content is a string, a list of parts, or null (a refusal, or thoughts alone)."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 10**9 else 0
