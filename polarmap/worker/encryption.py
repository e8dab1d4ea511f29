"""Encrypt segments and replies with AES-256-GCM, under a key that is never stored.

    key (32 bytes) + random salt of an array or job  -- HKDF-SHA256 -->  cipher key, tag key, check bytes
    segment or reply  -- AES-256-GCM, random nonce -->  nonce, ciphertext, tag

This module also runs on workers, so it imports at most numpy, and `cryptography` when it is needed.
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
KEY_CHECK_BYTES = 8  # size of the value that is stored alongside encrypted data to detect a wrong key

# Nonces are 96 random bits, so two messages under the same cipher key could share a nonce. For q messages,
# the probability of a collision is below q^2 / 2^97, which is 2^-33 for the 2^32 messages that NIST SP
# 800-38D allows. In practice, q is far smaller, because each array and each job has its own cipher key,
# derived from the user's key and 256 random bits.
NONCE_BYTES = 12
CIPHERTEXT_OVERHEAD_BYTES = NONCE_BYTES + 16  # size of the nonce and the tag, which are stored with the data
MAX_PLAINTEXT_BYTES = (1 << 31) - 1  # maximum bytes that `cryptography` encrypts in one call
KEYGEN_COMMAND = "python -c 'import secrets; print(secrets.token_hex(32))'"
HKDF_INFO = b"polarmap encryption 1"
# The first byte of a worker's reply: the rest is either encrypted, or describes the error with which
# encryption failed on the worker.
ENCRYPTED_REPLY, UNENCRYPTED_ERROR = b"e", b"w"

EncryptionFields = tuple[Any, ...]  # An `Encryption`, or a plain tuple with the same fields.


class KeyUnavailableError(Exception):
    """Raised if the encryption key cannot be read on this machine, or is the wrong key."""


class Encryption(NamedTuple):
    """The encryption parameters of a stored array, or of a job's data blocks and replies.

    Attributes
    ----------
    key : str or bytes
        Where to read the user's key: "env:NAME" for an environment variable, or "file:PATH". Alternatively,
        the key itself as 32 bytes, which then never leaves this machine.
    salt : bytes
        Random bytes. The actual encryption keys are derived from the salt and the user's key.
    key_check : bytes
        Bytes derived from the key. If a key yields other bytes, it is the wrong one.
    """

    key: str | bytes
    salt: bytes
    key_check: bytes

    def __repr__(self) -> str:
        return f"Encryption(key={self.key if isinstance(self.key, str) else '32 bytes'!r})"

    @classmethod
    def create(cls, key: str | bytes) -> Encryption:
        """Return encryption parameters for a new array or job, with a random salt.

        Raises KeyUnavailableError if the key cannot be read.
        """
        salt = os.urandom(SALT_BYTES)
        return cls(key, salt, derive_with_hkdf(read_encryption_key(key), salt)[2])

    def compute_tag(self, data: bytes) -> bytes:
        """Return the HMAC-SHA256 tag of data that is stored unencrypted, so that changes can be detected."""
        return hmac.digest(derive_keys(self)[1], data, "sha256")


def derive_keys(encryption: EncryptionFields) -> tuple[bytes, bytes]:
    """Derive two keys from encryption parameters: one for AES-GCM and one for HMAC tags.

    Raises KeyUnavailableError if the user's key cannot be read or is not the one used for encryption.
    """
    key, salt, expected_check = encryption
    cipher_key, tag_key, actual_check = derive_with_hkdf(read_encryption_key(key), salt)
    if not hmac.compare_digest(actual_check, expected_check):
        key_source = "the 32 bytes that were passed" if isinstance(key, bytes) else repr(key)
        raise KeyUnavailableError(f"{key_source}: this is not the key that was used to encrypt")
    return cipher_key, tag_key


def encrypt(encryption: EncryptionFields, associated_data: str, data: Any) -> bytes:
    """Encrypt `data` with AES-GCM, and return the nonce, ciphertext and tag as one byte string.

    `associated_data` is authenticated but not encrypted. The same text must be passed to `decrypt`.
    """
    aes_gcm, _ = load_ciphers()
    nonce = os.urandom(NONCE_BYTES)
    cipher = aes_gcm(derive_keys(encryption)[0])
    return b"".join((nonce, cipher.encrypt(nonce, data, associated_data.encode())))


def decrypt(encryption: EncryptionFields, associated_data: str, data: Any) -> bytes:
    """Decrypt bytes that `encrypt` has returned.

    Raises DamagedError if the bytes were modified, or if `associated_data` differs from what was passed to
    `encrypt`. Raises KeyUnavailableError if the key is missing or wrong.
    """
    aes_gcm, _ = load_ciphers()
    cipher, view = aes_gcm(derive_keys(encryption)[0]), memoryview(data)
    try:
        plaintext: bytes = cipher.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], associated_data.encode())
    except Exception as error:  # The data are too short, or their authentication tag is wrong.
        raise DamagedError("is not what was encrypted: it has been changed or replaced") from error
    return plaintext


def derive_with_hkdf(key: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    """Derive three values from the user's key by HKDF (RFC 5869): AES-GCM key, HMAC key and key check.

    The key check is stored with encrypted data, to detect a wrong key. It does not reveal the user's key.
    """
    _, hkdf = load_ciphers()
    key_material: bytes = hkdf(2 * KEY_BYTES + KEY_CHECK_BYTES, salt).derive(key)
    return key_material[:KEY_BYTES], key_material[KEY_BYTES:-KEY_CHECK_BYTES], key_material[-KEY_CHECK_BYTES:]


def read_encryption_key(key_spec: str | bytes) -> bytes:
    """Read the user's key, and return its 32 bytes.

    `key_spec` is the key itself, or "env:NAME" or "file:PATH" for 64 hexadecimal digits in an environment
    variable or a file. Raises KeyUnavailableError if there is no valid key.
    """
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
    """Import the package cryptography, and return its constructors for AES-GCM and HKDF-SHA256.

    The first takes a key, and the second takes the output length and a salt. Raises KeyUnavailableError if
    the package is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise KeyUnavailableError("key= needs the package cryptography, not installed here") from None
    return AESGCM, lambda length, salt: HKDF(SHA256(), length, salt, HKDF_INFO)


def make_segment_associated_data(segment: Segment) -> str:
    """Return the associated data of a segment: text that AES-GCM authenticates, but does not encrypt.

    A segment is a byte range of a stored object. The text is unique to the segment, because object keys are
    never reused. Decryption therefore fails if two segments are swapped.
    """
    return f"part {segment.offset} {segment.size} {segment.key}"


def compute_encrypted_size(plaintext_size: int) -> int:
    """Return the size in bytes that `plaintext_size` bytes have after encryption.

    Encryption adds a nonce and a tag of fixed size. Empty data is not encrypted, so its size remains 0.
    """
    return plaintext_size + CIPHERTEXT_OVERHEAD_BYTES if plaintext_size else 0


def encrypt_if_location_requires(location: Location, segment: Segment, *buffers: Any) -> Sequence[Any]:
    """Encrypt the bytes of a segment (a byte range of a stored object) if its location requires encryption.

    Return the buffers to store: either a single encrypted buffer, or `buffers` unchanged.
    """
    if location.encryption is None:
        return buffers
    if not segment.size:
        return []
    return [encrypt(location.encryption, make_segment_associated_data(segment), b"".join(buffers))]


def read_segment(location: Location, segment: Segment, read_raw: SegmentReader) -> Any:
    """Read a segment (a byte range of a stored object), verify its bytes, and decrypt them if necessary.

    Raises DamagedError if bytes are missing or have changed since they were written.

    Parameters
    ----------
    location : Location
        Where the segment is stored.
    segment : Segment
        The segment to read. A segment without a key consists of zeros, which are not stored.
    read_raw : callable
        Called with a segment; returns its stored bytes, fewer if the object is shorter, or raises
        DamagedError if the object is missing.
    """
    if not (segment.key and segment.size):
        return bytes(segment.size)
    if location.encryption is None:
        return check_segment_integrity(segment, read_raw(segment))
    # Do not check the CRC-32 checksum of encrypted bytes here, because their AES-GCM tag is verified below.
    stored_segment = segment._replace(size=compute_encrypted_size(segment.size), crc32=None)
    stored_bytes = check_segment_integrity(stored_segment, read_raw(stored_segment))
    try:
        return decrypt(location.encryption, make_segment_associated_data(segment), stored_bytes)
    except DamagedError as error:
        # If the CRC-32 checksum matches although the AES-GCM tag does not, the bytes were changed on purpose.
        damage_kind = "forged" if segment.crc32 in (None, zlib.crc32(stored_bytes)) else "corrupt"
        raise DamagedError(f"{segment.key} {error}", damage_kind) from error


def write_segments(
    location: Location, key: str, data: Any, segment_bytes: int, write_object: Callable[[str, Any], None]
) -> list[Segment]:
    """Store bytes as one object, divided into segments of equal size, and return the segments.

    Each segment has its own checksum and is encrypted separately, so that it can be read on its own.

    Parameters
    ----------
    location : Location
        The location of the object. If it has encryption parameters, the segments are encrypted.
    key : str
        The key of the object.
    data : buffer
        The bytes to store.
    segment_bytes : int
        The size of each segment except the last, in bytes.
    write_object : callable
        Called with the key and the bytes to store, unless `data` is empty.
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
    """Return a worker's reply to the driver in encrypted form.

    The kind of message and the attempt (the run of a task) to which it belongs remain readable. If encryption
    fails, return an unencrypted reply that contains the error instead.
    """
    try:
        associated_data = _make_reply_associated_data(*message.attempt_key[1:])
        data = ENCRYPTED_REPLY + encrypt(encryption, associated_data, encode_frame(message))
    except Exception as error:
        data = UNENCRYPTED_ERROR + json.dumps(describe_error(error)[:3]).encode()
    return message._replace(header=b"", data=data)


def decrypt_reply(task: int, attempt: int, data: Any, encryption: EncryptionFields) -> tuple[Any, Any]:
    """Decrypt a reply that a worker has encrypted with `encrypt_reply`. Return its header and data.

    Nothing is unpickled. Raises DamagedError if the reply was not encrypted with this key, or if it belongs
    to another task or to another attempt (run) of the task.
    """
    if data[:1] != UNENCRYPTED_ERROR:
        frame = decrypt(encryption, _make_reply_associated_data(task, attempt), data[1:])
        [message] = FrameDecoder().feed(frame)
        return message.header, message.data
    error_type, text, traceback_text = json.loads(bytes(data[1:]))
    exception = KeyUnavailableError(str(text)) if error_type == KeyUnavailableError.__name__ else None
    return TaskReply(ErrorInfo(str(error_type), str(text), str(traceback_text), exception), 0.0), b""


def _make_reply_associated_data(task: int, attempt: int) -> str:
    """Return the associated data of a reply: text that AES-GCM authenticates, but does not encrypt.

    The text names the task and its attempt (run), so that swapped replies are detected.
    """
    return f"reply {task}-{attempt}"
