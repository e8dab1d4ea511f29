"""Which process writes something, and whether it still runs."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import NamedTuple


class ProcessIdentity(NamedTuple):
    """A process: its machine, its number and when it started (its number may be given out again)."""

    host: str
    process: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}+{self.process}+{self.started}"

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return cls(_machine(), os.getpid(), _started(os.getpid()) or "")

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """The inverse of str(); what is no owner is one of nowhere."""
        host, _, rest = text.partition("+")
        process, _, started = rest.partition("+")
        return cls(host, int(process), started) if process.isdecimal() else cls("", 0, "")

    def is_on_this_machine(self) -> bool:
        """Whether it belongs to this machine."""
        return self.host == _machine()

    def is_dead(self) -> bool:
        """Whether it is known to have ended."""
        if not self.is_on_this_machine():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        started = _started(self.process)
        return started is not None and started != self.started


@cache
def _machine() -> str:
    """A name for where process numbers mean what they mean here: host, boot and process namespace."""
    name = os.uname().nodename
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            name += f"-{boot.read().strip()[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        pass
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)


def _started(process: int) -> str | None:
    """When a process started, in the kernel's ticks; None where that cannot be seen.

    A process that only waits to be reaped has ended: its start is "ended".
    """
    try:
        with open(f"/proc/{process}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] == b"Z" else fields[19].decode()
