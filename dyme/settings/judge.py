"""Section `judge:` of a run: which servers are asked, how long for, and what their answers cost."""

from __future__ import annotations

import os
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from dyme.settings.errors import ConfigError
from dyme.settings.numbers import NonNegativeFloat, PositiveFloat, PositiveInt
from dyme.settings.schema import Schema

CHAT = "/chat/completions"


class JudgeEndpoint(Schema):
    """One OpenAI-compatible server."""

    url: str
    """http:// or https:// address: `http://host:8000` (means http://host:8000/v1), or the whole base with its path."""
    model: str
    """Name of the model, as the server calls it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself stands in no file."""
    input_price: NonNegativeFloat = 0.0
    """Money per million tokens sent, in any currency."""
    output_price: NonNegativeFloat = 0.0
    """Money per million tokens answered."""


class JudgeConfig(Schema):
    """The judge: a model behind an OpenAI-compatible server that rates, extracts and rewrites."""

    endpoints: tuple[JudgeEndpoint, ...] = ()
    """Servers, asked in turn; none: no judge."""
    concurrency: PositiveInt = 16
    """Questions that a rank has under way at once."""
    timeout_s: PositiveFloat = 20.0
    """Seconds a question may take, all its tries together."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Tries after the first one."""
    max_tokens: PositiveInt = 512
    """Longest answer, for questions that set no length of their own."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Of the judge's sampling; 0 gives the steadiest verdicts."""
    cache: str = ""
    """Folder of the cached answers, which ranks and runs may share; `~` and environment variables are filled in. Empty:
    judge-cache in the run folder."""
    breaker_failures: PositiveInt = 3
    """Failures in a row after which a server is left alone."""
    breaker_pause_s: PositiveFloat = 10.0
    """Seconds after which it is tried again; each time in vain doubles them, up to 16 times."""

    @model_validator(mode="after")
    def _endpoints_can_be_asked(self) -> JudgeConfig:
        for i, endpoint in enumerate(self.endpoints):
            key = f"judge.endpoints.{i}"
            chat_url(endpoint.url, f"{key}.url")
            if not endpoint.model.strip():
                raise ValueError(f"{key}.model is empty: write the name that the server gives its model")
            name = endpoint.api_key_env
            # the value is not shown: whoever writes something else here most likely wrote the key itself
            if name is not None and not (name.isidentifier() and name.isascii()):
                raise ValueError(f"{key}.api_key_env must be the name of an environment variable, not the key itself")
        return self


def chat_url(url: str, key: str) -> str:
    """Where chat questions go for the base address `url`. ValueError, one line, where it is none; `key` names it."""
    mend = "write http://HOST:PORT or https://HOST/PATH"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise ValueError(f"{key}: the address cannot be read; {mend}") from None
    if parts.username is not None or parts.password is not None:  # not shown: it may be a secret
        raise ValueError(f"{key}: no user or password in the address; name the variable of the key in api_key_env")
    if parts.query or parts.fragment:
        raise ValueError(f"{key}: no '?' or '#' in the address; {mend}")
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url.strip()):
        raise ValueError(f"{key}: '{url[:60]}' is no address of a server; {mend}")
    if port == 0:
        raise ValueError(f"{key}: port 0 in '{url[:60]}'; write the port that the server listens on")
    path = parts.path.rstrip("/") or "/v1"
    base = f"{parts.scheme}://{parts.netloc}{path}"
    return base if base.endswith(CHAT) else base + CHAT


def read_key(endpoint: JudgeEndpoint, key: str) -> str:
    """The endpoint's API key from its environment variable, "" where none is named.

    ConfigError where the variable is missing or holds something that no header can carry; its value is never shown.
    """
    name = endpoint.api_key_env
    if name is None:
        return ""
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"{key}.api_key_env: the environment variable {name} is not set; export it on every machine")
    if not all("!" <= c <= "~" for c in value):
        raise ConfigError(f"{key}.api_key_env: the environment variable {name} holds spaces or other odd characters")
    return value
