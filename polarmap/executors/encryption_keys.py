"""The key that a caller passes, checked."""

from __future__ import annotations

from typing import Any

from polarmap.clouds.extras import install_command
from polarmap.errors import CodeError
from polarmap.worker.encryption import (
    KEY_BYTES,
    MAKE_ONE,
    MESSAGE_BYTES,
    Encryption,
    KeyUnavailableError,
    ciphers,
    read_key,
)

PLACES = ("env:", "file:")


def readable_key(key: Any) -> str | bytes:
    """The key of the caller; CodeError for what is none, or is not where it says."""
    if isinstance(key, (bytes, bytearray, memoryview)):
        if len(key) != KEY_BYTES:
            raise CodeError(
                f"key has {len(key)} bytes, and AES-256 takes {KEY_BYTES} random ones, as "
                "secrets.token_bytes(32) makes them"
            )
        found: str | bytes = bytes(key)
    elif isinstance(key, str) and key.startswith(PLACES) and key.partition(":")[2]:
        found = key
    else:  # which may be a key: it is not shown
        raise CodeError(
            f"key must be 'env:NAME' or 'file:PATH', where workers find the {2 * KEY_BYTES} hexadecimal "
            f"digits that this makes: {MAKE_ONE}; or {KEY_BYTES} bytes. This {type(key).__name__} is neither"
        )
    try:
        ciphers()
    except KeyUnavailableError as error:
        raise CodeError(f"key= needs the package cryptography: {install_command('crypto')}") from error
    try:
        read_key(found)
    except KeyUnavailableError as error:
        raise CodeError(str(error)) from error
    return found


def new_encryption(key: Any, largest: int, what: str, remedy: str) -> Encryption:
    """How to encrypt a new array or map; CodeError if the key is none or not there, or the data too large.

    largest : bytes of what is encrypted at once, which is `what`.
    """
    if largest > MESSAGE_BYTES:
        raise CodeError(
            f"{what} has {largest} bytes, and at most {MESSAGE_BYTES} are encrypted at once: {remedy}"
        )
    return Encryption.new(readable_key(key))
