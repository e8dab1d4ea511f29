"""Check that machines are separate, and that the switch delays, throttles and cuts.

`make test-network` runs these tests.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from testbed.machines import Machine, Network, missing_rights, network

pytestmark = pytest.mark.network

ECHO = """
import socket
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)
"""
# Prints the seconds of a round trip of the given number of bytes, or the name of an error.
CALL = """
import socket, sys, threading, time
address, count = sys.argv[1], int(sys.argv[2])
try:
    with socket.create_connection((address, 7000), 2.0) as connection:
        connection.settimeout(30.0)
        began = time.monotonic()
        threading.Thread(target=connection.sendall, args=(bytes(count),)).start()
        while count:
            count -= len(connection.recv(1 << 16))
        print(time.monotonic() - began)
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    if reason := missing_rights():
        pytest.skip(reason)
    with network(["a", "b", "c"]) as one:
        server = one["b"].popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield one
    server.stdout.close()
    assert not any(thread.name == "switch" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _restored(net: Network) -> None:
    net.restore()


def output(machine: Machine, *command: str) -> str:
    """Run a command on a machine and return what it prints."""
    process = machine.popen(command, stdout=subprocess.PIPE)
    text, _ = process.communicate(timeout=60.0)
    return text.strip()


def call(net: Network, count: int = 1) -> str:
    """Send bytes from a to b and back; return the seconds, or the name of an error."""
    return output(net["a"], sys.executable, "-c", CALL, net["b"].address, str(count))


def test_each_machine_has_a_separate_name_address_and_files(net: Network) -> None:
    assert [output(net[name], "hostname") for name in "abc"] == ["a", "b", "c"]
    assert len({machine.address for machine in net.machines.values()}) == 3
    net["a"].run("echo 1 > /dev/shm/own; test $TMPDIR = " + str(net["a"].folder / "tmp"))
    assert output(net["b"], "ls", "/dev/shm") == ""


def test_machines_reach_each_other(net: Network) -> None:
    assert float(call(net, 1_000_000)) < 30.0
    assert net["b"].cable.down.n_bytes > 1_000_000


def test_a_delay_applies_in_each_direction(net: Network) -> None:
    net["b"].cable.configure(delay=0.1)
    assert float(call(net)) >= 0.2


def test_a_rate_applies_in_each_direction(net: Network) -> None:
    net["b"].cable.configure(rate=8e6)
    assert float(call(net, 1_000_000)) >= 0.8


def test_lost_packets_are_sent_again(net: Network) -> None:
    net["b"].cable.configure(loss=0.05)
    assert float(call(net, 200_000)) > 0.0


def test_only_a_cut_machine_is_unreachable(net: Network) -> None:
    net["b"].cable.configure(is_cut=True)
    # Either no reply arrives, or no machine answers for its Ethernet address.
    assert call(net) in ("TimeoutError", "OSError")
    net["b"].cable.configure()
    net["c"].cable.configure(is_cut=True)
    assert float(call(net)) < 30.0


def test_processes_are_found_by_their_command(net: Network) -> None:
    assert len(net["b"].processes("socket.create_server")) == 1
    assert net["a"].kill("socket.create_server") == 0
