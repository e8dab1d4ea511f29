"""Sockets on which workers elsewhere call their driver: only who proves to have the key is listened to."""

from __future__ import annotations

import contextlib
import select
import socket
import threading

from polarmap.executors.links import Join, SocketLink, WakeSignal
from polarmap.worker.channels import Endpoint, admit_worker, ready, stay_awake
from polarmap.worker.frames import FrameError

PROOF_SECONDS = 10.0  # that a worker may take to prove that it has the key
MOST_STRANGERS = 256  # connections that may be proving it at a time
REST_SECONDS = 0.1  # while this process may open no more files


class WorkerListener:
    """Listens until it is closed, on threads.

    Parameters
    ----------
    key : bytes
        That workers must have.
    join : callable
        Told of each worker.
    is_local : bool
        Whether only workers on this machine can call.
    """

    def __init__(self, key: bytes, join: Join, is_local: bool) -> None:
        self._key, self._join = key, join
        hosts = ["127.0.0.1"] if is_local else own_addresses()
        self._socket = socket.create_server((hosts[0] if is_local else "", 0), backlog=MOST_STRANGERS)
        port = self._socket.getsockname()[1]
        self.endpoints: tuple[Endpoint, ...] = tuple((host, port) for host in hosts)
        self._socket.setblocking(False)
        self._strangers = dict[socket.socket, None]()  # that have not proved it yet, the first first
        self._lock = threading.Lock()
        self._over = WakeSignal()
        self._thread = threading.Thread(target=self._listen, name="polarmap-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._over.set()
        self._thread.join()
        self.forget()

    def forget(self) -> None:
        """Let go of the sockets, in a process that was forked of the one that listens."""
        self._socket.close()
        self._over.close()

    def _listen(self) -> None:
        while True:
            if self._over in ready([self._socket, self._over], select.POLLIN, None):
                return
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:  # whoever called has gone again
                continue
            except OSError:  # no descriptor is free
                ready([self._over], select.POLLIN, REST_SECONDS)
                continue
            with self._lock:
                if len(self._strangers) >= MOST_STRANGERS:  # the one that takes longest is let go
                    oldest = next(iter(self._strangers))
                    del self._strangers[oldest]
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)
                self._strangers[connection] = None
            threading.Thread(
                target=self._admit, args=(connection,), name="polarmap-stranger", daemon=True
            ).start()

    def _admit(self, connection: socket.socket) -> None:
        """Let a worker join that has the key."""
        try:
            connection.settimeout(PROOF_SECONDS)
            number, seals = admit_worker(connection, self._key)
            stay_awake(connection)
            link = SocketLink(connection, seals)
        except (OSError, FrameError):
            with self._lock:  # so that no other one is let go in place of this one
                connection.close()
        else:
            self._join(number, link, "TCP")
        finally:
            with self._lock:
                self._strangers.pop(connection, None)


def own_addresses() -> list[str]:
    """Addresses of this machine at which others may reach it, and itself."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: which address would be used to go there?
        found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    return list(dict.fromkeys([*found, "127.0.0.1"]))
