"""AES-256-GCM under derived keys: compared with RFC 5869 by hand and with the library's other interface."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.worker.encryption import (
    NONCE_BYTES,
    OVERHEAD_BYTES,
    PURPOSE,
    Encryption,
    KeyUnavailableError,
    decrypt_part,
    encrypt_part,
    encrypted_size,
    read_decrypted,
    read_key,
)
from polarmap.worker.parts import DamagedError, Part, Place

KEY = bytes(range(32))
DATA = bytes(range(256)) * 4
PART = Part("polarmap/coded/a/run/000001/00002", len(DATA), None, 7)


def hkdf_sha256(key: bytes, salt: bytes, length: int) -> bytes:
    """RFC 5869, sections 2.2 and 2.3."""
    pseudorandom, block, output = hmac.digest(salt, key, "sha256"), b"", b""
    while len(output) < length:
        block = hmac.digest(pseudorandom, block + PURPOSE + bytes([len(output) // 32 + 1]), "sha256")
        output += block
    return output[:length]


def decrypted_by_hand(encryption: Encryption, name: str, stored: bytes) -> bytes:
    cipher = algorithms.AES(hkdf_sha256(KEY, encryption.salt, 32))
    decryptor = Cipher(cipher, modes.GCM(stored[:NONCE_BYTES], stored[-16:])).decryptor()
    decryptor.authenticate_additional_data(name.encode())
    return decryptor.update(stored[NONCE_BYTES:-16]) + decryptor.finalize()


@settings(max_examples=30)
@given(data=st.binary(min_size=1, max_size=300), key=st.text(max_size=20), offset=st.integers(0, 2**40))
def test_a_part_is_what_the_standard_says(data: bytes, key: str, offset: int) -> None:
    encryption, part = Encryption.new(KEY), Part("k" + key, len(data), None, offset)
    stored = encrypt_part(encryption, part, data)
    assert len(stored) == encrypted_size(len(data)) == len(data) + OVERHEAD_BYTES
    assert decrypted_by_hand(encryption, f"part {offset} {len(data)} k{key}", stored) == data
    assert decrypt_part(encryption, part, stored) == data


def test_keys_are_derived_as_the_standard_says() -> None:
    encryption = Encryption.new(KEY)
    cipher, tags = encryption.keys()
    assert cipher + tags + encryption.check == hkdf_sha256(KEY, encryption.salt, 72)
    assert encryption.tag(DATA) == hmac.digest(tags, DATA, "sha256")


def test_nothing_is_used_twice() -> None:
    encryptions = [Encryption.new(KEY) for _ in range(100)]
    assert len({one.keys()[0] for one in encryptions}) == 100
    stored = {encryptions[0].encrypt("x", DATA) for _ in range(2_000)}
    assert len({one[:NONCE_BYTES] for one in stored}) == len({one[NONCE_BYTES:] for one in stored}) == 2_000


def test_every_byte_counts() -> None:
    encryption = Encryption.new(KEY)
    stored = encrypt_part(encryption, PART, DATA)
    for place in {
        *range(NONCE_BYTES + 3),
        *range(40, len(stored), 97),
        *range(len(stored) - 17, len(stored)),
    }:
        changed = bytearray(stored)
        changed[place] ^= 1
        with pytest.raises(DamagedError, match="00002 is not what was encrypted"):
            decrypt_part(encryption, PART, bytes(changed))


def test_a_part_is_good_in_its_place_in_its_array_and_whole_only() -> None:
    encryption = Encryption.new(KEY)
    stored = encrypt_part(encryption, PART, DATA)
    others = [
        (encryption, PART._replace(key="polarmap/coded/a/run/000001/00003")),  # another block
        (encryption, PART._replace(key="polarmap/coded/a/run/000002/00002")),  # another stripe
        (encryption, PART._replace(key="polarmap/coded/a/later/000001/00002")),  # another run
        (encryption, PART._replace(key="polarmap/coded/b/run/000001/00002")),  # another array
        (encryption, PART._replace(offset=8)),
        (Encryption.new(KEY), PART),
    ]
    for where, part in others:
        with pytest.raises(DamagedError, match="somebody has changed or replaced it"):
            decrypt_part(where, part, stored)
    for cut in (stored[:-1], stored + b"x", b""):
        with pytest.raises(DamagedError, match=r"00002 has \d+ of 1052 bytes"):
            decrypt_part(encryption, PART, cut)


def test_of_nothing_nothing_is_stored() -> None:
    nothing = PART._replace(size=0)
    assert encrypt_part(Encryption.new(KEY), nothing, b"") == b""
    assert decrypt_part(Encryption.new(KEY), nothing, b"") == b""
    place = Place("folder", "/", encryption=Encryption.new(KEY))
    assert read_decrypted(place, Part("", 3), lambda place, part: b"") == b"\0\0\0"


def test_parts_are_read_as_they_are_stored() -> None:
    encryption = Encryption.new(KEY)
    stored = b"-" * 7 + encrypt_part(encryption, PART, DATA)

    def read(place: Place, part: Part) -> bytes:
        assert place == Place("bucket", "b")
        return stored[part.offset : part.offset + part.size]

    fields = tuple(encryption)  # as they travel
    assert read_decrypted(Place("bucket", "b", encryption=fields), PART, read) == DATA


# --- keys ----------------------------------------------------------------------------------------


def test_a_key_lies_in_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLARMAP_TEST_KEY", KEY.hex().upper() + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text(KEY.hex() + "\n")
    places = ("env:POLARMAP_TEST_KEY", f"file:{tmp_path}/key", "file:~/key")
    assert [read_key(place) for place in places] == [KEY] * 3
    assert read_key(KEY) is KEY


def test_what_is_no_key(tmp_path: Path) -> None:
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
            read_key(f"file:{tmp_path}/{number}")
    with pytest.raises(KeyUnavailableError, match=r"cannot be read here: .*No such file"):
        read_key(f"file:{tmp_path}/key")
    with pytest.raises(
        KeyUnavailableError, match="'NOT_SET_ANYWHERE' of key='env:NOT_SET_ANYWHERE' is not set"
    ):
        read_key("env:NOT_SET_ANYWHERE")


def test_another_key_is_found_out_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARMAP_TEST_KEY", KEY.hex())
    encryption = Encryption.new("env:POLARMAP_TEST_KEY")
    stored = encryption.encrypt("x", DATA)
    monkeypatch.setenv("POLARMAP_TEST_KEY", os.urandom(32).hex())
    with pytest.raises(KeyUnavailableError, match="'env:POLARMAP_TEST_KEY': this is not the key"):
        encryption.decrypt("x", stored)
    with pytest.raises(KeyUnavailableError, match="the 32 bytes that were passed: this is not"):
        encryption._replace(key=bytes(32)).keys()


def test_nobody_prints_a_key() -> None:
    encryption = Encryption.new(KEY)
    shown = f"{encryption} {encryption!r} {Place('folder', '/', encryption=encryption)}"
    assert repr(KEY)[2:10] not in shown
    assert "32 bytes" in shown
