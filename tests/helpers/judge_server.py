"""A scripted OpenAI-compatible server for tests: real HTTP on a real port, with every fault a judge can have.

    with JudgeServer(latency_ms=300) as server:
        cfg = JudgeConfig(endpoints=[{"url": server.url, "model": "m"}])
        server.next(status(429, retry_after=1), reset())   # the next two requests; those after them are answered
        server.always(status(500))                         # until server.always(None)
        ...
        server.count("check"), server.calls                # what came in
        server.stop(); server.start()                      # dies and returns on the same port

`answer(call)` gives the value (a dict, sent as JSON) or the text of an answer; by default the first value that the
schema allows. The port is also open to other processes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class Call:
    """A request as the server sees it. `schema`: of response_format, or as told in the text; `at`: time.monotonic()."""

    purpose: str
    model: str
    system: str
    user: str
    images: tuple[bytes, ...]
    schema: dict[str, Any] | None
    structured: bool
    body: dict[str, Any]
    headers: dict[str, str]
    at: float


@dataclass(frozen=True)
class Fault:
    """What happens to a request in place of its answer; see the functions below."""

    kind: str
    seconds: float = 0.0
    code: int = 200
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def delay(seconds: float) -> Fault:
    """The right answer, late."""
    return Fault("delay", seconds=seconds)


def silence(seconds: float = 30.0) -> Fault:
    """Nothing for `seconds`, then the connection ends without an answer."""
    return Fault("silence", seconds=seconds)


def status(code: int, retry_after: float | str | None = None, text: str = "scripted") -> Fault:
    headers = () if retry_after is None else (("Retry-After", str(retry_after)),)
    return Fault("status", code=code, text=text, headers=headers)


def reset() -> Fault:
    """The connection is reset (TCP RST)."""
    return Fault("reset")


def truncated() -> Fault:
    """Half of the reply's bytes, then the end of the connection."""
    return Fault("truncated")


def says(text: str) -> Fault:
    """A chat completion with this text."""
    return Fault("says", text=text)


def raw(text: str, content_type: str = "text/html") -> Fault:
    """HTTP 200 with a body that is no chat completion."""
    return Fault("raw", text=text, headers=(("Content-Type", content_type),))


WRONG_SCHEMA = says('{"something": ["else"]}')
TRUNCATED_JSON = says('{"rating": "hi')


class JudgeServer:
    """See the module. `key`: requests without it as their bearer token get 401. `refuses`: names of body fields whose
    presence gets 400 (response_format, temperature, max_tokens). `tls`: files of certificate and key, for https."""

    def __init__(
        self,
        answer: Callable[[Call], dict[str, Any] | str] | None = None,
        latency_ms: float = 0.0,
        key: str | None = None,
        refuses: tuple[str, ...] = (),
        port: int = 0,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        self.answer = answer or default_answer
        self.latency_ms, self.key, self.refuses = latency_ms, key, refuses
        self.port, self.tls = port or free_port(), tls
        self._busy = 0
        self._fault: Fault | None = None
        self._script: deque[Fault] = deque()
        self.clear()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def next(self, *faults: Fault) -> None:
        self._script.extend(faults)

    def always(self, fault: Fault | None) -> None:
        """For every request that finds no script."""
        self._fault = fault

    def count(self, purpose: str | None = None) -> int:
        """Requests with a question of `purpose`; without it all but the client's own pings."""
        counts = Counter(call.purpose for call in self.calls)
        return counts[purpose] if purpose else counts.total() - counts["ping"]

    def clear(self) -> None:
        """Forgets scripts and what came in."""
        self.calls: list[Call] = []
        self.busiest = 0
        """Requests that were under way at once, at most."""
        self._script.clear()
        self._fault = None

    def start(self) -> JudgeServer:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        routes = [Route("/v1/chat/completions", self._chat, methods=["POST"])]
        certificate, key = self.tls or (None, None)
        config = uvicorn.Config(
            Starlette(routes=routes),
            http=_Protocol,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=0,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        end = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < end, "the scripted server does not start"
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Dies: the port is closed and every connection cut."""
        if self._server and self._thread:
            self._server.force_exit = self._server.should_exit = True
            for protocol in list(self._server.server_state.connections):
                protocol.loop.call_soon_threadsafe(_cut, protocol.transport)
            self._thread.join(5)
            assert not self._thread.is_alive(), "the scripted server does not stop"
        self._server = self._thread = None

    def __enter__(self) -> JudgeServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _chat(self, request: Request) -> Response:
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            return await self._reply(request)
        finally:
            self._busy -= 1

    async def _reply(self, request: Request) -> Response:
        body = json.loads(await request.body())
        call = read_call(body, dict(request.headers))
        self.calls.append(call)
        if self.key is not None and call.headers.get("authorization") != f"Bearer {self.key}":
            given = call.headers.get("authorization", "")
            return JSONResponse({"error": {"message": f"Incorrect API key provided: {given}"}}, status_code=401)
        fault = self._script.popleft() if self._script else self._fault
        if fault and fault.kind == "status":
            error = {"error": {"message": fault.text, "type": "scripted"}}
            return JSONResponse(error, status_code=fault.code, headers=dict(fault.headers))
        if fault and fault.kind == "raw":
            return Response(fault.text, headers=dict(fault.headers))
        if fault and fault.kind == "reset":
            return _cut(request.scope["extensions"]["transport"])
        if fault and fault.kind == "silence":
            await asyncio.sleep(fault.seconds)
            return _cut(request.scope["extensions"]["transport"])
        for name in self.refuses:
            if name in body:
                hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
                error = {"error": {"message": f"Unsupported parameter: '{name}'.{hint}"}}
                return JSONResponse(error, status_code=400)
        await asyncio.sleep(self.latency_ms / 1000 + (fault.seconds if fault and fault.kind == "delay" else 0.0))
        said: Any = fault.text if fault and fault.kind == "says" else self.answer(call)
        text = said if isinstance(said, str) else json.dumps(said)
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = {"id": "1", "object": "chat.completion", "model": call.model, "choices": [choice], "usage": usage}
        if fault and fault.kind == "truncated":
            transport = request.scope["extensions"]["transport"]
            content = json.dumps(reply).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
            transport.write(head.encode() + content[: len(content) // 2])
            await asyncio.sleep(0.05)
            return _cut(transport)
        return JSONResponse(reply)


def read_call(body: dict[str, Any], headers: dict[str, str]) -> Call:
    messages = {message["role"]: message["content"] for message in body["messages"]}
    content: Any = messages["user"]
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    user = "".join(part["text"] for part in parts if part["type"] == "text")
    form = body.get("response_format", {}).get("json_schema")
    told = re.search(r"JSON schema:\n(\{.*\})$", user, re.DOTALL)
    schema = form["schema"] if form else json.loads(told[1]) if told else None
    return Call(
        purpose=headers.get("x-dyme-purpose", ""),
        model=body["model"],
        system=messages.get("system", ""),
        user=user,
        images=tuple(base64.b64decode(url.partition(";base64,")[2]) for url in urls),
        schema=schema,
        structured=form is not None,
        body=body,
        headers=headers,
        at=time.monotonic(),
    )


def default_answer(call: Call) -> Any:
    return first_value(call.schema or {})


def first_value(schema: dict[str, Any]) -> Any:
    """The first value that a schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: first_value(part) for name, part in schema.get("properties", {}).items()}
    return {"array": [], "string": "text", "number": 0.5, "integer": 1, "boolean": True}.get(kind)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Protocol(H11Protocol):
    """Lets the application reach the connection under its request."""

    def handle_events(self) -> None:
        super().handle_events()
        if getattr(self, "scope", None):
            extensions: Any = self.scope.setdefault("extensions", {})
            extensions["transport"] = self.transport


def _cut(transport: Any) -> Response:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    return Response(status_code=500)
