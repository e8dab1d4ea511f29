"""Messages in a stream of bytes: whole, in any pieces, or none."""

from __future__ import annotations

import os
import struct

import pytest

from polarmap.worker.frames import END, LEFT, PREFIX, TAG_BYTES, FrameError, Frames, Message, Seal, frame

SENT = [Message(END, (number, 2 * number, -1), bytes(number), bytes(3 * number)) for number in range(20)]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_messages_may_come_in_any_pieces(is_sealed: bool) -> None:
    ours, theirs = (Seal(b"key") if is_sealed else None for _ in range(2))
    frames = Frames(theirs)
    for step in (1, 7, 10_000):
        sent = b"".join(frame(message, ours) for message in SENT)
        found = [one for start in range(0, len(sent), step) for one in frames.of(sent[start : start + step])]
        assert found == SENT


def test_a_file_is_told_as_such() -> None:
    [message] = Frames().of(frame(Message(LEFT, data=b"0/name", is_file=True)))
    assert (message.kind, message.order, message.is_file) == (LEFT, (-1, -1, -1), True)


def test_what_is_left_is_writable() -> None:
    [message] = Frames().of(frame(SENT[2]))
    message.data[0] = 1


def test_bytes_that_are_no_messages_are_refused() -> None:
    for sent in (
        struct.pack(PREFIX, END, False, 0, 0, 0, 2**40, 0),
        struct.pack(PREFIX, END, False, 0, 0, 0, 0, 2**60),
        struct.pack(PREFIX, b"?", False, 0, 0, 0, 0, 0),
        b"a line that f has printed into our socket, for example\n",
        b"\xff" * 64,
        bytes(64),
        b"?" + os.urandom(63),
    ):
        with pytest.raises(FrameError):
            list(Frames().of(sent + bytes(2**16)))


def test_a_message_with_another_tag_is_refused() -> None:
    sent = frame(SENT[3], Seal(b"key"))
    for place in (5, len(sent) - TAG_BYTES - 1, len(sent) - TAG_BYTES, len(sent) - 1):
        changed = bytearray(sent)
        changed[place] ^= 1
        with pytest.raises(FrameError):
            list(Frames(Seal(b"key")).of(changed))
    for wrong in (b"", Seal(b"key").tag([b"x"])[:-1]):
        with pytest.raises(FrameError):
            Seal(b"key").verify([b"x"], wrong)


# --- tags ------------------------------------------------------------------------------------------


def sealed(*messages: bytes) -> list[tuple[bytes, bytes]]:
    seal = Seal(b"key")
    return [(message, seal.tag([message])) for message in messages]


def test_messages_that_are_repeated_swapped_or_left_out_are_found() -> None:
    messages = sealed(b"same", b"same", b"other")
    for good, wrong in (([0], 0), ([], 1), ([0], 2), ([0, 1], 1), ([0, 1, 2], 0)):
        seal = Seal(b"key")
        for number in good:
            seal.verify([messages[number][0]], messages[number][1])
        with pytest.raises(FrameError):
            seal.verify([messages[wrong][0]], messages[wrong][1])
