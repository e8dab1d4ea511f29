"""Encrypt segments and replies with AES-256-GCM, under a key that is never stored.

Runs on workers too: imports numpy at most, and `cryptography` once there is something to encrypt.
"""

from __future__ import annotations

import hmac
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from polarmap.worker.locations import Location
from polarmap.worker.messages import FrameDecoder, Message, encode_frame
from polarmap.worker.segments import DamagedError, Segment, SegmentReader, check_segment_integrity
from polarmap.worker.task_records import ErrorInfo, TaskReply, describe_error

KEY_BYTES = SALT_BYTES = 32
KEY_CHECK_BYTES = 8
# Nonces are 96 random bits, and each array and each map has a cipher key of its own, which HKDF derives of
# the caller's key and a salt of 256 random bits. Two of q messages under one cipher key have the same nonce
# with probability below q^2 / 2^97: 2^-33 at the 2^32 messages that NIST SP 800-38D allows. An array of so
# many parts would have a manifest of 300 GB. That two salts are the same is out of the question.
NONCE_BYTES = 12
CIPHERTEXT_OVERHEAD_BYTES = NONCE_BYTES + 16  # that the nonce and the tag of AES-GCM add to a message
MAX_PLAINTEXT_BYTES = (1 << 31) - 1  # that `cryptography` encrypts at once
KEYGEN_COMMAND = "python -c 'import secrets; print(secrets.token_hex(32))'"
HKDF_INFO = b"polarmap encryption 1"
ENCRYPTED_REPLY, UNENCRYPTED_ERROR = b"e", b"w"  # how the data of a reply begin

EncryptionFields = tuple[Any, ...]  # of an `Encryption`, or that itself


class KeyUnavailableError(Exception):
    """The key cannot be read, or is not the key that was used to encrypt."""


class Encryption(NamedTuple):
    """Parameters by which the segments of one array, or the blocks and replies of one job, are encrypted.

    key : where the key is found, "env:NAME" or "file:PATH"; or the key itself, for this machine only.
    salt : random: what the keys in use are derived of, besides the key.
    key_check : by which another key is found out.
    """

    key: str | bytes
    salt: bytes
    key_check: bytes

    def __repr__(self) -> str:
        return f"Encryption(key={self.key if isinstance(self.key, str) else '32 bytes'!r})"

    @classmethod
    def create(cls, key: str | bytes) -> Encryption:
        """Return parameters for a new array or job; KeyUnavailableError if the key cannot be read."""
        salt = os.urandom(SALT_BYTES)
        return cls(key, salt, derive_with_hkdf(read_encryption_key(key), salt)[2])

    def compute_tag(self, data: bytes) -> bytes:
        """Return the HMAC-SHA256 of data that is stored as it is and must not be changed."""
        return hmac.digest(derive_keys(self)[1], data, "sha256")


def derive_keys(encryption: EncryptionFields) -> tuple[bytes, bytes]:
    """Return the keys of cipher and tags; KeyUnavailableError if the key is missing or a different one."""
    key, salt, expected_check = encryption
    cipher_key, tag_key, actual_check = derive_with_hkdf(read_encryption_key(key), salt)
    if not hmac.compare_digest(actual_check, expected_check):
        key_source = "the 32 bytes that were passed" if isinstance(key, bytes) else repr(key)
        raise KeyUnavailableError(f"{key_source}: this is not the key that was used to encrypt")
    return cipher_key, tag_key


def encrypt(encryption: EncryptionFields, associated_data: str, data: Any) -> bytes:
    """Return nonce, ciphertext and tag of `data`, to be decrypted with the same associated data only."""
    aes_gcm, _ = load_ciphers()
    nonce = os.urandom(NONCE_BYTES)
    cipher = aes_gcm(derive_keys(encryption)[0])
    return b"".join((nonce, cipher.encrypt(nonce, data, associated_data.encode())))


def decrypt(encryption: EncryptionFields, associated_data: str, data: Any) -> bytes:
    """Return the plaintext; DamagedError if key or associated data differ, or if the data were changed."""
    aes_gcm, _ = load_ciphers()
    cipher, view = aes_gcm(derive_keys(encryption)[0]), memoryview(data)
    try:
        plaintext: bytes = cipher.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], associated_data.encode())
    except Exception as error:  # too short, or a wrong tag
        raise DamagedError("is not what was encrypted: somebody has changed or replaced it") from error
    return plaintext


def derive_with_hkdf(key: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the keys of cipher and tags, and bytes that identify the key without revealing it (RFC 5869)."""
    _, hkdf = load_ciphers()
    key_material: bytes = hkdf(2 * KEY_BYTES + KEY_CHECK_BYTES, salt).derive(key)
    return key_material[:KEY_BYTES], key_material[KEY_BYTES:-KEY_CHECK_BYTES], key_material[-KEY_CHECK_BYTES:]


def read_encryption_key(key_spec: str | bytes) -> bytes:
    """Return the 32 bytes of a key; KeyUnavailableError if they are not where `key_spec` says."""
    if isinstance(key_spec, bytes):
        return key_spec
    source_kind, _, variable_or_path = key_spec.partition(":")
    if source_kind == "env":
        text = os.environ.get(variable_or_path)
        if text is None:
            raise KeyUnavailableError(
                f"the environment variable {variable_or_path!r} of key='{key_spec}' is not set here"
            )
    else:
        try:
            with open(os.path.expanduser(variable_or_path), encoding="ascii") as file:
                text = file.read(1000)
        except (OSError, ValueError) as error:
            raise KeyUnavailableError(f"the file of key='{key_spec}' cannot be read here: {error}") from None
    digits = text.strip()
    try:
        key_bytes = bytes.fromhex(digits)
    except ValueError:
        key_bytes = b""
    if len(key_bytes) != KEY_BYTES:
        raise KeyUnavailableError(
            f"key='{key_spec}' holds {len(digits)} characters, not the {2 * KEY_BYTES} hexadecimal digits of "
            f"a key, as this makes them: {KEYGEN_COMMAND}"
        )
    return key_bytes


def load_ciphers() -> tuple[Callable[[bytes], Any], Callable[[int, bytes], Any]]:
    """Return constructors of AES-GCM, which takes a key, and of HKDF-SHA256, which takes length and salt."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise KeyUnavailableError("key= needs the package cryptography, which is missing here") from None
    return AESGCM, lambda length, salt: HKDF(SHA256(), length, salt, HKDF_INFO)


def make_segment_associated_data(segment: Segment) -> str:
    """Return the associated data of a segment: object keys are never used twice, each names one block."""
    return f"part {segment.offset} {segment.size} {segment.key}"


def compute_encrypted_size(plaintext_size: int) -> int:
    """Return the stored size of a segment of `plaintext_size` bytes; an empty segment is not stored."""
    return plaintext_size + CIPHERTEXT_OVERHEAD_BYTES if plaintext_size else 0


def encrypt_if_location_requires(location: Location, segment: Segment, *buffers: Any) -> Sequence[Any]:
    """Return the buffers to store for a segment: encrypted if its location says so, else as they are."""
    if location.encryption is None:
        return buffers
    if not segment.size:
        return []
    return [encrypt(location.encryption, make_segment_associated_data(segment), b"".join(buffers))]


def read_segment(location: Location, segment: Segment, read_raw: SegmentReader) -> Any:
    """Return the bytes of a segment, decrypted if its location says so.

    Raises DamagedError if they are not what was stored.

    read_raw : returns stored bytes, fewer if the object is shorter; raises DamagedError if there is none.
    """
    # The tag verifies encrypted bytes. The CRC-32 only distinguishes damage from forgery.
    if not (segment.key and segment.size):
        return bytes(segment.size)
    if location.encryption is None:
        return check_segment_integrity(segment, read_raw(segment))
    stored_segment = segment._replace(size=compute_encrypted_size(segment.size), crc32=None)
    stored_bytes = check_segment_integrity(stored_segment, read_raw(stored_segment))
    try:
        return decrypt(location.encryption, make_segment_associated_data(segment), stored_bytes)
    except DamagedError as error:
        damage_kind = "forged" if segment.crc32 in (None, zlib.crc32(stored_bytes)) else "corrupt"
        raise DamagedError(f"{segment.key} {error}", damage_kind) from error


def write_segments(
    location: Location, key: str, data: Any, segment_bytes: int, write_object: Callable[[str, Any], None]
) -> list[Segment]:
    """Store bytes as an object, and return its segments, each of which is encrypted by itself.

    segment_bytes : size of each segment but the last.
    write_object : called with the key and the bytes of the object.
    """
    segments, buffers, offset = list[Segment](), list[Any](), 0
    for start in range(0, len(data), segment_bytes):
        chunk = data[start : start + segment_bytes]
        segment = Segment(key, len(chunk), None, offset)
        buffers += encrypt_if_location_requires(location, segment, chunk)
        segments.append(segment._replace(crc32=zlib.crc32(buffers[-1])))
        offset += len(buffers[-1])
    if segments:
        write_object(key, data if location.encryption is None else b"".join(buffers))
    return segments


def encrypt_reply(message: Message, encryption: EncryptionFields) -> Message:
    """Return a reply of which only kind and attempt are readable, or an error that cannot be encrypted."""
    try:
        associated_data = _make_reply_associated_data(*message.attempt_key[1:])
        data = ENCRYPTED_REPLY + encrypt(encryption, associated_data, encode_frame(message))
    except Exception as error:
        data = UNENCRYPTED_ERROR + json.dumps(describe_error(error)[:3]).encode()
    return message._replace(header=b"", data=data)


def decrypt_reply(task: int, attempt: int, data: Any, encryption: EncryptionFields) -> tuple[Any, Any]:
    """Return header and data of a reply; DamagedError if the worker of this attempt has not sent it.

    Nothing is unpickled.
    """
    if data[:1] != UNENCRYPTED_ERROR:
        frame = decrypt(encryption, _make_reply_associated_data(task, attempt), data[1:])
        [message] = FrameDecoder().feed(frame)
        return message.header, message.data
    error_type, text, traceback_text = json.loads(bytes(data[1:]))
    exception = KeyUnavailableError(str(text)) if error_type == KeyUnavailableError.__name__ else None
    return TaskReply(ErrorInfo(str(error_type), str(text), str(traceback_text), exception), 0.0), b""


def _make_reply_associated_data(task: int, attempt: int) -> str:
    """Return the associated data of a reply: each job has a cipher key of its own."""
    return f"reply {task}-{attempt}"
