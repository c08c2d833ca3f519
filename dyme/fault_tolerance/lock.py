"""Lock: a run folder belongs to one start of a run at a time.

run.lock   host, process id and time of the owner; its modification time is renewed every few seconds

The file is made by `link`, which exactly one of several processes on any hosts wins, on NFS too. An owner on this
machine is looked up by its process id. One elsewhere is taken for dead when it has not renewed the file for `STALE_S`
seconds by the clock of the file system, so no clocks are compared.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

LOCK = "run.lock"
BEAT_S = 10.0
STALE_S = 60.0
_PAUSE_S = 0.05
LOST = 75
"""Exit code of a start whose folder another one took over."""
_held: dict[Path, Lock] = {}


class LockedError(ValueError):
    """Another start of a run owns the folder; the message is one line with host, process id and time."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. `machine`: names one boot of one machine, and the container in it, so that process ids can be
    compared. `born`: start time of the process in ticks since that boot. `since`: seconds since 1970. `token`: random.
    """

    host: str
    pid: int
    machine: str
    born: int
    since: float
    token: str

    @staticmethod
    def here() -> Owner:
        return Owner(
            socket.gethostname(), os.getpid(), _machine(), _born(os.getpid()), time.time(), secrets.token_hex(8)
        )

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, since {time.strftime('%F %T', time.localtime(self.since))}"


def read_lock(folder: Path) -> Owner | None:
    """The owner of a folder, alive or not; None without a lock."""
    return _read(folder / LOCK)


def take(folder: Path, say: Callable[[str], None]) -> Lock:
    """Takes the lock of an existing folder; again in the same process it returns the same lock. Waits for up to
    `STALE_S` seconds to learn whether an owner on another host is alive. `say` gets a line where a dead owner is
    replaced.

    Raises `LockedError`, and OSError where the folder cannot be written."""
    path = folder.resolve() / LOCK
    if path not in _held:
        _held[path] = Lock(path, say)
    return _held[path]


def release_all() -> None:
    """Releases the locks that this process still holds, as it ends."""
    for lock in list(_held.values()):
        lock.release()


class Lock:
    """A lock that this process holds until `release`. A thread renews it; where it finds another owner in the file, for
    example after this process was stopped for minutes, it ends the process."""

    def __init__(self, path: Path, say: Callable[[str], None], end: Callable[[int], object] = os._exit) -> None:
        self.path, self.owner, self._end = path, Owner.here(), end
        self._mine = path.with_name(f".{LOCK}-{self.owner.token}")
        self._mine.write_text(json.dumps(asdict(self.owner)), encoding="utf-8")
        try:
            while not self._link(self.path) and not self._take_over(say):
                pass
        finally:
            self._mine.unlink(missing_ok=True)
        self._stop = threading.Event()
        threading.Thread(target=self._renew, name="lock", daemon=True).start()

    def release(self) -> None:
        """Removes the lock where it is still this one's."""
        self._stop.set()
        _held.pop(self.path, None)
        with suppress(OSError):
            if (found := _read(self.path)) and found.token == self.owner.token:
                self.path.unlink()

    def _link(self, place: Path) -> bool:
        """Puts this owner's file in a place; False where there is one."""
        try:
            os.link(self._mine, place)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_LINKS:
                return self._create(place)
            if self._mine.stat().st_nlink != 2:  # on NFS the answer may be lost although the link was made
                raise
        return True

    def _create(self, place: Path) -> bool:
        try:
            with place.open("x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.owner)))
        except FileExistsError:
            return False
        return True

    def _take_over(self, say: Callable[[str], None]) -> bool:
        """Replaces an owner that is gone; False where the lock changed meanwhile. Raises `LockedError` where the owner
        lives."""
        owner = _read(self.path)
        if owner is None and not self.path.exists():
            return False
        if owner is not None and owner.born and owner.machine == self.owner.machine:
            alive = _born(owner.pid) == owner.born
        else:
            alive = self._renewed()
        if alive:
            raise LockedError(
                f"run.dir: {self.path.parent} is in use by another start of a run ({owner or 'which just began'}): "
                "wait for its end, or choose another run.dir="
            )
        # several starts may find the same dead owner: one at a time may replace it
        guard = self.path.with_name(f".{LOCK}-takeover")
        if not self._link(guard):
            with suppress(OSError):
                os.utime(self._mine)
                if self._mine.stat().st_mtime - guard.stat().st_mtime > STALE_S:  # left by a start that died here
                    guard.unlink()
            time.sleep(_PAUSE_S)
            return False
        try:
            if _read(self.path) != owner:
                return False
            new = self._mine.with_suffix(".new")
            new.write_text(json.dumps(asdict(self.owner)), encoding="utf-8")
            new.replace(self.path)
        finally:
            guard.unlink(missing_ok=True)
        say(f"took the folder over from {owner or 'a start that left half a lock'}: it is gone")
        return True

    def _renewed(self) -> bool:
        """Whether the owner renews the file, by the file system's clock."""
        first, begin = self.path.stat().st_mtime, time.monotonic()
        while True:
            try:
                now = self.path.stat().st_mtime
            except FileNotFoundError:
                return False
            os.utime(self._mine)
            if now != first:
                return True
            if self._mine.stat().st_mtime - now > STALE_S or time.monotonic() - begin > STALE_S:
                return False
            time.sleep(min(1.0, STALE_S / 10))

    def _renew(self) -> None:
        while not self._stop.wait(BEAT_S):
            found = _read(self.path)
            if self._stop.is_set():
                return
            if found is not None and found.token != self.owner.token:
                told = f"error: {self.path.parent} was taken over by another start of the run ({found}): leaving"
                print(told, file=sys.stderr, flush=True)
                self._end(LOST)
                return
            with suppress(OSError):  # a file system that fails briefly must not end the run
                os.utime(self.path)


_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)  # of file systems without hard links


def _read(path: Path) -> Owner | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**held)
    except (OSError, ValueError, TypeError):
        return None


def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> int:
    """Start time of a living process; 0 where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
