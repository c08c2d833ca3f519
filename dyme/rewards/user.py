"""Reward functions of the user: loading them from their files, and their arguments under TRL's names and ours."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dyme.data.errors import DataError
from dyme.data.paths import expand
from dyme.data.record import LazyImage, Record
from dyme.rewards.answer import split_completion
from dyme.rewards.surroundings import unchanged
from dyme.settings.errors import ConfigError
from dyme.settings.rewards import Per, UserReward

_OF_RECORD = ("id", "question", "answer", "answers", "choices", "hint", "facts", "kind")
LISTS = ("prompts", "completions", "completion_ids", "truncated", "thinking", "extracted_answer", *_OF_RECORD)
"""Keyword arguments that are lists with one entry for each completion."""
SCALARS = ("step", "trainer_state")
"""Keyword arguments that are one value for the call."""
IMAGE, IMAGES = PICTURES = ("image", "images")
"""Also a list, but decoded only for functions that name it."""


@dataclass(frozen=True)
class TrainerState:
    """The progress fields of TRL's `trainer_state`, both in optimizer steps."""

    global_step: int
    max_steps: int


@dataclass(frozen=True)
class LoadedReward:
    """A user's function, and the names of the arguments it takes."""

    title: str
    function: Callable[..., Any]
    arguments: frozenset[str]
    timeout_s: float
    path: Path
    per: Per = "step"


def load_rewards(rewards: tuple[UserReward, ...]) -> list[LoadedReward]:
    """Runs the files of the functions, each once. Raises `ConfigError` where one does not load or cannot be called."""
    modules: dict[Path, ModuleType] = {}
    return [_load(reward, modules) for reward in rewards]


def _load(reward: UserReward, modules: dict[Path, ModuleType]) -> LoadedReward:
    where = f"reward.user: {reward.function}"
    written, name = reward.function.rsplit(":", 1)
    try:
        path = expand(written)
    except DataError as error:
        raise ConfigError(f"reward.user: {error}") from None
    if not path.is_file():
        raise ConfigError(f"{where}: no such file {path} (working folder {Path.cwd()}); correct the path")
    if path not in modules:
        modules[path] = _module(where, path)
    function = getattr(modules[path], name, None)
    if function is None:
        own = [key for key, value in vars(modules[path]).items() if callable(value) and not key.startswith("__")]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.0)
        hint = f"nearest: '{near[0]}'" if near else "the file defines no function"
        raise ConfigError(f"{where}: the file has no function '{name}'; {hint}")
    if not callable(function):
        raise ConfigError(f"{where}: '{name}' is a {type(function).__name__}, not a function; name a function")
    return LoadedReward(reward.title, function, _arguments(where, function), reward.timeout_s, path, reward.per)


def _module(where: str, path: Path) -> ModuleType:
    # last on the path: a file next to the user's must not hide an installed package
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"dyme_user_reward_{path.stem}_{unique}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look up their module there
    try:
        with unchanged():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # an edge: the user's code, which may do anything
        raise ConfigError(f"{where}: the file does not load: {told(error, path)}; mend it") from None
    return module


def _arguments(where: str, function: Callable[..., Any]) -> frozenset[str]:
    """Our argument names that the function takes; all but the picture for a function with **kwargs."""
    ours = (*LISTS, *SCALARS, *PICTURES)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of an extension module has no signature
        return frozenset((*LISTS, *SCALARS))
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for p in parameters:
        needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if needed and (p.kind is p.POSITIONAL_ONLY or p.name not in ours):
            near = difflib.get_close_matches(p.name, ours, n=1)
            hint = f" (nearest: '{near[0]}')" if near and p.name not in ours else ""
            raise ConfigError(
                f"{where}: takes '{p.name}'{hint}, which is not given by name; allowed: {', '.join(sorted(ours))}"
            )
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return frozenset(name for name in ours if name in named or (takes_any and name not in PICTURES))


def told(error: BaseException, path: Path) -> str:
    """An exception in one line, with the last line of the user's file that it passed through."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename) in (path, path.resolve()):
            line = frame.lineno
    what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{f': {what}' if what else ''}{f' (line {line})' if line else ''}"


def reward_columns(
    prompts: Sequence[str],
    texts: Sequence[str],
    records: Sequence[Record],
    *,
    completion_ids: Sequence[Sequence[int]],
    truncated: Sequence[bool],
    flag: str,
    step: int,
    max_steps: int,
) -> dict[str, Any]:
    """All arguments except the pictures, lists with one entry for each completion. Completion i answers prompt i, the
    user turn of record i; `step` counts finished steps."""
    parts = [split_completion(text, flag) for text in texts]
    return {
        "prompts": list(prompts),
        "completions": list(texts),
        "completion_ids": [list(ids) for ids in completion_ids],
        "truncated": list(truncated),
        "thinking": [part.thinking for part in parts],
        "extracted_answer": [part.answer for part in parts],
        **{name: [_listed(getattr(record, name)) for record in records] for name in _OF_RECORD},
        "step": step,
        "trainer_state": TrainerState(step, max_steps),
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def pictures(records: Sequence[Record]) -> list[list[Any]]:
    """The pictures of each record in RGB; a picture that several rows share is decoded once.

    Raises `ImageError` for one that cannot be decoded.
    """
    decoded: dict[LazyImage, Any] = {}
    for record in records:
        for image in record.images:
            if image not in decoded:
                decoded[image] = image.load()
    return [[decoded[image] for image in record.images] for record in records]
