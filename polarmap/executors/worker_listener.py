"""The TCP endpoint to which remote workers connect.

Worker and driver prove to each other that they have the pool's key. Each authenticated connection becomes a
`SocketChannel` of the pool.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial

from polarmap.errors import CodeError
from polarmap.executors.wake_signal import WakeSignal
from polarmap.worker.daemon_threads import run_in_daemon_thread
from polarmap.worker.handshake import PROOF_TIMEOUT, Endpoint, authenticate_worker
from polarmap.worker.messages import ProtocolMismatchError
from polarmap.worker.polling import POLLIN, wait_until_ready
from polarmap.worker.processes import LIVENESS_INTERVAL
from polarmap.worker.socket_channel import TCP_TIMEOUT, SocketChannel, configure_tcp, shutdown_socket

with contextlib.suppress(ImportError):  # The module does not exist on Windows.
    import fcntl

# Error codes for a host name that this machine cannot resolve. The name is still accepted as the address for
# workers, because other machines may be able to resolve it.
UNRESOLVABLE_HOST_ERRORS = (socket.EAI_NONAME, socket.EAI_AGAIN)
# The number of the `ioctl` request SIOCGIFADDR, which returns the address of a network interface. It depends
# on the platform, and is None on Windows, which has no such request.
GET_ADDRESS = {"linux": 0x8915, "darwin": 0xC0206921}.get(sys.platform)
# The maximum number of connections that have not proved yet that they come from a worker. If there are more,
# the oldest are closed.
MAX_UNAUTHENTICATED = 256


class WorkerListener:
    """Accepts TCP connections from remote workers, and checks that the workers have the pool's secret key.

    Connections are accepted and checked on background threads.

    Parameters
    ----------
    authentication_key : bytes
        The key that workers must have.
    on_connected : callable
        Called with a worker id, its channel and "TCP" once the worker has proved that it has the key.
    local_only : bool
        True to accept only workers on this machine.
    endpoint : Endpoint, optional
        The host and port to which workers connect, for example a tunnel to the same port of this machine.
        None: the addresses of this machine and a free port.
    tcp_timeout : float
        A connection counts as lost after this many seconds without a message.
    preferred_host : str
        The address of this machine that workers try first; empty for the address of the default route.

    Attributes
    ----------
    mismatches : deque of ProtocolMismatchError
        Errors about workers that run another version of polarmap. The owner removes them from the queue.
    """

    def __init__(
        self,
        authentication_key: bytes,
        on_connected: Callable[[int, SocketChannel, str], None],
        local_only: bool,
        endpoint: Endpoint | None = None,
        tcp_timeout: float = TCP_TIMEOUT,
        preferred_host: str = "",
    ) -> None:
        self._authentication_key = authentication_key
        self.mismatches = deque[ProtocolMismatchError]()
        self._on_connected = on_connected
        self._tcp_timeout = tcp_timeout
        hosts = ["127.0.0.1"]
        if not local_only:
            hosts = put_preferred_host_first(preferred_host, list_local_addresses())
        if endpoint is None:
            self._socket = _open_listening_socket(hosts)
        else:
            self._socket = _open_listening_socket_at(*endpoint)
        port = self._socket.getsockname()[1]
        self.endpoints: tuple[Endpoint, ...] = (
            tuple((host, port) for host in hosts) if endpoint is None else (endpoint,)
        )
        self._socket.setblocking(False)
        # The connections that are not authenticated yet, oldest first. The dict is used as an ordered set.
        self._unauthenticated = dict[socket.socket, None]()
        self._stop_signal = WakeSignal()
        self._thread = threading.Thread(target=self._accept_loop, name="polarmap-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and close all connections that are not authenticated yet."""
        self._stop_signal.set()
        self._thread.join(PROOF_TIMEOUT)
        self._stop_signal.close()
        for connection in list(self._unauthenticated):
            shutdown_socket(connection)
        self._socket.close()

    def after_fork(self) -> None:
        """Close the sockets in a forked child process. The listener belongs to the parent process."""
        for connection in (self._socket, *self._unauthenticated):
            connection.close()
        self._stop_signal.close()

    def _accept_loop(self) -> None:
        while self._stop_signal not in wait_until_ready([self._stop_signal, self._socket], POLLIN, None):
            try:
                with contextlib.ExitStack() as stack:
                    connection = stack.enter_context(self._socket.accept()[0])
                    run_in_daemon_thread(partial(self._authenticate, connection))
                    stack.pop_all()  # Do not close the connection here: the new thread owns it now.
            except BlockingIOError:  # The connection was closed before it was accepted.
                continue
            except (OSError, RuntimeError):
                # No file descriptor or no thread is available. Wait a little, because this may be temporary.
                wait_until_ready([self._stop_signal], POLLIN, LIVENESS_INTERVAL)
            for oldest_connection in list(self._unauthenticated)[:-MAX_UNAUTHENTICATED]:
                shutdown_socket(oldest_connection)

    def _authenticate(self, connection: socket.socket) -> None:
        """Check that the worker at the other end of a new connection has the secret key.

        Call `on_connected` if it has. Otherwise, close the connection.
        """
        self._unauthenticated[connection] = None
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            stack.callback(self._unauthenticated.pop, connection)
            configure_tcp(connection, self._tcp_timeout)
            try:
                worker_id, authenticators = authenticate_worker(connection, self._authentication_key)
            except ProtocolMismatchError as error:
                self.mismatches.append(error)
                return
            stack.pop_all()
            del self._unauthenticated[connection]
            self._on_connected(worker_id, SocketChannel(connection, authenticators, self._tcp_timeout), "TCP")


def check_endpoint(address: str) -> Endpoint:
    """Parse "host:port" and return the host and port. Raises CodeError if the address is invalid.

    >>> check_endpoint("head.example.org:8800"), check_endpoint("[2001:db8::1]:8800")
    (('head.example.org', 8800), ('2001:db8::1', 8800))
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise CodeError(f"listen must be True, False, or 'host:port', not {address!r:.100}")
    return host, int(port)


def put_preferred_host_first(preferred_host: str, hosts: Sequence[str]) -> list[str]:
    """Return the addresses `hosts` with `preferred_host` as the first one.

    Return `hosts` unchanged if the preferred host is not an IP address, or is an address that other machines
    cannot reach, such as 127.0.0.1.

    >>> put_preferred_host_first("10.0.0.1", ["192.0.2.1", "10.0.0.1"])
    ['10.0.0.1', '192.0.2.1']
    >>> put_preferred_host_first("127.0.0.1", ["192.0.2.1"])
    ['192.0.2.1']
    """
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(preferred_host)
        if not (address.is_loopback or address.is_unspecified):
            return list(dict.fromkeys([preferred_host, *hosts]))
    return list(hosts)


def _open_listening_socket(hosts: Sequence[str]) -> socket.socket:
    """Open a socket that accepts connections to the given addresses of this machine, on a free port.

    If there are several addresses, the socket accepts connections to any address of this machine.
    """
    if len(hosts) == 1:
        return socket.create_server((hosts[0], 0), backlog=MAX_UNAUTHENTICATED)
    if any(":" in host for host in hosts) and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=MAX_UNAUTHENTICATED
        )
    return socket.create_server(("", 0), backlog=MAX_UNAUTHENTICATED)


def find_local_address_towards(remote_host: str) -> str:
    """Return the address of this machine that it uses in connections to a remote host.

    Return "" if the host cannot be resolved or reached. No data are sent to the host.
    """
    with contextlib.suppress(OSError):
        family, *_, address = socket.getaddrinfo(remote_host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Connecting a UDP socket sends nothing, but makes the system choose the local address.
            probe.connect(address)
            return str(probe.getsockname()[0])
    return ""


def _open_listening_socket_at(host: str, port: int) -> socket.socket:
    """Open a socket that accepts connections to the given host and port.

    The host may be another machine from which a tunnel leads to this one. The socket then accepts connections
    to all addresses of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=MAX_UNAUTHENTICATED)
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, *UNRESOLVABLE_HOST_ERRORS):
            raise
        return socket.create_server(("", port), backlog=MAX_UNAUTHENTICATED)


def is_every_host_local(hosts: Collection[str | None]) -> bool:
    """Return True if all hosts are addresses of this machine. Return False if there are no hosts."""
    # On Debian, the name of the machine resolves to 127.0.1.1.
    return bool(hosts) and set(hosts) <= {*list_local_addresses(), "localhost", "127.0.1.1", "::1"}


def list_local_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine.

    The address of the default route comes first, and the loopback address 127.0.0.1 last. On Linux and macOS,
    no name server is queried, because this could take long without a network.
    """
    default = [address for address in [find_local_address_towards("192.0.2.1")] if address]
    addresses = [item for item in _list_interface_addresses() if not ipaddress.ip_address(item).is_loopback]
    return list(dict.fromkeys([*default, *addresses, "127.0.0.1"]))


def _list_interface_addresses() -> list[str]:
    """Return the IPv4 addresses of the network interfaces of this machine.

    On Windows, return the addresses to which the name of this machine resolves.
    """
    found = list[str]()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if GET_ADDRESS is None:
            return [str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # An interface may have no IPv4 address.
                request = struct.pack("40s", name.encode()[:15])
                found.append(socket.inet_ntoa(fcntl.ioctl(probe.fileno(), GET_ADDRESS, request)[20:24]))
    return found
