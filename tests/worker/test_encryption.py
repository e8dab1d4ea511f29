"""Tests of AES-256-GCM with derived keys, compared with RFC 5869 and another interface of the library."""

from __future__ import annotations

import hmac
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.executors.pickling import pickle_worker_code_by_value
from polarmap.worker.encryption import (
    CIPHERTEXT_OVERHEAD_BYTES,
    HKDF_INFO,
    NONCE_BYTES,
    Encryption,
    KeyUnavailableError,
    compute_encrypted_size,
    decrypt,
    decrypt_reply,
    derive_keys,
    encrypt,
    encrypt_if_location_requires,
    encrypt_reply,
    read_encryption_key,
    read_segment,
    write_segments,
)
from polarmap.worker.lithops_tasks import make_lithops_task
from polarmap.worker.locations import DriverLocation, FolderLocation
from polarmap.worker.messages import Message, MessageKind, encode_frame
from polarmap.worker.segments import DamagedError, Segment
from polarmap.worker.task_records import TaskReply

KEY = bytes(range(32))
DATA = bytes(range(256)) * 4
WHOLE = Segment("polarmap/coded/a/run/000001/00002", len(DATA), None, 7)


class Objects(dict[str, bytes]):
    """Stored objects in memory, which are read and written as encrypted segments."""

    def __init__(self, encryption: Encryption) -> None:
        super().__init__()
        self._place = DriverLocation(encryption=encryption)

    def get_part(self, part: Segment) -> Any:
        return read_segment(
            self._place,
            part,
            lambda segment: self[segment.key][segment.offset : segment.offset + segment.size],
        )

    def put_parts(self, key: str, data: Any, size: int) -> list[Segment]:
        return write_segments(self._place, key, data, size, self.__setitem__)


def encrypt_part(encryption: Encryption, part: Segment, data: bytes) -> bytes:
    """Return the stored bytes of a segment."""
    return b"".join(encrypt_if_location_requires(DriverLocation(encryption=encryption), part, data))


def decrypt_part(encryption: Encryption, part: Segment, stored: bytes) -> Any:
    """Return the plaintext of a segment, given its stored bytes."""
    return read_segment(DriverLocation(encryption=encryption), part, lambda _: stored)


def hkdf_sha256(key: bytes, salt: bytes, length: int) -> bytes:
    """Return `length` bytes of key material derived according to RFC 5869, sections 2.2 and 2.3."""
    pseudorandom, block, output = hmac.digest(salt, key, "sha256"), b"", b""
    while len(output) < length:
        block = hmac.digest(pseudorandom, block + HKDF_INFO + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return output[:length]


def decrypted_by_hand(encryption: Encryption, name: str, stored: bytes) -> bytes:
    cipher = algorithms.AES(hkdf_sha256(KEY, encryption.salt, 32))
    decryptor = Cipher(cipher, modes.GCM(stored[:NONCE_BYTES], stored[-16:])).decryptor()
    decryptor.authenticate_additional_data(name.encode())
    return decryptor.update(stored[NONCE_BYTES:-16]) + decryptor.finalize()


@settings(max_examples=30)
@given(data=st.binary(min_size=1, max_size=300), key=st.text(max_size=20), offset=st.integers(0, 2**40))
def test_a_segment_follows_the_standard(data: bytes, key: str, offset: int) -> None:
    encryption, part = Encryption.create(KEY), Segment("k" + key, len(data), None, offset)
    stored = encrypt_part(encryption, part, data)
    assert len(stored) == compute_encrypted_size(len(data)) == len(data) + CIPHERTEXT_OVERHEAD_BYTES
    assert decrypted_by_hand(encryption, f"part {offset} {len(data)} k{key}", stored) == data
    assert decrypt_part(encryption, part, stored) == data


def test_keys_are_derived_by_the_standard() -> None:
    encryption = Encryption.create(KEY)
    cipher, tags = derive_keys(encryption)
    assert cipher + tags + encryption.key_check == hkdf_sha256(KEY, encryption.salt, 72)
    assert encryption.compute_tag(DATA) == hmac.digest(tags, DATA, "sha256")


def test_keys_nonces_and_ciphertexts_never_repeat() -> None:
    encryptions = [Encryption.create(KEY) for _ in range(100)]
    assert len({derive_keys(encryption)[0] for encryption in encryptions}) == 100
    stored = {encrypt(encryptions[0], "x", DATA) for _ in range(2_000)}
    assert (
        len({data[:NONCE_BYTES] for data in stored}) == len({data[NONCE_BYTES:] for data in stored}) == 2_000
    )


def test_a_change_of_any_byte_is_detected() -> None:
    encryption = Encryption.create(KEY)
    stored = encrypt_part(encryption, WHOLE, DATA)
    for place in {
        *range(NONCE_BYTES + 3),
        *range(40, len(stored), 97),
        *range(len(stored) - 17, len(stored)),
    }:
        changed = bytearray(stored)
        changed[place] ^= 1
        with pytest.raises(DamagedError, match="00002 is not what was encrypted"):
            decrypt_part(encryption, WHOLE, bytes(changed))


def test_a_segment_is_valid_only_complete_and_in_its_place() -> None:
    encryption = Encryption.create(KEY)
    stored = encrypt_part(encryption, WHOLE, DATA)
    others = [
        (encryption, WHOLE._replace(key="polarmap/coded/a/run/000001/00003")),  # another block
        (encryption, WHOLE._replace(key="polarmap/coded/a/run/000002/00002")),  # another stripe
        (encryption, WHOLE._replace(key="polarmap/coded/a/later/000001/00002")),  # another run
        (encryption, WHOLE._replace(key="polarmap/coded/b/run/000001/00002")),  # another array
        (encryption, WHOLE._replace(offset=8)),
        (Encryption.create(KEY), WHOLE),
    ]
    for where, part in others:
        with pytest.raises(DamagedError, match="it has been changed or replaced"):
            decrypt_part(where, part, stored)
    for cut in (stored[:-1], stored + b"x", b""):
        with pytest.raises(DamagedError, match=r"00002 has \d+ of 1052 bytes"):
            decrypt_part(encryption, WHOLE, cut)


def test_empty_data_are_stored_as_nothing() -> None:
    nothing = WHOLE._replace(size=0)
    assert encrypt_part(Encryption.create(KEY), nothing, b"") == b""
    assert decrypt_part(Encryption.create(KEY), nothing, b"") == b""
    assert decrypt_part(Encryption.create(KEY), Segment("", 3), b"") == b"\0\0\0"
    objects = Objects(Encryption.create(KEY))
    assert objects.put_parts("x", b"", 8) == []
    assert not objects


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_is_read_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POLARMAP_TEST_KEY", KEY.hex().upper() + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text(KEY.hex() + "\n")
    places = ("env:POLARMAP_TEST_KEY", f"file:{tmp_path}/key", "file:~/key")
    assert [read_encryption_key(place) for place in places] == [KEY] * 3
    assert read_encryption_key(KEY) is KEY


def test_invalid_keys_are_refused(tmp_path: Path) -> None:
    for number, (text, message) in enumerate(
        [
            ("", "holds 0 characters, not the 64 hexadecimal digits"),
            (KEY.hex()[:-2], "holds 62 characters"),
            ("x" * 64, "holds 64 characters"),
            ("ü" * 64, "cannot be read here: 'ascii' codec"),
        ]
    ):
        (tmp_path / f"{number}").write_text(text, encoding="utf-8")
        with pytest.raises(KeyUnavailableError, match=message):
            read_encryption_key(f"file:{tmp_path}/{number}")
    with pytest.raises(KeyUnavailableError, match=r"cannot be read here: .*No such file"):
        read_encryption_key(f"file:{tmp_path}/key")
    with pytest.raises(
        KeyUnavailableError, match="'NOT_SET_ANYWHERE' of key='env:NOT_SET_ANYWHERE' is not set"
    ):
        read_encryption_key("env:NOT_SET_ANYWHERE")


def test_a_wrong_key_is_detected_before_data_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARMAP_TEST_KEY", KEY.hex())
    encryption = Encryption.create("env:POLARMAP_TEST_KEY")
    stored = encrypt(encryption, "x", DATA)
    monkeypatch.setenv("POLARMAP_TEST_KEY", os.urandom(32).hex())
    with pytest.raises(KeyUnavailableError, match="'env:POLARMAP_TEST_KEY': this is not the key"):
        decrypt(encryption, "x", stored)
    with pytest.raises(KeyUnavailableError, match="the 32 bytes that were passed: this is not"):
        derive_keys(encryption._replace(key=bytes(32)))


def test_keys_are_not_shown_in_messages() -> None:
    encryption = Encryption.create(KEY)
    shown = f"{encryption} {encryption!r} {FolderLocation('/', encryption=encryption)}"
    assert repr(KEY)[2:10] not in shown
    assert "32 bytes" in shown


# --- tasks of maps with a key ---------------------------------------------------------------------

ENCRYPTION = Encryption.create(KEY)
REPLY = Message(MessageKind.TASK_REPLY, (7, 3, 1), b"a header", b"the secret data")


def test_each_segment_of_an_object_can_be_read_separately() -> None:
    encryption = Encryption.create(KEY)
    for size in (1, 7, 400, 1_023, 1_024, 1_025):
        objects = Objects(encryption)
        parts, stored = objects.put_parts("x", memoryview(DATA), size), objects["x"]
        assert [part.size for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert b"".join(map(objects.get_part, parts)) == DATA
        assert parts[-1].offset + parts[-1].size + 28 == len(stored)
        pieces = [stored[part.offset : part.offset + part.size + 28] for part in parts]
        assert [part.crc32 for part in parts] == [zlib.crc32(piece) for piece in pieces]


def test_the_checksum_distinguishes_corruption_from_forgery() -> None:
    # Accidental corruption does not produce a matching checksum.
    objects = Objects(Encryption.create(KEY))
    [part] = objects.put_parts("x", DATA, len(DATA))
    objects["x"] = b"y" + objects["x"][1:]
    for segment, kind in ((part, "corrupt"), (part._replace(crc32=zlib.crc32(objects["x"])), "forged")):
        with pytest.raises(DamagedError, match="x is not what was encrypted") as caught:
            objects.get_part(segment)
        assert caught.value.kind == kind


def test_a_task_without_a_key_needs_no_cipher() -> None:
    with pickle_worker_code_by_value():
        sent = cloudpickle.dumps(make_lithops_task(len, ("array",)))
    # The task is loaded in another process, because cloudpickle would replace methods of this process's
    # classes.
    load = (
        "import pickle, sys; sys.modules.update(dict.fromkeys(['polarmap', 'cryptography']))\n"
        "assert callable(pickle.load(sys.stdin.buffer))"
    )
    subprocess.run([sys.executable, "-c", load], input=sent, check=True, timeout=60)


@pytest.mark.parametrize("reply", [REPLY, REPLY._replace(data=b""), REPLY._replace(header=b"")])
def test_replies_are_valid_only_for_their_attempt(reply: Message) -> None:
    sent = encrypt_reply(reply, tuple(ENCRYPTION))
    assert (sent.kind, sent.attempt_key, sent.header) == (MessageKind.TASK_REPLY, (7, 3, 1), b"")
    assert b"secret" not in sent.data
    assert decrypt_reply(3, 1, sent.data, ENCRYPTION) == (reply.header, reply.data)
    changed = bytes(sent.data[:-1]) + bytes([sent.data[-1] ^ 1])
    for task, attempt, data in (
        (4, 1, sent.data),
        (3, 0, sent.data),
        (3, 1, changed),
        (3, 1, sent.data[:-1]),
    ):
        with pytest.raises(DamagedError, match="is not what was encrypted"):
            decrypt_reply(task, attempt, data, ENCRYPTION)
    with pytest.raises(DamagedError):  # Each map has a separate key.
        decrypt_reply(3, 1, sent.data, Encryption.create(KEY))


class Bomb:
    """An object that raises an exception when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_only_replies_encrypted_for_the_map_are_unpickled() -> None:
    bomb = pickle.dumps(Bomb())
    forged = encode_frame(Message(MessageKind.TASK_REPLY, (7, 3, 1), bomb, b"xyz"))
    for data in (bomb, b"e" + bomb, b"e" + forged, forged, b"w" + bomb, b"", b"e"):
        with pytest.raises((DamagedError, ValueError)):
            decrypt_reply(3, 1, data, ENCRYPTION)


def test_a_worker_without_the_key_replies_only_with_that_error() -> None:
    sent = encrypt_reply(REPLY, tuple(ENCRYPTION._replace(key="env:NOT_SET_ANYWHERE")))
    assert b"secret" not in sent.data
    reply, data = decrypt_reply(3, 1, sent.data, ENCRYPTION)
    assert isinstance(reply, TaskReply)
    assert (reply[1:], data) == (TaskReply(None, 0.0)[1:], b"")
    assert reply.error is not None
    assert reply.error.type == "KeyUnavailableError"
    # The driver recreates the exception from its text.
    assert type(reply.error.exception) is KeyUnavailableError
