"""Where workers elsewhere call their driver: only who proves to have the key is listened to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from polarmap.executors.base import WakeSignal
from polarmap.worker.liveness import LIVENESS_SECONDS
from polarmap.worker.stream import (
    ANSWER_SECONDS,
    NONCE_BYTES,
    PROOF_BYTES,
    Endpoint,
    Stream,
    admit_worker,
    ready,
    stay_awake,
)

MOST_STRANGERS = 256  # connections that may be proving that they have the key at a time


class Stranger(NamedTuple):
    """Who has connected, and not yet proved to have the key.

    nonce : that it was sent; said : what it has answered.
    until : when it is let go, on the monotonic clock.
    """

    nonce: bytes
    said: bytearray
    until: float


class WorkerListener:
    """Listens until it is closed, on a thread.

    Parameters
    ----------
    key : bytes
        That workers must have.
    join : callable
        Told of each worker.
    is_local : bool
        Whether only workers on this machine can call.
    """

    def __init__(self, key: bytes, join: Callable[[int, Stream, str], None], is_local: bool) -> None:
        self._key, self._join = key, join
        hosts = ["127.0.0.1"] if is_local else own_addresses()
        self._socket = socket.create_server((hosts[0] if is_local else "", 0), backlog=MOST_STRANGERS)
        port = self._socket.getsockname()[1]
        self.endpoints: tuple[Endpoint, ...] = tuple((host, port) for host in hosts)
        self._socket.setblocking(False)
        self._strangers = dict[socket.socket, Stranger]()  # the first first
        self._over = WakeSignal()
        self._thread = threading.Thread(target=self._listen, name="polarmap-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._over.set()
        self._thread.join(ANSWER_SECONDS)  # a worker that joins may wait for a lock that whoever closes has
        self.forget()

    def forget(self) -> None:
        """Let go of the sockets, in a process that was forked of the one that listens."""
        for connection in (self._socket, *self._strangers):
            connection.close()
        self._over.close()

    def _listen(self) -> None:
        while True:
            first = next(iter(self._strangers.values()), None)
            patience = None if first is None else first.until - time.monotonic()
            found = ready([self._over, self._socket, *self._strangers], select.POLLIN, patience)
            if self._over in found:
                return
            for connection in self._strangers.keys() & found:
                self._hear(connection)
            if self._socket in found:
                self._accept()
            self._let_go_of_late()

    def _accept(self) -> None:
        """Let somebody who has connected prove that it has the key."""
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:  # whoever called has gone again
            return
        except OSError:  # no descriptor is free
            ready([self._over], select.POLLIN, LIVENESS_SECONDS)
            return
        nonce = os.urandom(NONCE_BYTES)
        self._strangers[connection] = Stranger(nonce, bytearray(), time.monotonic() + ANSWER_SECONDS)
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.send(nonce)

    def _hear(self, connection: socket.socket) -> None:
        """What a stranger says: it joins when it has proved that it has the key, and goes if it has not."""
        nonce, said, _ = self._strangers[connection]
        try:
            data = connection.recv(PROOF_BYTES - len(said))
            said += data
            if data and len(said) < PROOF_BYTES:
                return
            number, proof, seals = admit_worker(self._key, nonce, bytes(said))
            connection.sendall(proof)
            stay_awake(connection)
        except BlockingIOError:
            return
        except OSError:
            self._let_go(connection)
        else:
            del self._strangers[connection]
            self._join(number, Stream(connection, seals), "TCP")

    def _let_go_of_late(self) -> None:
        """Let those go that take too long, and the first of too many."""
        now, surplus = time.monotonic(), len(self._strangers) - MOST_STRANGERS
        for number, (connection, stranger) in enumerate(list(self._strangers.items())):
            if number < surplus or stranger.until < now:
                self._let_go(connection)

    def _let_go(self, connection: socket.socket) -> None:
        del self._strangers[connection]
        connection.close()


def own_addresses() -> list[str]:
    """Addresses of this machine at which others may reach it, and itself."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: which address would be used to go there?
        found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += [str(one[4][0]) for one in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    return list(dict.fromkeys([*found, "127.0.0.1"]))
