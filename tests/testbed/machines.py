"""Machines made of namespaces and joined by a switch: `with network(["driver", "a", "b"]) as net: ...`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from testbed.switch import Cable, Switch

TESTS = Path(__file__).resolve().parents[1]
NEEDED = ("ip", "unshare", "nsenter")
SUBNET, OTHER_SUBNET = "10.77.0", "10.78.0"
# The first process of a machine. When its standard input is closed, it ends, and all processes of the machine
# with it.
FIRST_PROCESS = """
hostname {name} && mount -t tmpfs tmpfs /dev/shm && ip link set lo up &&
mount --bind {hosts} /etc/hosts && mount --bind /dev/null /etc/resolv.conf && echo ready && cat >/dev/null
"""
CONFIGURE = """
ip link set eth0 address 02:00:00:00:00:{number:02x} && ip link set eth0 mtu 1500 up &&
ip address add {address}/24 dev eth0 && ip route add default via {address}
"""
# A second network that no other machine reaches. The default route leads there, as if to the internet.
CONFIGURE_OTHER = """
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore && ip link set eth1 address 02:00:00:00:00:{number:02x} &&
ip link set eth1 up && ip address add {subnet}.{number}/24 dev eth1 &&
ip route replace default via {subnet}.254 dev eth1
"""
OTHER_NUMBER = 100  # Added to the number of a machine in the second network.


class Machine:
    """A set of namespaces with an address, a host name, a /dev/shm and a folder for temporary files.

    Parameters
    ----------
    name : str
        The host name.
    number : int
        The last byte of the address.
    folder : Path
        The folder for temporary files and the home directory.
    hosts : Path
        A file with the addresses of all machines, since programs would wait for a name server that does not
        exist.
    """

    def __init__(self, name: str, number: int, folder: Path, hosts: Path) -> None:
        self.name, self.number, self.folder = name, number, folder
        self.address = address_of(number)
        self.cable: Cable
        self._started = list[subprocess.Popen[str]]()
        (folder / "tmp").mkdir(parents=True)
        (folder / "home").mkdir()
        kinds = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = FIRST_PROCESS.format(name=name, hosts=hosts)
        self._holder = subprocess.Popen(
            ["unshare", *kinds, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self.close()
            raise PermissionError(f"no namespaces can be made for {name}")
        holder = self._holder.pid
        self.process = int(Path(f"/proc/{holder}/task/{holder}/children").read_text().split()[0])

    def popen(self, command: Iterable[str], **options: Any) -> subprocess.Popen[str]:
        """Start a process on this machine."""
        enter = ["nsenter", "-t", str(self.process), "--net", "--mount", "--uts", "--ipc", "--pid"]
        folders = {"TMPDIR": str(self.folder / "tmp"), "HOME": str(self.folder / "home")}
        settings = {
            "PYTHONPATH": str(TESTS),
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",  # May hang CPython 3.11 (gh-106883).
        }
        environment = {**os.environ, **folders, **settings}
        process = subprocess.Popen([*enter, *command], env=environment, text=True, **options)
        self._started.append(process)
        return process

    def run(self, script: str) -> None:
        """Run shell commands on this machine. Raise CalledProcessError if they fail."""
        process = self.popen(["sh", "-ec", script])
        if process.wait(30.0):
            raise subprocess.CalledProcessError(process.returncode, script)

    def processes(self, text: str = "") -> list[int]:
        """Return the processes on this machine whose command line contains `text`."""
        namespace, numbers = os.readlink(f"/proc/{self.process}/ns/pid"), []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(path / "ns/pid") == namespace and text.encode() in command_line(path):
                    numbers.append(int(path.name))
        return [one for one in numbers if one != self.process]

    def kill(self, text: str) -> int:
        """Kill the processes whose command line contains `text`, and return their number."""
        numbers = self.processes(text)
        for process in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return len(numbers)

    def close(self) -> None:
        """End all processes of this machine."""
        self._holder.kill()  # The child is killed, too, which ends all other processes of the machine.
        for process in (self._holder, *self._started):
            process.wait()
        for stream in (self._holder.stdin, self._holder.stdout):
            if stream is not None:
                stream.close()


class Network:
    """Machines by name, and the switch between them.

    Parameters
    ----------
    in_two_networks : collection of str
        The names of machines whose default route leads to the second network.
    """

    def __init__(self, names: Iterable[str], folder: Path, in_two_networks: Collection[str] = ()) -> None:
        self.switch, self.machines = Switch(), dict[str, Machine]()
        hosts, numbers = folder / "hosts", {name: number for number, name in enumerate(names, 1)}
        lines = [f"{address_of(number)} {name}" for name, number in numbers.items()]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        try:
            for name, number in numbers.items():
                machine = self.machines[name] = Machine(name, number, folder / name, hosts)
                machine.cable = self.switch.plug_in(number, machine.process)
                machine.run(CONFIGURE.format(number=number, address=machine.address))
                if name in in_two_networks:
                    self.switch.plug_in(number + OTHER_NUMBER, machine.process, "eth1")
                    machine.run(CONFIGURE_OTHER.format(number=number + OTHER_NUMBER, subnet=OTHER_SUBNET))
            self.switch.start()
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def restore(self) -> None:
        """Make all cables perfect again."""
        for machine in self.machines.values():
            machine.cable.configure()

    def close(self) -> None:
        """End all machines."""
        for machine in self.machines.values():
            machine.close()
        self.switch.close()


@contextlib.contextmanager
def network(names: Iterable[str], in_two_networks: Collection[str] = ()) -> Iterator[Network]:
    """Create machines with these host names, and remove them at the end. See `Network`."""
    folder = Path(tempfile.mkdtemp(prefix="network-"))
    try:
        with contextlib.closing(Network(names, folder, in_two_networks)) as one:
            yield one
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def missing_rights() -> str:
    """Return why no network can be created here, or an empty string if one can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        return f"these programs are missing: {', '.join(lacking)} (Debian: iproute2, util-linux)"
    if os.geteuid():
        return "network namespaces need the rights of root"
    try:
        with network(["trial"]):
            return ""
    except (OSError, subprocess.SubprocessError) as error:
        return f"the system makes no network namespaces: {error}"


def address_of(number: int) -> str:
    """Return the address of the machine with this number."""
    return f"{SUBNET}.{number}"


def command_line(path: Path) -> bytes:
    """Return the command of a process, its arguments separated by spaces."""
    return (path / "cmdline").read_bytes().replace(b"\0", b" ")


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    """Poll until the condition is true. Raise TimeoutError after the given number of seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true after {seconds:g} s")
        time.sleep(0.005)
