"""Replies of workers, encrypted: what f returned or raised, on its way through storage.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import json
from typing import Any

from polarmap.worker.encryption import Encryption, KeyUnavailableError
from polarmap.worker.messages import Error, Reply, describe, reply_of_bytes, sealed
from polarmap.worker.parts import DamagedError

ENCRYPTED, WITHOUT_KEY = b"e", b"w"  # how the bytes begin that travel


def as_sent(reply: Reply, encryption: tuple[Any, ...]) -> Reply:
    """A reply of whose task and attempt alone anything can be seen.

    Where that fails, which is where the key is not there, one that says so.
    """
    try:
        ours = Encryption(*encryption)
        data = ENCRYPTED + ours.encrypt(_name(reply), reply.to_bytes())
    except Exception as error:
        data = WITHOUT_KEY + json.dumps(describe(error)[:3]).encode()
    return sealed(reply.task, reply.attempt, data, reply.subtasks)


def as_meant(reply: Reply, encryption: Encryption) -> Reply:
    """The inverse; DamagedError for what the worker of this attempt has not sent.

    Nothing is unpickled but what a worker with the key has encrypted.
    """
    if reply.result is None:
        raise DamagedError("is not encrypted")
    told = bytes(reply.result.data)
    if told[:1] == WITHOUT_KEY:
        kind, message, trace = json.loads(told[1:])
        ours = KeyUnavailableError(str(message)) if kind == KeyUnavailableError.__name__ else None
        error = Error(str(kind), str(message), str(trace), ours)
        return reply._replace(result=None, error=error, stored=None, subtasks=())
    meant = reply_of_bytes(encryption.decrypt(_name(reply), told[1:]))
    assert meant is not None
    return meant


def _name(reply: Reply) -> str:
    """What tells this attempt of its map, which has a key of its own, from the others."""
    return f"reply {reply.task}-{reply.attempt}"
