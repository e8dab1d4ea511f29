"""Tests that `SelectPoll` reports the same events as `select.poll`."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from polarmap.worker import polling, socket_channel
from polarmap.worker.messages import Message, MessageKind, encode_frame
from polarmap.worker.polling import POLLIN, SelectPoll
from polarmap.worker.socket_channel import SocketChannel


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    local, remote = socket.socketpair()
    with local, remote:
        yield local, remote


@pytest.mark.parametrize("kind", [select.poll, SelectPoll])
def test_readable_and_closed_sockets_are_reported_if_registered(
    kind: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    (local, remote), poll = pair, kind()
    poll.register(local, POLLIN)
    poll.register(remote.fileno(), POLLIN)
    assert poll.poll(0) == []
    remote.send(b"news")
    assert [descriptor for descriptor, _ in poll.poll(None)] == [local.fileno()]
    local.recv(10)
    local.shutdown(socket.SHUT_WR)
    assert [descriptor for descriptor, _ in poll.poll(1000)] == [remote.fileno()]
    poll.unregister(remote.fileno())
    assert poll.poll(0) == []


def test_polling_without_sockets_waits_for_the_timeout() -> None:
    began = time.monotonic()
    assert SelectPoll().poll(20) == []
    assert time.monotonic() >= began + 0.02


def test_a_stream_detects_a_closed_peer_once_all_data_is_read(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_channel, "POLL_HANGUP", POLLIN)
    monkeypatch.setattr(polling, "Poll", SelectPoll)
    local, remote = pair
    channel = SocketChannel(local)
    assert not channel.is_peer_closed()
    remote.send(encode_frame(Message(MessageKind.CANCEL)))
    remote.close()
    assert not channel.is_peer_closed()
    assert channel.receive()[0] == [Message(MessageKind.CANCEL)]
    assert channel.is_peer_closed()
