"""What f returned or raised, encrypted, and bound to the attempt that it is of."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from polarmap.worker.encrypted_replies import as_meant, as_sent
from polarmap.worker.encryption import Encryption
from polarmap.worker.frames import parsed_reply, plain_reply
from polarmap.worker.messages import Reply, describe, plain
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
    by_lithops = Reply.parse(pickle.loads(pickle.dumps(plain(sent))))
    by_channel = parsed_reply(plain_reply(sent), bytes(sent.result.data), {})
    for arrived in (sent, by_lithops, by_channel):
        meant = as_meant(arrived, ENCRYPTION)
        assert meant.result is not None
        assert bytes(meant.result.data) == bytes(reply.result.data)
        assert meant._replace(result=None) == reply._replace(result=None)
    apart = sent._replace(result=sent.result._replace(data=b""))
    assert as_meant(apart, ENCRYPTION, bytes(sent.result.data)).result == as_meant(sent, ENCRYPTION).result


def test_errors_come_back() -> None:
    sent = as_sent(reply_of(ValueError("a secret")), tuple(ENCRYPTION))
    assert "secret" not in repr(sent)
    error = as_meant(sent, ENCRYPTION).error
    assert error is not None
    assert error[:2] == ("ValueError", "a secret")
    assert "a secret" in error.traceback


@pytest.mark.parametrize(
    "change",
    [
        {"task": 4},
        {"attempt": 0},
        {"subtasks": (4,)},
        {"stored": None},
        {"result": None},
    ],
)
def test_a_reply_is_that_of_its_attempt_only(change: dict[str, object]) -> None:
    sent = as_sent(STORED, tuple(ENCRYPTION))
    with pytest.raises(DamagedError, match=r"is not what was encrypted|neither a result"):
        as_meant(sent._replace(**change), ENCRYPTION)


def test_layout_structure_and_bytes_are_bound() -> None:
    sent = as_sent(RESULT, tuple(ENCRYPTION)).result
    assert sent is not None
    reply = as_sent(RESULT, tuple(ENCRYPTION))
    others = [
        sent._replace(layout=tuple(("<i8", shape) for _, shape in sent.layout)),
        sent._replace(structure=("array",)),
        sent._replace(data=bytes(len(sent.data))),
        sent._replace(data=b""),
    ]
    for other in others:
        with pytest.raises(DamagedError):
            as_meant(reply._replace(result=other), ENCRYPTION)


def test_a_map_has_a_key_of_its_own() -> None:
    with pytest.raises(DamagedError):
        as_meant(as_sent(RESULT, tuple(ENCRYPTION)), Encryption.new(bytes(range(32))))


def test_a_worker_without_the_key_says_so_and_nothing_else() -> None:
    elsewhere = tuple(ENCRYPTION._replace(key="env:NOT_SET_ANYWHERE"))
    for reply in (STORED, reply_of(ValueError("a secret"))):
        sent = as_sent(reply, elsewhere)
        assert sent.result is None
        assert sent.stored is None
        assert sent.error is not None
        assert sent.error.type == "KeyUnavailableError"
        assert "secret" not in repr(sent)
        assert as_meant(sent, ENCRYPTION).error == sent.error
