"""One start at a time in a run folder: refusals, dead owners, and owners on other hosts, which renew the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dyme.fault_tolerance import lock as module
from dyme.fault_tolerance.lock import LOCK, LOST, Lock, LockedError, Owner, read_lock, take
from tests.helpers.launching import environment


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "STALE_S", 0.4)


def left(folder: Path, **changes: object) -> Owner:
    """A lock as a process left it that this one is not."""
    owner = replace(Owner.here(), token="other", **changes)
    (folder / LOCK).write_text(json.dumps(asdict(owner)))
    return owner


def locked(folder: Path) -> tuple[Lock, list[str]]:
    said: list[str] = []
    return Lock(folder / LOCK, said.append), said


def test_a_second_start_is_refused_in_one_line_with_host_process_and_time(tmp_path):
    first = take(tmp_path, print)
    assert take(tmp_path, print) is first  # in the same process
    with pytest.raises(LockedError) as error:
        locked(tmp_path)
    told = str(error.value)
    assert (
        f"host {first.owner.host}, process {os.getpid()}, since 20" in told and "run.dir=" in told and "\n" not in told
    )
    first.release()
    assert list(tmp_path.iterdir()) == []
    locked(tmp_path)[0].release()


def test_a_dead_owner_on_this_machine_is_replaced_with_a_line(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; from dyme.fault_tolerance.lock import *; from pathlib import Path\n"
         "take(Path(sys.argv[1]), print); print('ready', flush=True); import time; time.sleep(60)", str(tmp_path)],
        env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    with pytest.raises(LockedError):
        locked(tmp_path)
    child.kill()
    child.wait()
    lock, said = locked(tmp_path)
    assert len(said) == 1 and f"process {child.pid}" in said[0] and "took the folder over" in said[0]
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_that_another_process_has_now_is_dead(tmp_path):
    left(tmp_path, born=1)
    lock, said = locked(tmp_path)
    assert said and lock.owner.token == read_lock(tmp_path).token
    lock.release()


def test_an_owner_elsewhere_is_dead_when_it_no_longer_renews_the_file(tmp_path):
    left(tmp_path, machine="elsewhere", host="node-7", pid=1)
    begin = time.monotonic()
    lock, said = locked(tmp_path)  # fresh: it may be alive, so this waits
    assert time.monotonic() - begin > 0.3 and "node-7" in said[0]
    lock.release()
    left(tmp_path, machine="elsewhere")
    os.utime(tmp_path / LOCK, (time.time() - 3600,) * 2)
    begin = time.monotonic()
    locked(tmp_path)[0].release()
    assert time.monotonic() - begin < 0.3


def test_an_owner_elsewhere_that_renews_the_file_is_alive(tmp_path):
    left(tmp_path, machine="elsewhere", host="node-7")
    end = threading.Event()

    def renew() -> None:
        while not end.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(LockedError, match="node-7"):
            locked(tmp_path)
    finally:
        end.set()
        thread.join()
    assert read_lock(tmp_path).host == "node-7"


@pytest.mark.parametrize("held", [b"", b"{", b"\0" * 40, b"[]", b'{"host": 1}'])
def test_half_a_lock_of_a_power_loss_is_no_owner(tmp_path, held):
    (tmp_path / LOCK).write_bytes(held)
    os.utime(tmp_path / LOCK, (time.time() - 3600,) * 2)
    lock, said = locked(tmp_path)
    assert len(said) == 1
    lock.release()


@pytest.mark.parametrize("_", range(5))
def test_one_of_many_starts_gets_it(tmp_path, monkeypatch, _):
    """All find the same dead owner; the one that wins must not be replaced by another that looked earlier."""
    monkeypatch.setattr(module, "_born", lambda pid: (time.sleep(0.02), 5 if pid == os.getpid() else 0)[1])
    left(tmp_path, born=1)
    won, refused = [], []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        try:
            won.append(locked(tmp_path)[0])
        except LockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 7
    assert read_lock(tmp_path).token == won[0].owner.token
    won[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_died_while_it_took_over_is_not_waited_for_for_ever(tmp_path):
    left(tmp_path, born=1)
    guard = tmp_path / f".{LOCK}-takeover"
    guard.touch()
    os.utime(guard, (time.time() - 3600,) * 2)
    locked(tmp_path)[0].release()
    assert list(tmp_path.iterdir()) == []


def test_who_lost_the_folder_meanwhile_leaves(tmp_path, capsys):
    ended: list[int] = []
    lock = Lock(tmp_path / LOCK, print, ended.append)
    left(tmp_path)
    for _ in range(100):
        if ended:
            break
        time.sleep(0.05)
    assert ended == [LOST] and "taken over by another start" in capsys.readouterr().err
    lock.release()
    assert read_lock(tmp_path).token == "other"  # never removes another one's


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", denied)
    lock, _ = locked(tmp_path)
    with pytest.raises(LockedError):
        locked(tmp_path)
    lock.release()
    assert list(tmp_path.iterdir()) == []
