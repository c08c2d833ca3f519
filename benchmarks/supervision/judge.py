"""Judge: an OpenAI-compatible server on a local port that answers by a function."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Judge(ThreadingHTTPServer):
    """`answer(purpose, text)` is the value of a reply, sent `latency_ms` after its question as JSON. counts: questions
    by purpose. Serves inside a `with` block."""

    daemon_threads = True
    request_queue_size = 128  # a step opens many connections at once

    def __init__(self, answer: Callable[[str, str], dict[str, Any]], latency_ms: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.latency_ms = answer, latency_ms
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Judge:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Judge
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = next(m["content"] for m in body["messages"] if m["role"] == "user")
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        purpose = self.headers.get("x-dyme-purpose", "")
        with self.server.lock:
            self.server.counts[purpose] += 1
        time.sleep(self.server.latency_ms / 1000)
        message = {"role": "assistant", "content": json.dumps(self.server.answer(purpose, text))}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]}
        sent = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Nothing."""
