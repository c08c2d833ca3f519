"""Section `judge:` of a run: which server is asked, for how long, and what its answers cost."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from dyme.settings.errors import ConfigError, explain
from dyme.settings.numbers import NonNegativeFloat, PositiveFloat, PositiveInt
from dyme.settings.schema import Schema
from dyme.settings.supervision import SupervisionConfig

CHAT = "/chat/completions"
KEY = "judge.endpoints.0"
"""Of the one endpoint, in messages."""
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
    """Name of the environment variable that holds the key; the key itself stands in no file."""
    input_price: NonNegativeFloat = 0.0
    """Money per million tokens sent, in any currency."""
    output_price: NonNegativeFloat = 0.0
    """Money per million tokens answered."""


class JudgeConfig(Schema):
    """The judge: a model behind an OpenAI-compatible server that rates, extracts and rewrites."""

    endpoints: tuple[JudgeEndpoint, ...] = ()
    """The server: a list of one. None: no judge. Several servers go behind a load balancer."""
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
    """Failures in a row after which the server is left alone."""
    breaker_pause_s: PositiveFloat = 10.0
    """Seconds after which it is tried again; each failed try doubles them, up to 16 times."""

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
    """What a run's YAML says of its judge and of what it is asked for."""

    judge: JudgeConfig
    supervision: SupervisionConfig = SupervisionConfig()


def read_sections(path: Path) -> Sections:
    """Sections `judge:` and `supervision:` of a run's YAML. ConfigError, one line, if the first is missing or one of
    them is wrong."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}; give the YAML of a run") from None
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


def chat_url(url: str) -> str:
    """Where chat questions go for the base address `url`. ValueError, one line, if it is not an address."""
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

    ConfigError if the variable is missing or holds something that no header can carry; its value is never shown.
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
