"""Preemption: signals that ask a run to leave, and ranks that never outlive their launcher.

The first SIGTERM or SIGUSR1 is noted, and the loop leaves after its step with a checkpoint. A second one ends the
process at once. Signals are read from a pipe by a thread, so they arrive while the main thread waits inside a
collective.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
MARKER = "PREEMPTED"
SAME_S = 1.0  # one warning reaches a rank twice where a launcher passes on what the whole process group got
_PR_SET_PDEATHSIG = 1
_POLL_S = 1.0
_launched_by: list[tuple[int, int]] = []
"""The launcher of this rank and the `deepspeed` command above it, as they were when the rank began; or nothing."""


class Preemption:
    """Whether this process was asked to leave. Make it in the main thread."""

    def __init__(self) -> None:
        self.asked = ""
        """What asked first: the name of a signal; empty as long as nothing did."""
        self._first = 0.0
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=self._read, args=(read,), name="signals", daemon=True).start()
        if _launched_by:
            threading.Thread(target=self._watch, args=_launched_by[0], name="launcher", daemon=True).start()

    def ask(self, why: str) -> None:
        """The same as a first signal."""
        if not self.asked:
            self._first = time.monotonic()
            self.asked = why

    def _read(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if not self.asked:
                    self.ask(signal.Signals(number).name)
                elif time.monotonic() - self._first > SAME_S:
                    name = signal.Signals(number).name
                    print(f"{name}: a second signal, leaving at once", file=sys.stderr, flush=True)
                    os._exit(128 + number)

    def _watch(self, launcher: int, outer: int) -> None:
        while _parent(launcher) == outer:
            time.sleep(_POLL_S)
        self.ask("the end of deepspeed")


def keep_warning() -> None:
    """Lets a SIGUSR1 wait until there is a `Preemption`: one that comes while libraries load would end the process, and
    throw away the time that is left for a step and its checkpoint."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def die_with_parent() -> None:
    """From here on the kernel ends this rank (SIGKILL) when its launcher dies. Without a launcher nothing happens: a
    shell may end before what it started. The end of the `deepspeed` command above the launcher counts as a signal."""
    if "LOCAL_RANK" not in os.environ or not sys.platform.startswith("linux"):
        return
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # launchers of SLURM jobs ignore it, and hand that down
    parent = os.getppid()
    if outer := _outer_launcher(parent):
        _launched_by[:] = [(parent, outer)]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died meanwhile
        os._exit(128 + signal.SIGKILL)


def _noted(number: int, frame: object) -> None:
    """Python needs a handler to pass a signal on to the pipe."""


def _outer_launcher(launcher: int) -> int:
    """The `deepspeed` command that started the launcher of this node; 0 where another program did."""
    outer = _parent(launcher)
    try:
        words = Path(f"/proc/{outer}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    return outer if any(word.split(b"/")[-1] == b"deepspeed" for word in words[:3]) else 0


def _parent(process: int) -> int:
    """0 where it cannot be told."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
