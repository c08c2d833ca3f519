"""Link: a network between network namespaces of this machine, with a chosen one-way delay and packet loss.

Every end is a TUN device in a namespace of its own; a thread takes the IP packets that a device sends, holds each for
the delay, drops some, and hands the others to the device that has the destination's address. What runs over it is the
kernel's own TCP, so windows, retransmissions and everything above them are real. It is what `tc netem` does to a veth
pair, for kernels that are built without netem. Needs Linux, /dev/net/tun and the right to make network namespaces.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

DEVICE = "net0"
MTU = 1500
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True)
class LinkConditions:
    """delay_s: of every packet on its way to another end. loss: the share of packets that are dropped."""

    delay_s: float = 0.0
    loss: float = 0.0


def address(end: int) -> str:
    return f"10.77.0.{end + 1}"


def unavailable() -> str:
    """Why links cannot be made here, or ""."""
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    probe = subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return f"network namespaces: {probe.stderr.strip()}" if probe.returncode else ""


class Link:
    """A context in which programs may be started on the ends 0 .. n - 1. `conditions` may be replaced at any time and
    holds for the packets sent from then on."""

    def __init__(self, ends: int, seed: int = 0) -> None:
        self.conditions = LinkConditions()
        self.carried = self.dropped = 0
        self._ends, self._chance, self._over = ends, random.Random(seed), False
        self._devices: list[int] = []
        self._relay = threading.Thread(target=self._carry, daemon=True)

    def start(
        self, commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]
    ) -> list[subprocess.Popen]:
        """Starts one program on every end, with pipes for stdin and stdout."""
        started: list[subprocess.Popen] = []
        failed: list[BaseException] = []

        def begin(end: int) -> None:
            try:  # raised again in the caller's thread
                self._devices.append(_new_namespace(end))
                started.append(
                    subprocess.Popen(
                        commands[end],
                        env=environments[end],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        bufsize=1,
                    )
                )
            except BaseException as error:
                failed.append(error)

        for end in range(self._ends):  # a namespace belongs to a thread, and what the thread starts is born in it
            thread = threading.Thread(target=begin, args=(end,))
            thread.start()
            thread.join()
            if failed:
                for process in started:
                    process.kill()
                raise failed[0]
        self._relay.start()
        return started

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        if self._relay.is_alive():
            self._relay.join()
        for device in self._devices:
            os.close(device)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        to = {bytes(map(int, address(end).split("."))): device for end, device in enumerate(self._devices)}
        number = 0
        while not self._over:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _hand_over(*heapq.heappop(waiting)[2:])
            wait = min(0.1, waiting[0][0] - now) if waiting else 0.1
            for device in select.select(self._devices, [], [], max(0.0, wait))[0]:
                packet = os.read(device, 65536)
                target = to.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if target is None:  # IPv6 neighbours, multicast
                    continue
                conditions = self.conditions
                self.carried += 1
                if self._chance.random() < conditions.loss:
                    self.dropped += 1
                elif conditions.delay_s == 0.0 and not waiting:
                    _hand_over(target, packet)
                else:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + conditions.delay_s, number, target, packet))


def _hand_over(device: int, packet: bytes) -> None:
    with suppress(OSError):  # the program at that end has finished and its device is gone
        os.write(device, packet)


def _new_namespace(end: int) -> int:
    """Moves the calling thread into a new network namespace with one device; returns the device's file."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace needs root (CAP_SYS_ADMIN)")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    for words in (
        "link set lo up",
        f"addr add {address(end)}/24 dev {DEVICE}",
        f"link set {DEVICE} mtu {MTU} txqueuelen 10000 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return device
