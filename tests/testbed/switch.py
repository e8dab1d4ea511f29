"""An Ethernet switch in user space. The cable to each machine can be delayed, throttled and cut."""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from math import inf
from pathlib import Path

with contextlib.suppress(ImportError):  # fcntl is missing on Windows, which has no namespaces either.
    import fcntl

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # Constants of linux/if_tun.h.
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
# The kernel passes segments of up to 64 KiB with a header that says how to split them, which saves packets.
CHECKSUM_LATER, SEGMENT_LATER = 1, 2
VNET_HEADER_BYTES = 10
FRAME_BYTES = VNET_HEADER_BYTES + 14 + (1 << 16)
QUEUE_SECONDS, QUEUE_BYTES = 0.05, 128 << 10  # A frame is dropped if the queue before it exceeds both limits.
CLONE_NEWNET = 0x40000000


class Wire:
    """One direction of a cable."""

    def __init__(self) -> None:
        self.n_bytes = 0  # Bytes that have passed.
        self._free_at = 0.0  # When the last frame will have been transmitted, on the monotonic clock.

    def schedule(self, cable: Cable, n_bytes: int, now: float) -> float | None:
        """Return when a frame sent at `now` arrives, or None if it is dropped."""
        if cable.is_cut or (cable.loss and random.random() < cable.loss):
            return None
        if cable.rate < inf:
            wait = max(0.0, self._free_at - now)
            if wait > QUEUE_SECONDS and wait * cable.rate / 8 > QUEUE_BYTES:
                return None
            self._free_at = now = now + wait + n_bytes * 8 / cable.rate
        self.n_bytes += n_bytes
        return now + cable.delay

    def clear(self) -> None:
        """Discard the queue when the rate changes."""
        self._free_at = 0.0


class Cable:
    """A cable that joins a machine to the switch.

    Attributes
    ----------
    up, down : Wire
        The wires from the machine to the switch and back.
    delay : float
        Seconds in each direction.
    rate : float
        Bits per second.
    loss : float
        Share of the frames that is dropped.
    is_cut : bool
        Whether all frames are dropped.
    """

    def __init__(self, tap: int) -> None:
        self.tap, self.up, self.down = tap, Wire(), Wire()
        self.delay, self.rate, self.loss, self.is_cut = 0.0, inf, 0.0, False

    def configure(
        self, delay: float = 0.0, rate: float = inf, loss: float = 0.0, is_cut: bool = False
    ) -> None:
        """Set all properties. Without arguments, the cable is perfect again."""
        for wire in (self.up, self.down):
            wire.clear()
        self.delay, self.rate, self.loss, self.is_cut = delay, rate, loss, is_cut
        # Without segmentation offload, losses affect packets of realistic size.
        fcntl.ioctl(self.tap, TUNSETOFFLOAD, CHECKSUM_LATER | (0 if loss else SEGMENT_LATER))


class Switch:
    """Forwards frames between the TAP devices of machines, on a thread."""

    def __init__(self) -> None:
        # Cables by the number of the machine, which is the last byte of its MAC address.
        self.cables: dict[int, Cable] = {}
        self._due: list[tuple[float, int, Cable, bytes]] = []
        self._order = itertools.count()
        self._waker = os.eventfd(0)
        self._is_over = False
        self._thread = threading.Thread(target=self._forward, name="switch", daemon=True)

    def plug_in(self, number: int, process: int, name: str = "eth0") -> Cable:
        """Create a device in the network namespace of a process. Call this before `start`."""
        tap = open_tap(process, name)
        self.cables[number] = Cable(tap)
        return self.cables[number]

    def start(self) -> None:
        """Start forwarding."""
        self._thread.start()

    def close(self) -> None:
        """Stop forwarding and remove the devices."""
        self._is_over = True
        os.eventfd_write(self._waker, 1)
        if self._thread.is_alive():
            self._thread.join(10.0)
        for cable in self.cables.values():
            os.close(cable.tap)
        os.close(self._waker)

    def _forward(self) -> None:
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        owners = {cable.tap: cable for cable in self.cables.values()}
        for tap in owners:
            poll.register(tap, select.POLLIN)
        while not self._is_over:
            pause = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            # `poll` rounds up to a millisecond, so frames that are due earlier are polled for without
            # blocking.
            ready = poll.poll(None if pause is None else int(pause * 1000))
            for tap, _ in ready:
                if tap in owners:
                    self._read(owners[tap])
            self._deliver()

    def _read(self, cable: Cable) -> None:
        """Read at most 64 frames that a machine has sent, so that other machines get their turn."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                frame = os.read(cable.tap, FRAME_BYTES)
                now = time.monotonic()
                arrival = cable.up.schedule(cable, len(frame), now)
                if arrival is not None:
                    self._pass_on(cable, frame, now, arrival)

    def _pass_on(self, source: Cable, frame: bytes, now: float, arrival: float) -> None:
        is_for_all = frame[VNET_HEADER_BYTES] & 1
        number = frame[VNET_HEADER_BYTES + 5]
        targets = [one for one in self.cables.values() if one is not source] if is_for_all else []
        if not is_for_all and number in self.cables:
            targets = [self.cables[number]]
        for target in targets:
            then = target.down.schedule(target, len(frame), arrival)
            if then is not None and then <= now:
                write_frame(target, frame)
            elif then is not None:
                heapq.heappush(self._due, (then, next(self._order), target, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._due)
            if not target.is_cut:
                write_frame(target, frame)


def write_frame(cable: Cable, frame: bytes) -> None:
    """Pass a frame to a machine. The frame is lost if its queue is full or its device is down."""
    with contextlib.suppress(OSError):
        os.write(cable.tap, frame)


def open_tap(process: int, name: str) -> int:
    """Return the descriptor of a new TAP device in the network namespace of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    results: list[int | OSError] = []

    def open_there() -> None:  # Runs on a thread, since a thread's namespace ends with it.
        try:
            with Path(f"/proc/{process}/ns/net").open() as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(tap, TUNSETOFFLOAD, CHECKSUM_LATER | SEGMENT_LATER)
            results.append(tap)
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=open_there)
    thread.start()
    thread.join()
    if isinstance(results[0], OSError):
        raise results[0]
    return results[0]
