"""Lists in Redis as a worker uses them, on a server of its own."""

from __future__ import annotations

import pickle
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from servers import SECRET, Server

from polarmap.worker import redis_channel
from polarmap.worker.frames import END, Frames, Message
from polarmap.worker.redis_channel import GOODBYE, HEADER, LIVES, RedisChannel, RedisKeys


@pytest.fixture
def client(redis_server: Server) -> Iterator[Any]:
    import redis

    with redis.Redis("127.0.0.1", redis_server.port, password=SECRET) as one:
        yield one


@pytest.fixture
def keys(client: Any) -> Iterator[RedisKeys]:
    one = RedisKeys(f"polarmap/{uuid.uuid4().hex}")
    client.set(one.driver, LIVES)
    yield one
    client.delete(one.driver, one.to_driver, one.to_worker(7))


@pytest.fixture
def channel(client: Any, keys: RedisKeys) -> Iterator[RedisChannel]:
    with closing(RedisChannel(client, keys.prefix, 7)) as one:
        yield one


def test_messages_go_both_ways(client: Any, keys: RedisKeys, channel: RedisChannel) -> None:
    assert channel.receive(0.01) is None
    client.rpush(keys.to_worker(7), pickle.dumps((3, ("call", "x"))))
    assert channel.has_message()
    assert channel.receive(5.0) == ("call", "x")
    assert not channel.has_message()
    channel.send(Message(END, (1, 2, 0), data=b"raw"))
    said = client.lpop(keys.to_driver)
    start = struct.calcsize(HEADER)
    assert struct.unpack_from(HEADER, said) == (7, 3, False, False)
    assert list(Frames().of(said[start:])) == [Message(END, (1, 2, 0), b"", b"raw")]


def test_a_message_that_was_sent_again_is_taken_once(client: Any, keys: Any, channel: Any) -> None:
    for count in (3, 3, 2, 4):
        client.rpush(keys.to_worker(7), pickle.dumps((count, ("call", count))))
    heard = [channel.receive(0.1) for _ in range(4)]
    assert heard == [("call", 3), None, None, ("call", 4)]


def test_what_nobody_reads_goes_in_the_end(client: Any, keys: RedisKeys, channel: RedisChannel) -> None:
    channel.send(Message(END))
    channel.put(b"", is_sign=True)
    assert 0 < client.ttl(keys.to_driver) <= redis_channel.KEPT_SECONDS


def test_a_driver_that_says_goodbye_is_gone_at_once(client: Any, keys: Any, channel: Any) -> None:
    assert not channel.is_closed()
    client.set(keys.driver, GOODBYE)
    assert channel.is_closed()
    with pytest.raises(ConnectionError):
        channel.receive(0.01)


def test_a_driver_that_gives_no_sign_of_life_is_gone(
    client: Any, keys: RedisKeys, channel: RedisChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.delete(keys.driver)
    assert not channel.is_closed()
    monkeypatch.setattr(redis_channel, "BEAT_SECONDS", 0.05)
    time.sleep(0.1)
    assert channel.is_closed()


class Away:
    """A client of a server that does not answer at present."""

    def __init__(self) -> None:
        self.is_away, self.driver = True, LIVES

    def get(self, key: str) -> bytes | None:
        if self.is_away:
            raise ConnectionError("away")
        return self.driver


def test_a_server_that_is_away_for_a_while_is_no_driver_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_channel, "BEAT_SECONDS", 0.15)
    client = Away()
    with closing(RedisChannel(client, "prefix", 7)) as channel:
        time.sleep(0.2)
        assert not channel.is_closed()
        client.is_away, client.driver = False, None
        assert not channel.is_closed()  # the driver has time to come back, too
        client.driver = LIVES
        assert not channel.is_closed()


def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_channel, "AWAY_SECONDS", 0.1)
    with closing(RedisChannel(Away(), "prefix", 7)) as channel:
        assert not channel.is_closed()
        time.sleep(0.2)
        assert channel.is_closed()


def test_signs_of_life_tell_whether_it_works(
    client: Any, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_channel, "BEAT_SECONDS", 0.01)
    with closing(RedisChannel(client, keys.prefix, 7)) as channel:
        for is_idle in (True, False):
            client.delete(keys.to_driver)
            for _ in range(2):  # the first may have been on its way
                said = client.blpop([keys.to_driver], timeout=10)[1]
            assert struct.unpack(HEADER, said) == (7, channel.latest, is_idle, True)
            client.rpush(keys.to_worker(7), pickle.dumps((1, ("call", 0))))
            channel.receive(5.0)
