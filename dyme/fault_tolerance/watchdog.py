"""Watchdog: every rank writes its position; without progress on one rank the job ends and the late ranks are named.

watchdog/rank-N.json    last position of rank N: phase, step, collectives begun, records in hand
watchdog/rank-N.stack   stacks of its threads in its last long wait
watchdog/hang.json      the late ranks
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

HUNG = 75
"""Exit code of a rank that the watchdog ends ("try again", EX_TEMPFAIL)."""
WATCHED = ("gather_rows", "gather_tokens", "all_reduce", "broadcast", "barrier", "step")
"""Methods of `TrainEngine` in which ranks wait for each other; so they do in forward and backward of its DeepSpeed
engine, and in the refresh of its rollout copy."""
_SHOWN = 20  # records named of each rank
_TICK_S = 1.0
_FILES_A_SECOND = 64  # writes per second of all ranks together, on their shared file system
_OPENING_S = 1800.0  # least limit of a part of an opening: reading models, compiling operators, converting checkpoints
_WAIT_S = 3.0  # from the first rank that notices to the verdict; the others write their positions in this time
_LAST_S = 300.0  # how much later than the watchdog PyTorch ends a collective
_STACK_S = 10.0  # stacks are written after a wait this long, because another rank may reach its limit first
_GRACE_S = 30.0  # then the interpreter is stuck; faulthandler, which needs no lock, ends the process


@dataclass(frozen=True)
class Beat:
    """Position of a rank. `collectives`: number of collectives it has begun, counted the same way on all ranks.
    `inside`: whether it waits in the last one. `since`: time of the last progress, seconds since 1970."""

    rank: int
    phase: str = "start"
    step: int = 0
    collectives: int = 0
    last_collective: str = ""
    inside: bool = False
    records: tuple[str, ...] = ()
    since: float = 0.0
    stuck: bool = False


def collective_limit_s(timeout_s: float) -> float:
    """Seconds that PyTorch may wait in a collective: longer than the watchdog, which names the late ranks."""
    return max(timeout_s, _OPENING_S) + _LAST_S


def late_ranks(beats: Sequence[Beat]) -> list[Beat]:
    """The late ranks: those that have begun the fewest collectives and are not inside the last one. None where all wait
    in the same collective: then the network is at fault."""
    fewest = min((beat.collectives for beat in beats), default=0)
    behind = [beat for beat in beats if beat.collectives == fewest]
    if len(behind) < len(beats):  # a rank may be stuck on its way out of a collective
        return behind
    return [beat for beat in behind if not beat.inside]


class Watchdog:
    """Watchdog of this rank. `beat` records progress; `timeout_s` seconds without one end the process (`HUNG`)."""

    def __init__(
        self, folder: Path, rank: int, world_size: int, timeout_s: float, end: Callable[[int], Any] = os._exit
    ) -> None:
        self.folder, self.world_size, self.timeout_s, self._end = folder / "watchdog", world_size, timeout_s, end
        self._beat = Beat(rank, since=time.time())
        self._moved = time.monotonic()
        self._stop = threading.Event()
        self._stack: Any = None

    def start(self) -> None:
        """Starts watching, also again after `stop`; files of an earlier start of the run are overwritten."""
        self._stop = threading.Event()
        self._moved = time.monotonic()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_GRACE_S)  # it may be about to arm the timer that is cancelled here
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Watches an opening, with a longer limit. Where that fails, the watch ends and its files are removed."""
        limit, self.timeout_s = self.timeout_s, max(self.timeout_s, _OPENING_S)
        self.start()
        try:
            yield
        except BaseException:
            self.stop()
            self._withdraw()
            raise
        self.stop()
        self.timeout_s = limit

    def stage(self, name: str) -> None:
        """The next part of an opening. All ranks pass the parts in the same order; each counts as a collective."""
        self.beat(phase=name, collectives=self._beat.collectives + 1)

    def beat(self, **where: Any) -> None:
        """Records progress of this rank and the changed fields of `Beat`. Costs microseconds."""
        self._beat = replace(self._beat, since=time.time(), **where)
        self._moved = time.monotonic()

    def watch(self, engine: Any) -> None:
        """Records the collectives of a `TrainEngine` from now on."""
        more = ((engine.ds, "forward"), (engine.ds, "backward"), (engine.rollout_copy, "begin_refresh"))
        for owner, name in (*((engine, name) for name in WATCHED), *more):
            setattr(owner, name, self._noted(getattr(owner, name), name))

    def _noted(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            outer = self._beat  # a step holds votes, a refresh begins one
            self.beat(collectives=outer.collectives + 1, last_collective=name, inside=True)
            result = function(*args, **kwargs)
            self.beat(inside=outer.inside, last_collective=outer.last_collective if outer.inside else name)
            return result

        return noted

    def _run(self, stop: threading.Event) -> None:
        seen, told = 0.0, False
        tick = max(_TICK_S, self.world_size / _FILES_A_SECOND)
        while not stop.wait(min(tick, self.timeout_s / 4)):
            moved = self._moved
            idle = time.monotonic() - moved
            with suppress(OSError):  # a file system that fails briefly must end neither the watch nor the run
                self._open_files()
                if moved != seen:
                    faulthandler.dump_traceback_later(self.timeout_s + _GRACE_S, exit=True, file=self._stack)
                    self._write()
                    seen, told = moved, False
                if not told and idle > min(_STACK_S, self.timeout_s / 2):
                    self._dump()
                    told = True
            if idle > self.timeout_s:
                self._hung()
                return

    def _hung(self) -> None:
        self._beat = replace(self._beat, stuck=True)
        with suppress(OSError):
            self._open_files()
            self._write()
            self._dump()
        time.sleep(_WAIT_S)
        beats = [beat for rank in range(self.world_size) if (beat := self._read(rank))]
        if self._beat.rank == min(beat.rank for beat in beats if beat.stuck):
            late = late_ranks(beats)
            print(verdict(late, len(beats), self.timeout_s, self.folder), file=sys.stderr, flush=True)
            told = {"timeout_s": self.timeout_s, "late": [asdict(beat) for beat in late]}
            with suppress(OSError):
                (self.folder / "hang.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
        else:
            time.sleep(_WAIT_S)  # a launcher ends the others when the first one exits
        self._end(HUNG)

    def _dump(self) -> None:
        """Writes the stacks of all threads over those of an earlier wait."""
        self._stack.seek(0)
        self._stack.truncate()
        faulthandler.dump_traceback(file=self._stack, all_threads=True)

    def _open_files(self) -> None:
        if self._stack is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._beat.rank == 0:
            (self.folder / "hang.json").unlink(missing_ok=True)
        self._stack = (self.folder / f"rank-{self._beat.rank}.stack").open("w")

    def _withdraw(self) -> None:
        if self._stack is None:
            return
        self._stack.close()
        with suppress(OSError):  # the folder may hold other files
            for path in self.folder.glob(f"rank-{self._beat.rank}.*"):
                path.unlink()
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _write(self) -> None:
        path = self.folder / f"rank-{self._beat.rank}.json"
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(self._beat)), encoding="utf-8")
        partial.replace(path)

    def _read(self, rank: int) -> Beat | None:
        if rank == self._beat.rank:
            return self._beat
        try:
            fields = json.loads((self.folder / f"rank-{rank}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return Beat(**{**fields, "records": tuple(fields["records"])})


def verdict(late: Sequence[Beat], world_size: int, timeout_s: float, folder: Path) -> str:
    """The message about a hang, a line for each late rank."""
    lines = [f"error: no progress for {timeout_s:g} s (run.hang_timeout_s); stacks in {folder}"]
    for beat in late:
        where = f"inside {beat.last_collective}" if beat.inside else f"after {beat.last_collective or 'no collective'}"
        records = ", ".join(beat.records[:_SHOWN]) + (" ..." if len(beat.records) > _SHOWN else "")
        lines.append(
            f"rank {beat.rank} is late: step {beat.step}, phase {beat.phase}, {where}, for "
            f"{time.time() - beat.since:.0f} s; records {records or 'none'}"
        )
    if not late:
        lines.append(f"all {world_size} ranks wait in the same collective: the network between them, or a dead rank")
    return "\n".join(lines)
