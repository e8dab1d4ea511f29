"""What travels with tasks of maps with a key, and with no others: parts and replies, encrypted."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest

from polarmap.executors.pickling import pickled_by_value
from polarmap.worker.encrypted_io import ENCRYPTED, decrypted_reply, encrypted_object, encrypted_reply
from polarmap.worker.encryption import Encryption, KeyUnavailableError, read_decrypted
from polarmap.worker.frames import PART, Message, frame
from polarmap.worker.io_lithops import make_task
from polarmap.worker.messages import Reply
from polarmap.worker.parts import DamagedError, Part, Place

DATA = np.random.default_rng(0).bytes(1_000)
ENCRYPTION = Encryption.new(bytes(range(32)))
REPLY = Message(PART, (7, 3, 1), b"a header", b"the secret data")


def test_each_part_of_an_object_can_be_read_by_itself() -> None:
    fields = tuple(Encryption.new(bytes(range(32))))
    place = Place("bucket", "b", encryption=fields)
    for size in (1, 7, 400, 999, 1_000, 1_001):
        parts, stored = encrypted_object(fields, "x", memoryview(DATA), size)

        def read(place: Place, part: Part, stored: bytes = stored) -> bytes:
            return stored[part.offset : part.offset + part.size]

        assert [part.size for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert b"".join(read_decrypted(place, part, read) for part in parts) == DATA
        assert parts[-1].offset + parts[-1].size + 28 == len(stored)
    assert encrypted_object(fields, "x", b"", 8) == ([], b"")


def test_it_travels_with_a_key_only() -> None:
    with pickled_by_value():
        plain, encrypted = (cloudpickle.dumps(make_task(len, one)) for one in (None, ENCRYPTED))
    assert b"AESGCM" not in plain
    assert b"AESGCM" in encrypted
    # Elsewhere: cloudpickle would put the copies of our classes' methods into the classes of this process.
    load = "import pickle, sys; assert callable(pickle.load(sys.stdin.buffer))"
    subprocess.run([sys.executable, "-c", load], input=encrypted, check=True, timeout=60)


@pytest.mark.parametrize("reply", [REPLY, REPLY._replace(data=b""), REPLY._replace(header=b"")])
def test_replies_come_back_to_their_attempt_and_to_no_other(reply: Message) -> None:
    sent = encrypted_reply(reply, tuple(ENCRYPTION))
    assert (sent.kind, sent.order, sent.header) == (PART, (7, 3, 1), b"")
    assert b"secret" not in sent.data
    assert decrypted_reply(3, 1, sent.data, ENCRYPTION) == (reply.header, reply.data)
    changed = bytes(sent.data[:-1]) + bytes([sent.data[-1] ^ 1])
    for task, attempt, data in (
        (4, 1, sent.data),
        (3, 0, sent.data),
        (3, 1, changed),
        (3, 1, sent.data[:-1]),
    ):
        with pytest.raises(DamagedError, match="is not what was encrypted"):
            decrypted_reply(task, attempt, data, ENCRYPTION)
    with pytest.raises(DamagedError):  # each map has a key of its own
        decrypted_reply(3, 1, sent.data, Encryption.new(bytes(range(32))))


class Bomb:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled_that_was_not_encrypted_by_a_worker_of_the_map() -> None:
    bomb = pickle.dumps(Bomb())
    forged = frame(Message(PART, (7, 3, 1), bomb, b"xyz"))
    for data in (bomb, b"e" + bomb, b"e" + forged, forged, b"w" + bomb, b"", b"e"):
        with pytest.raises((DamagedError, ValueError)):
            decrypted_reply(3, 1, data, ENCRYPTION)


def test_a_worker_without_the_key_says_so_and_nothing_else() -> None:
    sent = encrypted_reply(REPLY, tuple(ENCRYPTION._replace(key="env:NOT_SET_ANYWHERE")))
    assert b"secret" not in sent.data
    reply, data = decrypted_reply(3, 1, sent.data, ENCRYPTION)
    assert isinstance(reply, Reply)
    assert (reply[1:], data) == (Reply(None, 0.0)[1:], b"")
    assert reply.error is not None
    assert reply.error.type == "KeyUnavailableError"
    assert type(reply.error.exception) is KeyUnavailableError  # made here, of its text
