"""Section judge: addresses, keys, and mistakes in one line that names the key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dyme.settings.errors import ConfigError, explain
from dyme.settings.judge import chat_url
from dyme.settings.schema import Schema
from dyme.supervision.judge import JudgeConfig, open_judge
from dyme.supervision.judge.endpoint import is_local


class Root(Schema):
    judge: JudgeConfig = JudgeConfig()


def mistake(**section: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Root.model_validate({"judge": section})
    line = explain(caught.value, Root)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("url", "chat"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://host.example/api/v3", "https://host.example/api/v3/chat/completions"),
        ("https://host.example/v1/chat/completions", "https://host.example/v1/chat/completions"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/chat/completions"),
        (" https://host.example ", "https://host.example/v1/chat/completions"),
    ],
)
def test_addresses(url: str, chat: str) -> None:
    assert chat_url(url) == chat
    JudgeConfig.model_validate({"endpoints": [{"url": url, "model": "m"}]})


WRONG = "localhost:8000 host ftp://host http:// http://:80 http://host:99999 http://host:x/v1 http://host:0 http://[::1"


@pytest.mark.parametrize(
    "url", ["", "http://ho st", *WRONG.split(), "http://host/v1?key=abc", "http://user:secret@host/v1", "//host"]
)
def test_wrong_addresses_name_their_key(url: str) -> None:
    line = mistake(endpoints=[{"url": url, "model": "m"}])
    assert line.startswith("judge.endpoints.0.url: ") and "secret" not in line and "abc" not in line


def test_other_mistakes() -> None:
    assert mistake(endpoints=[{"url": "http://host", "model": " "}]).startswith("judge.endpoints.0.model is empty")
    assert mistake(endpoints=[{"url": "http://host"}]) == "'judge.endpoints.0.model' is required"
    assert "'judge.concurency'; nearest: 'judge.concurrency'" in mistake(concurency=3)
    assert mistake(timeout_s=0).startswith("'judge.timeout_s'")
    assert mistake(retries=-1).startswith("'judge.retries'")
    pasted = mistake(endpoints=[{"url": "http://host", "model": "m", "api_key_env": "sk-1234567890"}])
    assert pasted.startswith("judge.endpoints.0.api_key_env must be the name") and "1234" not in pasted


def test_several_servers_go_behind_a_load_balancer() -> None:
    line = mistake(endpoints=[{"url": f"http://host{i}", "model": "m"} for i in range(2)])
    assert line.startswith("judge.endpoints lists 2 servers") and "behind a load balancer" in line


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "caf\u00e9-secret", "line\nbreak"])
def test_a_key_that_cannot_be_sent_is_told_when_the_judge_opens(value: str | None, monkeypatch: Any) -> None:
    monkeypatch.delenv("DYME_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DYME_TEST_KEY", value)
    cfg = JudgeConfig.model_validate(
        {"endpoints": [{"url": "http://host", "model": "m", "api_key_env": "DYME_TEST_KEY"}]}
    )
    with pytest.raises(ConfigError) as caught:
        open_judge(cfg, None)
    line = str(caught.value)
    assert line.startswith("judge.endpoints.0.api_key_env: the environment variable DYME_TEST_KEY") and "\n" not in line
    assert not value or not value.strip() or value not in line


def test_which_hosts_go_past_a_proxy() -> None:
    assert all(map(is_local, ["localhost", "127.0.0.1", "::1", "10.1.2.3", "node17", "judge.localhost"]))
    assert not any(map(is_local, ["api.example.com", "8.8.8.8", "2606:4700::1111"]))
