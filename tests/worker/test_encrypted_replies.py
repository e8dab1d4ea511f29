"""What f returned or raised, encrypted, and bound to the attempt that it is of."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np
import pytest

from polarmap.worker.encrypted_replies import as_meant, as_sent
from polarmap.worker.encryption import Encryption, KeyUnavailableError
from polarmap.worker.messages import (
    LENGTHS,
    Error,
    Reply,
    describe,
    parsed_reply,
    plain,
    reply_of_bytes,
    sealed,
)
from polarmap.worker.parts import DamagedError, Part
from polarmap.worker.pytree import pack
from polarmap.worker.stored_output import StoredOutput

ENCRYPTION = Encryption.new(bytes(range(32)))
VALUE = {"a": np.arange(12.0), ("b", 1): [np.float32(2), np.arange(3, dtype=">i4")], np.int64(3): np.eye(2)}
RESULT = Reply(3, 1, pack(VALUE), None, 1.5, 2.5, None, (4, 5))
STORED = RESULT._replace(stored=StoredOutput((("<f8", (2,)),), (Part("x", 16, 7, 3),)))


def reply_of(error: Exception) -> Reply:
    return Reply(3, 1, None, describe(error), 1.5, 2.5)


@pytest.mark.parametrize("reply", [RESULT, STORED, RESULT._replace(result=pack(np.empty(0)))])
def test_results_come_back_by_every_way(reply: Reply) -> None:
    sent = as_sent(reply, tuple(ENCRYPTION))
    assert sent.result is not None
    assert reply.result is not None
    assert bytes(reply.result.data) not in bytes(sent.result.data) or not reply.result.data
    by_pool = parsed_reply(pickle.loads(pickle.dumps(plain(sent))))
    header, data = sent.to_parts()
    assert header == b""
    by_channel = sealed(3, 1, data)
    for arrived in (sent, by_pool, by_channel):
        meant = as_meant(arrived, ENCRYPTION)
        assert meant.result is not None
        assert bytes(meant.result.data) == bytes(reply.result.data)
        assert meant._replace(result=None) == reply._replace(result=None)


def test_errors_come_back() -> None:
    sent = as_sent(reply_of(ValueError("a secret")), tuple(ENCRYPTION))
    assert "secret" not in repr(sent)
    error = as_meant(sent, ENCRYPTION).error
    assert error is not None
    assert error[:2] == ("ValueError", "a secret")
    assert isinstance(error.exception, bytes)
    assert pickle.loads(error.exception).args == ("a secret",)
    assert "a secret" in error.traceback


@pytest.mark.parametrize("change", [{"task": 4}, {"attempt": 0}, {"result": None}])
def test_a_reply_is_that_of_its_attempt_only(change: dict[str, object]) -> None:
    sent = as_sent(STORED, tuple(ENCRYPTION))
    with pytest.raises(DamagedError, match=r"is not what was encrypted|is not encrypted"):
        as_meant(sent._replace(**change), ENCRYPTION)


def test_all_else_is_what_was_encrypted() -> None:
    sent = as_sent(STORED, tuple(ENCRYPTION))
    error = Error("E", "m", "t", b"")
    assert as_meant(sent._replace(subtasks=(9,), stored=None, error=error, ended=9.0), ENCRYPTION) == STORED


class Bomb:
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled_that_was_not_encrypted_by_a_worker_of_the_map() -> None:
    bomb = pickle.dumps(Bomb())
    forged = struct.pack(LENGTHS, len(bomb), 3) + bomb + b"xyz"
    others = as_sent(RESULT, tuple(Encryption.new(bytes(range(32))))).result
    assert others is not None
    for data in (bomb, b"e" + bomb, b"e" + forged, b"w" + bomb, others.data, b"", b"e"):
        with pytest.raises((DamagedError, ValueError)):
            as_meant(sealed(3, 1, data), ENCRYPTION)
    assert reply_of_bytes(forged, sealed_of=(3, 1)) is not None  # an object of a subtask: not even looked at


def test_a_map_has_a_key_of_its_own() -> None:
    with pytest.raises(DamagedError):
        as_meant(as_sent(RESULT, tuple(ENCRYPTION)), Encryption.new(bytes(range(32))))


def test_a_worker_without_the_key_says_so_and_nothing_else() -> None:
    elsewhere = tuple(ENCRYPTION._replace(key="env:NOT_SET_ANYWHERE"))
    for reply in (STORED, reply_of(ValueError("a secret"))):
        sent = as_sent(reply, elsewhere)
        assert "secret" not in repr(sent)
        meant = as_meant(sent, ENCRYPTION)
        assert meant.result is meant.stored is None
        assert meant.error is not None
        assert meant.error.type == "KeyUnavailableError"
        assert type(meant.error.exception) is KeyUnavailableError  # made here, of its text
