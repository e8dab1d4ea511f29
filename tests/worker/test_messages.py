"""Tests that messages are decoded from pieces of any size, and that invalid bytes raise FrameError."""

from __future__ import annotations

import os
import struct
import tracemalloc
from typing import Any

import pytest

from polarmap.worker.messages import (
    CONTINUATION_FLAG,
    FRAME_PREFIX,
    MAC_BYTES,
    MORE_FRAMES_FLAG,
    FrameDecoder,
    FrameError,
    Message,
    MessageAuthenticator,
    MessageKind,
    encode_frame,
)

SENT = [
    Message(
        MessageKind.TASK_REPLY, (number, 2 * number, -1), bytes(number), bytes(3 * number), number % 2 == 1
    )
    for number in range(20)
]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_messages_arrive_in_any_pieces_and_are_writable(is_sealed: bool) -> None:
    sender, receiver = (MessageAuthenticator(b"key") if is_sealed else None for _ in range(2))
    frames = FrameDecoder(receiver)
    for step in (1, 7, 10_000):
        sent = b"".join(encode_frame(message, sender) for message in SENT)
        received = [
            message
            for start in range(0, len(sent), step)
            for message in frames.feed(sent[start : start + step])
        ]
        assert received == SENT
        received[-1].data[0] = 1  # type: ignore[index]


def test_invalid_bytes_are_refused() -> None:
    for sent in (
        struct.pack(FRAME_PREFIX, MessageKind.TASK_REPLY, False, 0, 0, 0, 2**40, 0),
        struct.pack(FRAME_PREFIX, MessageKind.TASK_REPLY, False, 0, 0, 0, 0, 2**60),
        struct.pack(FRAME_PREFIX, b"?", False, 0, 0, 0, 0, 0),
        b"a line that f has printed into our socket, for example\n",
        b"\xff" * 64,
        bytes(64),
        b"?" + os.urandom(63),
    ):
        with pytest.raises(FrameError):
            list(FrameDecoder().feed(sent + bytes(2**16)))


def test_changed_repeated_swapped_or_missing_messages_are_refused() -> None:
    seal = MessageAuthenticator(b"key")
    first, second = (encode_frame(message, seal) for message in SENT[3:5])
    wrong = [
        second,
        first + first,
        encode_frame(SENT[3], MessageAuthenticator(b"another key")),
        encode_frame(SENT[3]) + bytes(MAC_BYTES),
    ]
    for place in (5, len(first) - MAC_BYTES - 1, len(first) - MAC_BYTES, len(first) - 1):
        changed = bytearray(first)
        changed[place] ^= 1
        wrong.append(bytes(changed))
    for sent in wrong:
        with pytest.raises(FrameError):
            list(FrameDecoder(MessageAuthenticator(b"key")).feed(sent))
    assert list(FrameDecoder(MessageAuthenticator(b"key")).feed(first + second)) == SENT[3:5]


@pytest.mark.parametrize("cut", [0, 1, 1 << 20, 1 << 23])
def test_a_tag_depends_on_all_bytes_in_any_pieces_and_is_computed_without_copies(cut: int) -> None:
    data = memoryview(bytes(range(256)) * (1 << 15))
    expected = MessageAuthenticator(b"key").compute_tag((data,))
    tracemalloc.start()
    try:
        assert MessageAuthenticator(b"key").compute_tag((data[:cut], data[cut:])) == expected
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
    few = data[: 1 << 10].tobytes()
    assert (
        expected
        != MessageAuthenticator(b"key").compute_tag((few,))
        == MessageAuthenticator(b"key").compute_tag((few[:9], few[9:]))
    )


class Watched(MessageAuthenticator):
    """An authenticator that keeps references to its arguments, like a profiler that inspects stack frames."""

    def compute_tag(self, buffers: Any) -> bytes:
        self.seen = [*getattr(self, "seen", ()), *buffers]
        return super().compute_tag(buffers)


def test_messages_are_received_while_a_profiler_inspects_the_thread() -> None:
    seal, frames = MessageAuthenticator(b"key"), FrameDecoder(Watched(b"key"))
    for message in SENT:
        assert list(frames.feed(encode_frame(message, seal))) == [message]


@pytest.mark.parametrize("flags", [CONTINUATION_FLAG, CONTINUATION_FLAG | MORE_FRAMES_FLAG])
def test_a_frame_that_does_not_continue_its_message_is_refused(flags: int) -> None:
    rest = encode_frame(SENT[3], None, flags)
    for before in (b"", encode_frame(SENT[3]), encode_frame(SENT[4], None, MORE_FRAMES_FLAG)):
        frames = FrameDecoder()
        list(frames.feed(before))
        with pytest.raises(FrameError, match="was not begun"):
            list(frames.feed(rest))
