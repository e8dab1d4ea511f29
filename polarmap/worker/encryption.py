"""Encryption of what lies in storage, and of replies: AES-256-GCM, under a key that never lies there.

Runs on workers too: imports numpy at most, and `cryptography` once there is something to encrypt.
"""

from __future__ import annotations

import hmac
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarmap.worker.messages import Error, Reply, describe
from polarmap.worker.parts import DamagedError, Part, Place, Reader, verified
from polarmap.worker.stream import Frames, Message, frame

KEY_BYTES = SALT_BYTES = 32
CHECK_BYTES = 8
# Nonces are 96 random bits, and each array and each map has a cipher key of its own, which HKDF derives of
# the caller's key and a salt of 256 random bits. Two of q messages under one cipher key have the same nonce
# with probability below q^2 / 2^97: 2^-33 at the 2^32 messages that NIST SP 800-38D allows. An array of so
# many parts would have a manifest of 300 GB. That two salts are the same is out of the question.
NONCE_BYTES = 12
OVERHEAD_BYTES = NONCE_BYTES + 16  # that the nonce and the tag of AES-GCM add to a message
MESSAGE_BYTES = (1 << 31) - 1  # that `cryptography` encrypts at once
MAKE_ONE = "python -c 'import secrets; print(secrets.token_hex(32))'"
PURPOSE = b"polarmap encryption 1"
WITH_KEY, WITHOUT_KEY = b"e", b"w"  # how the data of a reply begin

Fields = tuple[Any, ...]  # of an `Encryption`, or that itself


class KeyUnavailableError(Exception):
    """The key is not where it is said to be, or is another one."""


class Encryption(NamedTuple):
    """How the parts of one array, or all of one map, are encrypted; it travels as a plain tuple.

    key : where the key is found, "env:NAME" or "file:PATH"; or the key itself, for this machine only.
    salt : random: what the keys in use are derived of, besides the key.
    check : by which another key is found out.
    """

    key: str | bytes
    salt: bytes
    check: bytes

    def __repr__(self) -> str:
        return f"Encryption(key={self.key if isinstance(self.key, str) else '32 bytes'!r})"

    @classmethod
    def new(cls, key: str | bytes) -> Encryption:
        """How to encrypt a new array or map by `key`; KeyUnavailableError if there is no such key."""
        salt = os.urandom(SALT_BYTES)
        return cls(key, salt, derived(read_key(key), salt)[2])

    def tag(self, data: bytes) -> bytes:
        """The HMAC-SHA256 of data that everybody may read, and nobody change."""
        return hmac.digest(keys_of(self)[1], data, "sha256")


def keys_of(encryption: Fields) -> tuple[bytes, bytes]:
    """The keys of cipher and tags; KeyUnavailableError if the key is not there, or is another."""
    key, salt, known = encryption
    cipher, tags, check = derived(read_key(key), salt)
    if not hmac.compare_digest(check, known):
        where = "the 32 bytes that were passed" if isinstance(key, bytes) else repr(key)
        raise KeyUnavailableError(f"{where}: this is not the key that was used to encrypt")
    return cipher, tags


def encrypt(encryption: Fields, name: str, data: Any) -> bytes:
    """Nonce, ciphertext and tag of `data`, which can be decrypted under the same name only."""
    aes_gcm, _ = ciphers()
    nonce = os.urandom(NONCE_BYTES)
    return b"".join((nonce, aes_gcm(keys_of(encryption)[0]).encrypt(nonce, data, name.encode())))


def decrypt(encryption: Fields, name: str, data: Any) -> bytes:
    """The inverse; DamagedError for what was not encrypted with this key, or under another name."""
    aes_gcm, _ = ciphers()
    cipher, view = aes_gcm(keys_of(encryption)[0]), memoryview(data)
    try:
        plain: bytes = cipher.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], name.encode())
    except Exception as error:  # too short, or a wrong tag
        raise DamagedError("is not what was encrypted: somebody has changed or replaced it") from error
    return plain


def derived(key: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    """The keys of cipher and tags, and what tells keys apart but nothing of them: HKDF (RFC 5869)."""
    _, hkdf = ciphers()
    found: bytes = hkdf(2 * KEY_BYTES + CHECK_BYTES, salt).derive(key)
    return found[:KEY_BYTES], found[KEY_BYTES:-CHECK_BYTES], found[-CHECK_BYTES:]


def read_key(key: str | bytes) -> bytes:
    """The 32 bytes of a key; KeyUnavailableError if they are not where it says."""
    if isinstance(key, bytes):
        return key
    kind, _, where = key.partition(":")
    if kind == "env":
        text = os.environ.get(where)
        if text is None:
            raise KeyUnavailableError(f"the environment variable {where!r} of key='{key}' is not set here")
    else:
        try:
            with open(os.path.expanduser(where), encoding="ascii") as file:
                text = file.read(1000)
        except (OSError, ValueError) as error:
            raise KeyUnavailableError(f"the file of key='{key}' cannot be read here: {error}") from None
    digits = text.strip()
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        found = b""
    if len(found) != KEY_BYTES:
        raise KeyUnavailableError(
            f"key='{key}' holds {len(digits)} characters, not the {2 * KEY_BYTES} hexadecimal digits of a "
            f"key, as this makes them: {MAKE_ONE}"
        )
    return found


def ciphers() -> tuple[Callable[[bytes], Any], Callable[[int, bytes], Any]]:
    """AES-GCM by its key, and HKDF-SHA256 by its length and salt."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise KeyUnavailableError("key= needs the package cryptography, which is missing here") from None
    return AESGCM, lambda length, salt: HKDF(SHA256(), length, salt, PURPOSE)


def part_name(part: Part) -> str:
    """What a part is encrypted as: keys are never used twice, and tell array, run, stripe and block."""
    return f"part {part.offset} {part.size} {part.key}"


def encrypted_size(size: int) -> int:
    """Bytes in storage of a part of so many bytes; of nothing, nothing."""
    return size + OVERHEAD_BYTES if size else 0


def as_stored(place: Place, part: Part, *runs: Any) -> Sequence[Any]:
    """The bytes of a part, these in a row, as they lie there: encrypted where its place says so."""
    if place.encryption is None:
        return runs
    return [encrypt(place.encryption, part_name(part), b"".join(runs))] if part.size else []


def get_part(place: Place, part: Part, read: Reader) -> Any:
    """Return the bytes of a part, decrypted if its place says so; DamagedError if they are not what was put.

    read : returns stored bytes, fewer if the object is shorter; DamagedError if there is none.
    """
    # A tag says more than a CRC-32, which is compared only to tell damage from forgery.
    if not (part.key and part.size):
        return bytes(part.size)
    if place.encryption is None:
        return verified(part, read(part))
    lying = part._replace(size=encrypted_size(part.size), crc32=None)
    stored = verified(lying, read(lying))
    try:
        return decrypt(place.encryption, part_name(part), stored)
    except DamagedError as error:
        kind = "forged" if part.crc32 in (None, zlib.crc32(stored)) else "corrupt"
        raise DamagedError(f"{part.key} {error}", kind) from error


def put_parts(place: Place, key: str, data: Any, size: int, write: Callable[[str, Any], None]) -> list[Part]:
    """Store bytes as an object; its parts, of so many bytes each but the last, encrypted one by one.

    write : an object, by its key and its bytes.
    """
    parts, pieces, offset = list[Part](), list[Any](), 0
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        part = Part(key, len(piece), None, offset)
        pieces += as_stored(place, part, piece)
        parts.append(part._replace(crc32=zlib.crc32(pieces[-1])))
        offset += len(pieces[-1])
    if parts:
        write(key, data if place.encryption is None else b"".join(pieces))
    return parts


def encrypted_reply(message: Message, encryption: Fields) -> Message:
    """Return a reply of which only kind and attempt can be seen, or one that tells why that is impossible."""
    try:
        data = WITH_KEY + encrypt(encryption, _name(*message.order[1:]), frame(message))
    except Exception as error:
        data = WITHOUT_KEY + json.dumps(describe(error)[:3]).encode()
    return message._replace(header=b"", data=data)


def decrypted_reply(task: int, attempt: int, data: Any, encryption: Fields) -> tuple[Any, Any]:
    """Header and data of a reply; DamagedError for what the worker of this attempt has not sent.

    Nothing is unpickled.
    """
    if data[:1] != WITHOUT_KEY:
        [message] = Frames().of(decrypt(encryption, _name(task, attempt), data[1:]))
        return message.header, message.data
    kind, text, trace = json.loads(bytes(data[1:]))
    ours = KeyUnavailableError(str(text)) if kind == KeyUnavailableError.__name__ else None
    return Reply(Error(str(kind), str(text), str(trace), ours), 0.0), b""


def _name(task: int, attempt: int) -> str:
    """What tells this attempt of its map, which has a key of its own, from the others."""
    return f"reply {task}-{attempt}"
