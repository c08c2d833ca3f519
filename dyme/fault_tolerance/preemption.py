"""Preemption: signals that stop a run, and ranks that end with their launcher.

After the first SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP (a closed terminal) the loop finishes its step, saves a
checkpoint and stops. A second one ends the process at once. Signals are read from a pipe by a thread, so they arrive
while the main thread waits inside a collective.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_IGNORABLE = (signal.SIGINT, signal.SIGHUP)  # by a shell's `&` and by nohup
MARKER = "PREEMPTED"
SAME_S = 1.0  # seconds; a launcher that forwards signals sent to its whole process group makes them arrive twice
_PR_SET_PDEATHSIG = 1
_POLL_S = 1.0
_launched_by: list[tuple[int, int]] = []
"""Process ids of this rank's launcher and of the `deepspeed` command above it, once; empty where there is none."""


class Preemption:
    """Whether this process received a signal to stop. Create it in the main thread."""

    def __init__(self) -> None:
        self.asked = ""
        """The name of the first signal; empty before one arrived."""
        self._first = 0.0
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if number not in _IGNORABLE or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _noted)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=self._read, args=(read,), name="signals", daemon=True).start()
        if _launched_by:
            threading.Thread(target=self._watch, args=_launched_by[0], name="launcher", daemon=True).start()

    def ask(self, why: str) -> None:
        """Has the effect of a first signal."""
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
    """Blocks SIGUSR1 until a `Preemption` exists: while libraries load it would end the process, although there is time
    left for a step and its checkpoint."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def die_with_parent() -> None:
    """Makes the kernel end this rank (SIGKILL) when its launcher dies. Does nothing without a launcher, because a shell
    may end before the processes it started. The end of the `deepspeed` command above it counts as a signal."""
    if "LOCAL_RANK" not in os.environ or not sys.platform.startswith("linux"):
        return
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # launchers of SLURM jobs ignore it, and child processes inherit that
    parent = os.getppid()
    if outer := _outer_launcher(parent):
        _launched_by[:] = [(parent, outer)]
    end_with(parent)


def end_with(parent: int) -> None:
    """Makes the kernel end this process (SIGKILL) when its parent, whose id is given, dies. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in the meantime
        os._exit(128 + signal.SIGKILL)


def _noted(number: int, frame: object) -> None:
    """Python needs a handler to pass a signal on to the pipe."""


def _outer_launcher(launcher: int) -> int:
    """Process id of the `deepspeed` command that started this node's launcher; 0 where another program started it."""
    outer = _parent(launcher)
    try:
        words = Path(f"/proc/{outer}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    return outer if any(word.split(b"/")[-1] == b"deepspeed" for word in words[:3]) else 0


def _parent(process: int) -> int:
    """0 where it is unknown."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
