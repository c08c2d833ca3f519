"""Surroundings: the state of the process that a user's code may change, put back so that the run does not notice.

Environment variables are left as the code sets them: libraries that it loads read theirs from there.
"""

from __future__ import annotations

import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

Part = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How a part of the state is read and set."""
_UNREADABLE = object()


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # tells the interpreter that its memory of shown warnings is void
    warnings.filters[:] = filters  # type: ignore[index]


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None)
    if torch.get_default_device() != device:
        torch.set_default_device(device)


def _umask() -> int | None:
    """As /proc shows it: to ask the system for it is to change it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), None)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


PROCESS: tuple[Part, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (os.getcwd, os.chdir),
    (lambda: list(warnings.filters), _set_filters),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, lambda held: torch.use_deterministic_algorithms(held[0], warn_only=held[1])),
    (
        lambda: torch.backends.cudnn.benchmark,
        lambda on: setattr(torch.backends.cudnn, "benchmark", on),
    ),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (_umask, os.umask),
    (lambda: logging.root.manager.disable, logging.disable),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (sys.getswitchinterval, sys.setswitchinterval),
    (socket.getdefaulttimeout, socket.setdefaulttimeout),
    (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    # a timer whose signal nobody handles ends the process
    (lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, lambda _: signal.setitimer(signal.ITIMER_REAL, 0)),
)
"""Of all threads together."""

THREAD: tuple[Part, ...] = (
    (torch.get_default_device, _set_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (np.geterr, lambda held: np.seterr(**held)),
)
"""Of each thread for itself."""

SEEDS: tuple[Part, ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
)
"""The generators that all threads share."""


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b))
    if isinstance(a, tuple) and len(a) == len(b) and any(isinstance(x, np.ndarray) for x in a):
        return all(np.array_equal(x, y) for x, y in zip(a, b))
    return bool(a == b)


def _read(read: Callable[[], Any]) -> Any:
    """`_UNREADABLE` where the state cannot be read, as the working folder when it was removed."""
    try:
        return read()
    except (OSError, RuntimeError):
        return _UNREADABLE


def _held(parts: tuple[Part, ...]) -> list[Any]:
    return [_read(read) for read, _ in parts]


def _put_back(parts: tuple[Part, ...], held: list[Any]) -> bool:
    """Whether there was anything to put back."""
    changed = False
    for (read, write), value in zip(parts, held, strict=True):
        if value is not _UNREADABLE and not _same(value, _read(read)):
            changed = True
            with suppress(OSError, ValueError, RuntimeError, locale.Error):  # a folder that is gone, for example
                write(value)
    return changed


class Surroundings:
    """The state of the process as the run left it, read by its main thread while no code of the user runs."""

    def __init__(self) -> None:
        self.changed = False
        self.note()

    def note(self) -> None:
        """Takes the state of now for the right one; `changed` tells whether a call changes it from now on."""
        self.changed = False
        self._process, self._thread, self._seeds = _held(PROCESS), _held(THREAD), _held(SEEDS)
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._handlers = _handlers()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around a call, in its thread. Seeds are not put back here: the main thread may draw meanwhile."""
        own = _held(THREAD)
        try:
            yield
        finally:
            _put_back(THREAD, own)
            self.changed |= _put_back(PROCESS, self._process)

    def restore(self) -> None:
        """By the thread that noted it, after the calls."""
        _put_back(PROCESS, self._process)
        _put_back(THREAD, self._thread)
        _put_back(SEEDS, self._seeds)
        if self._cuda is not None and not torch.equal(self._cuda, torch.cuda.get_rng_state()):
            torch.cuda.set_rng_state(self._cuda)
        if threading.current_thread() is threading.main_thread():
            now = _handlers()
            for number, handler in self._handlers.items():
                if now[number] != handler:
                    signal.signal(number, handler)


def _handlers() -> dict[int, Any]:
    """Those that can be set from Python."""
    found = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in found.items() if handler is not None}


@contextmanager
def unchanged() -> Iterator[None]:
    """Code inside leaves the state of the process as it was. For code of the user that the main thread runs."""
    held = Surroundings()
    try:
        yield
    finally:
        held.restore()
