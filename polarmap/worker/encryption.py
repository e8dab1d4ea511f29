"""Encrypt segments and replies with AES-256-GCM, under a key that is never stored.

    key (32 bytes) + random salt of an array or job  -- HKDF-SHA256 -->  cipher key, tag key, check bytes
    segment or reply  -- AES-256-GCM, random nonce -->  nonce, ciphertext, tag

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
KEY_CHECK_BYTES = 8  # size of the value by which a wrong key is recognized
# Nonces are 96 random bits. HKDF derives a separate cipher key for each array and each job from the user's
# key and a salt of 256 random bits. Among q messages under one cipher key, two have the same nonce with a
# probability below q^2 / 2^97: 2^-33 for the 2^32 messages that NIST SP 800-38D allows. The manifest of an
# array with that many segments would take 300 GB. The probability of equal salts is negligible.
NONCE_BYTES = 12
CIPHERTEXT_OVERHEAD_BYTES = NONCE_BYTES + 16  # size of nonce and tag, which are added to the data
MAX_PLAINTEXT_BYTES = (1 << 31) - 1  # limit of one call of `cryptography`
KEYGEN_COMMAND = "python -c 'import secrets; print(secrets.token_hex(32))'"
HKDF_INFO = b"polarmap encryption 1"
ENCRYPTED_REPLY, UNENCRYPTED_ERROR = b"e", b"w"  # first byte of the data of a reply

EncryptionFields = tuple[Any, ...]  # an `Encryption`, or its fields as a plain tuple


class KeyUnavailableError(Exception):
    """Raised if the key cannot be read, or is not the key that was used for encryption."""


class Encryption(NamedTuple):
    """The parameters for encrypting the segments of one array, or the blocks and replies of one job.

    Attributes
    ----------
    key : str or bytes
        Where each machine reads the key, "env:NAME" or "file:PATH"; or the key itself, on this machine only.
    salt : bytes
        Random bytes from which, together with the key, the cipher and tag keys are derived.
    key_check : bytes
        Bytes derived from the key, by which a wrong key is recognized.
    """

    key: str | bytes
    salt: bytes
    key_check: bytes

    def __repr__(self) -> str:
        return f"Encryption(key={self.key if isinstance(self.key, str) else '32 bytes'!r})"

    @classmethod
    def create(cls, key: str | bytes) -> Encryption:
        """Return parameters for a new array or job; raise KeyUnavailableError if the key cannot be read."""
        salt = os.urandom(SALT_BYTES)
        return cls(key, salt, derive_with_hkdf(read_encryption_key(key), salt)[2])

    def compute_tag(self, data: bytes) -> bytes:
        """Return the HMAC-SHA256 of data that is stored unencrypted and must not be changed."""
        return hmac.digest(derive_keys(self)[1], data, "sha256")


def derive_keys(encryption: EncryptionFields) -> tuple[bytes, bytes]:
    """Return the cipher key and the tag key; raise KeyUnavailableError if the key is missing or wrong."""
    key, salt, expected_check = encryption
    cipher_key, tag_key, actual_check = derive_with_hkdf(read_encryption_key(key), salt)
    if not hmac.compare_digest(actual_check, expected_check):
        key_source = "the 32 bytes that were passed" if isinstance(key, bytes) else repr(key)
        raise KeyUnavailableError(f"{key_source}: this is not the key that was used to encrypt")
    return cipher_key, tag_key


def encrypt(encryption: EncryptionFields, associated_data: str, data: Any) -> bytes:
    """Return nonce, ciphertext and tag of `data`. Decryption requires the same associated data."""
    aes_gcm, _ = load_ciphers()
    nonce = os.urandom(NONCE_BYTES)
    cipher = aes_gcm(derive_keys(encryption)[0])
    return b"".join((nonce, cipher.encrypt(nonce, data, associated_data.encode())))


def decrypt(encryption: EncryptionFields, associated_data: str, data: Any) -> bytes:
    """Return the plaintext; raise DamagedError if the data were changed, or key or associated data differ."""
    aes_gcm, _ = load_ciphers()
    cipher, view = aes_gcm(derive_keys(encryption)[0]), memoryview(data)
    try:
        plaintext: bytes = cipher.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], associated_data.encode())
    except Exception as error:  # The data are too short, or the tag is wrong.
        raise DamagedError("is not what was encrypted: it has been changed or replaced") from error
    return plaintext


def derive_with_hkdf(key: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    """Return cipher key, tag key and bytes that identify `key` without revealing it (HKDF, RFC 5869)."""
    _, hkdf = load_ciphers()
    key_material: bytes = hkdf(2 * KEY_BYTES + KEY_CHECK_BYTES, salt).derive(key)
    return key_material[:KEY_BYTES], key_material[KEY_BYTES:-KEY_CHECK_BYTES], key_material[-KEY_CHECK_BYTES:]


def read_encryption_key(key_spec: str | bytes) -> bytes:
    """Return the 32 bytes of a key; raise KeyUnavailableError if `key_spec` does not lead to a key."""
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
    """Return the constructors of AES-GCM, which takes a key, and HKDF-SHA256, which takes length and salt."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise KeyUnavailableError("key= needs the package cryptography, not installed here") from None
    return AESGCM, lambda length, salt: HKDF(SHA256(), length, salt, HKDF_INFO)


def make_segment_associated_data(segment: Segment) -> str:
    """Return the text that is authenticated with an encrypted segment (AES-GCM associated data).

    It is different for each segment, because object keys are never reused.
    """
    return f"part {segment.offset} {segment.size} {segment.key}"


def compute_encrypted_size(plaintext_size: int) -> int:
    """Return the stored size of a segment of `plaintext_size` bytes, 0 if that is 0."""
    return plaintext_size + CIPHERTEXT_OVERHEAD_BYTES if plaintext_size else 0


def encrypt_if_location_requires(location: Location, segment: Segment, *buffers: Any) -> Sequence[Any]:
    """Return the buffers to store for a segment: one encrypted buffer, or `buffers` without encryption."""
    if location.encryption is None:
        return buffers
    if not segment.size:
        return []
    return [encrypt(location.encryption, make_segment_associated_data(segment), b"".join(buffers))]


def read_segment(location: Location, segment: Segment, read_raw: SegmentReader) -> Any:
    """Return the bytes of a segment, decrypted if its location has encryption parameters.

    Raises DamagedError if the bytes differ from the stored ones.

    Parameters
    ----------
    location : Location
        Where the segment is stored.
    segment : Segment
        The segment; one without a key consists of zeros.
    read_raw : callable
        Called with a segment; returns its stored bytes, fewer if the object is shorter, or raises
        DamagedError if the object is missing.
    """
    # The tag authenticates encrypted bytes. Their CRC-32 only distinguishes corruption from forgery.
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
    """Store bytes as one object and return its segments. Each segment is encrypted separately.

    Parameters
    ----------
    location : Location
        Its encryption parameters are used, if it has any.
    key : str
        The key of the object.
    data : buffer
        The bytes to store.
    segment_bytes : int
        The size of each segment except the last, in bytes.
    write_object : callable
        Called with the key and the bytes of the object, unless `data` is empty.
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
    """Return a reply that reveals only its kind and attempt, or the error that encryption has raised."""
    try:
        associated_data = _make_reply_associated_data(*message.attempt_key[1:])
        data = ENCRYPTED_REPLY + encrypt(encryption, associated_data, encode_frame(message))
    except Exception as error:
        data = UNENCRYPTED_ERROR + json.dumps(describe_error(error)[:3]).encode()
    return message._replace(header=b"", data=data)


def decrypt_reply(task: int, attempt: int, data: Any, encryption: EncryptionFields) -> tuple[Any, Any]:
    """Return header and data of a reply, without unpickling them.

    Raises DamagedError if the reply was not encrypted by a worker with the key for this attempt.
    """
    if data[:1] != UNENCRYPTED_ERROR:
        frame = decrypt(encryption, _make_reply_associated_data(task, attempt), data[1:])
        [message] = FrameDecoder().feed(frame)
        return message.header, message.data
    error_type, text, traceback_text = json.loads(bytes(data[1:]))
    exception = KeyUnavailableError(str(text)) if error_type == KeyUnavailableError.__name__ else None
    return TaskReply(ErrorInfo(str(error_type), str(text), str(traceback_text), exception), 0.0), b""


def _make_reply_associated_data(task: int, attempt: int) -> str:
    """Return the associated data of a reply. They are unique, as each job has its own cipher key."""
    return f"reply {task}-{attempt}"
