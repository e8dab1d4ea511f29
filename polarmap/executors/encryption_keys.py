"""The key that a caller passes: checked, and kept on this machine unless workers find it where they are."""

from __future__ import annotations

from typing import Any

from polarmap.clouds.extras import install_command
from polarmap.errors import CodeError, ExecutorError
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


def check_stays_here(encryption: Encryption | None, name: str) -> None:
    """ExecutorError for a key that would have to travel to workers by way of storage, or a network."""
    if encryption is not None and isinstance(encryption.key, bytes):
        raise ExecutorError(
            "key= is the key itself, which would have to be written to storage, or sent over a network, for "
            f"the workers of {name}: give them its 64 hexadecimal digits, key.hex(), in an environment "
            "variable or a file, and pass key='env:NAME' or key='file:PATH'"
        )
