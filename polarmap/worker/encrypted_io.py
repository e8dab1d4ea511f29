"""What tasks of a map with a key do differently: it travels to workers with such tasks only.

Runs on workers too: imports numpy at most.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from polarmap.worker.encrypted_replies import as_sent
from polarmap.worker.encryption import OVERHEAD_BYTES, Encryption, encrypt_part, read_decrypted
from polarmap.worker.messages import Reply
from polarmap.worker.parts import Part, Place

Fields = tuple[Any, ...]  # of an `Encryption`


class EncryptedIO(NamedTuple):
    """The ways of numbers in and out of a task.

    read : a part of a place, by what reads its bytes there.
    store : an array of a result as an object of such parts.
    reply : what is told instead of a reply.
    """

    read: Callable[[Place, Part, Callable[[Place, Part], Any]], Any]
    store: Callable[[Fields, str, Any, int], tuple[list[Part], bytes]]
    reply: Callable[[Reply, Fields], Reply]


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


ENCRYPTED = EncryptedIO(read_decrypted, encrypted_object, as_sent)
