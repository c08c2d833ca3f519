"""Section `judge`: the server, its limits and its prices."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from dyme.settings.errors import ConfigError, explain
from dyme.settings.numbers import NonNegativeFloat, PositiveFloat, PositiveInt, UpToMillion, UpToThousand
from dyme.settings.schema import Schema
from dyme.settings.supervision import SupervisionConfig
from dyme.settings.yaml_text import YamlError, read_yaml

CHAT = "/chat/completions"
KEY = "judge.endpoints.0"
"""Name of the one endpoint in messages."""
_ADDRESS = re.compile(
    r"(?P<server>(?i:https?)://(?:\[[^\]\s/?#@]+\]|[^\s/?#@:\[\]]+)(?::(?P<port>[0-9]{1,5}))?)(?P<path>(?:/[^\s?#]*)?)"
)


class JudgeEndpoint(Schema):
    """One OpenAI-compatible server."""

    url: str
    """http:// or https:// address: `http://host:8000` (means http://host:8000/v1), or the whole base with its path."""
    model: str
    """Name of the model, as the server calls it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never written to a file."""
    input_price: NonNegativeFloat = 0.0
    """Money per million tokens sent, in any currency."""
    output_price: NonNegativeFloat = 0.0
    """Money per million tokens answered."""


class JudgeConfig(Schema):
    """The judge: a model behind an OpenAI-compatible server that rates, extracts and rewrites."""

    endpoints: tuple[JudgeEndpoint, ...] = ()
    """The server: a list of one. None: no judge. Several servers go behind a load balancer."""
    concurrency: UpToThousand = 16
    """Most questions that a rank asks at the same time."""
    timeout_s: PositiveFloat = 20.0
    """Most seconds for a question, retries included."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Tries after the first one."""
    max_tokens: UpToMillion = 512
    """Longest answer, for questions that set no length of their own."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sampling temperature of the judge; 0 gives the steadiest verdicts."""
    cache: str = ""
    """Folder of the cached answers, which ranks and runs may share; `~` and environment variables are filled in. Empty:
    judge-cache in the run folder."""
    breaker_failures: PositiveInt = 3
    """Consecutive failures after which the client stops asking the server."""
    breaker_pause_s: PositiveFloat = 10.0
    """Seconds until the server is tried again; each failed try doubles them, up to 16 times the first pause."""

    @model_validator(mode="after")
    def _one_server_that_can_be_asked(self) -> JudgeConfig:
        if len(self.endpoints) > 1:
            raise ValueError(
                f"judge.endpoints lists {len(self.endpoints)} servers, but the judge asks one: put them behind a load "
                "balancer and list its address"
            )
        for endpoint in self.endpoints:
            chat_url(endpoint.url)
            if not endpoint.model.strip():
                raise ValueError(f"{KEY}.model is empty: write the name that the server gives its model")
            name = endpoint.api_key_env
            # the value is not shown: whoever writes something else here most likely wrote the key itself
            if name is not None and not (name.isidentifier() and name.isascii()):
                raise ValueError(f"{KEY}.api_key_env must be the name of an environment variable, not the key itself")
        return self


class Sections(Schema):
    """The sections of a run's YAML that concern the judge."""

    judge: JudgeConfig
    supervision: SupervisionConfig = SupervisionConfig()


def read_sections(path: Path) -> Sections:
    """Sections `judge` and `supervision` of a run's YAML. Raises `ConfigError` if `judge` is missing or either is
    wrong."""
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}; give the YAML of a run") from None
    section = tree.get("judge") if isinstance(tree, dict) else None
    if not section:
        raise ConfigError(f"{path}: no section 'judge'; write judge: {{endpoints: [{{url: ..., model: ...}}]}}")
    try:
        found = Sections.model_validate(
            {"judge": section, "supervision": {} if tree.get("supervision") is None else tree["supervision"]}
        )
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Sections)}") from None
    if not found.judge.endpoints:
        raise ConfigError(f"{path}: judge.endpoints is empty; write [{{url: http://HOST:PORT, model: NAME}}]")
    return found


def chat_url(url: str) -> str:
    """The address of chat completions for the base address `url`. Raises `ValueError` if `url` is not an address."""
    match = _ADDRESS.fullmatch(url.strip())
    if not match or not 0 < int(match["port"] or 80) < 1 << 16:  # not shown: it may hold a secret
        raise ValueError(
            f"{KEY}.url: not the address of a server; write http://HOST:PORT or https://HOST/PATH, without user, "
            "password, '?' or '#' (a key goes into the variable that api_key_env names)"
        )
    base = match["server"] + (match["path"].rstrip("/") or "/v1")
    return base if base.endswith(CHAT) else base + CHAT


def read_key(cfg: JudgeConfig) -> str:
    """The API key from the endpoint's environment variable, "" if none is named.

    Raises `ConfigError` if the variable is missing or holds characters that an HTTP header cannot carry. The message
    never shows its value.
    """
    name = cfg.endpoints[0].api_key_env if cfg.endpoints else None
    if name is None:
        return ""
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"{KEY}.api_key_env: the environment variable {name} is not set; export it on every machine")
    if not all("!" <= c <= "~" for c in value):
        raise ConfigError(f"{KEY}.api_key_env: the environment variable {name} holds spaces or other odd characters")
    return value
