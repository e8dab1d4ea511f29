"""What tasks of a map with a key do differently: it travels to workers with such tasks only.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from polarmap.worker.encryption import (
    OVERHEAD_BYTES,
    Encryption,
    KeyUnavailableError,
    encrypt_part,
    read_decrypted,
)
from polarmap.worker.frames import Frames, Message, frame
from polarmap.worker.messages import Error, Reply, describe
from polarmap.worker.parts import Part, Place

WITH_KEY, WITHOUT_KEY = b"e", b"w"  # how the data of a reply begin
Fields = tuple[Any, ...]  # of an `Encryption`


class EncryptedIO(NamedTuple):
    """The ways of numbers in and out of a task.

    read : a part of a place, by what reads its bytes there.
    store : an array of a result as an object of such parts.
    reply : what is told instead of a message with a reply.
    """

    read: Callable[[Place, Part, Callable[[Place, Part], Any]], Any]
    store: Callable[[Fields, str, Any, int], tuple[list[Part], bytes]]
    reply: Callable[[Message, Fields], Message]


def encrypted_object(encryption: Fields, key: str, data: Any, size: int) -> tuple[list[Part], bytes]:
    """The parts, of so many bytes each but the last, in which bytes are stored in a row, and the object."""
    ours, parts, pieces, start = Encryption(*encryption), list[Part](), list[bytes](), 0
    for first in range(0, len(data), size):
        piece = data[first : first + size]
        part = Part(key, len(piece), None, start)
        pieces.append(encrypt_part(ours, part, piece))
        parts.append(part._replace(crc32=zlib.crc32(pieces[-1])))
        start += len(piece) + OVERHEAD_BYTES
    return parts, b"".join(pieces)


def encrypted_reply(message: Message, encryption: Fields) -> Message:
    """A reply of which nothing but its kind and its attempt can be seen.

    Where that fails, which is where the key is not there, one that says so.
    """
    try:
        data = WITH_KEY + Encryption(*encryption).encrypt(_name(*message.order[1:]), frame(message))
    except Exception as error:
        data = WITHOUT_KEY + json.dumps(describe(error)[:3]).encode()
    return message._replace(header=b"", data=data)


def decrypted_reply(task: int, attempt: int, data: Any, encryption: Encryption) -> tuple[Any, Any]:
    """Header and data of a reply; DamagedError for what the worker of this attempt has not sent.

    Nothing is unpickled.
    """
    if data[:1] != WITHOUT_KEY:
        [message] = Frames().of(encryption.decrypt(_name(task, attempt), data[1:]))
        return message.header, message.data
    kind, text, trace = json.loads(bytes(data[1:]))
    ours = KeyUnavailableError(str(text)) if kind == KeyUnavailableError.__name__ else None
    return Reply(Error(str(kind), str(text), str(trace), ours), 0.0), b""


def _name(task: int, attempt: int) -> str:
    """What tells this attempt of its map, which has a key of its own, from the others."""
    return f"reply {task}-{attempt}"


ENCRYPTED = EncryptedIO(read_decrypted, encrypted_object, encrypted_reply)
