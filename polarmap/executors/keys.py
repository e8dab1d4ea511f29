"""What a caller passes as `key=`: checked, for a map or an array, its blocks and its executor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polarmap.clouds.extras import install_command
from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.base import Coded, Payload
from polarmap.worker.encryption import (
    KEY_BYTES,
    KEYGEN_COMMAND,
    MAX_PLAINTEXT_BYTES,
    Encryption,
    KeyUnavailableError,
    load_ciphers,
    read_key,
)
from polarmap.worker.pytree import count_layout_bytes

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
            f"digits that this makes: {KEYGEN_COMMAND}; or {KEY_BYTES} bytes. This {type(key).__name__} is neither"
        )
    try:
        load_ciphers()
    except KeyUnavailableError as error:
        raise CodeError(f"key= needs the package cryptography: {install_command('crypto')}") from error
    try:
        read_key(found)
    except KeyUnavailableError as error:
        raise CodeError(str(error)) from error
    return found


def new_encryption(key: str | bytes, largest: int, what: str, remedy: str) -> Encryption:
    """How to encrypt a new array or map; CodeError if the key is gone since then, or the data are too large.

    largest : bytes of what is encrypted at once, which is `what`.
    """
    if largest > MAX_PLAINTEXT_BYTES:
        raise CodeError(
            f"{what} has {largest} bytes, and at most {MAX_PLAINTEXT_BYTES} are encrypted at once: {remedy}"
        )
    try:
        return Encryption.create(key)
    except KeyUnavailableError as error:
        raise CodeError(str(error)) from error


def check_key_of_map(coded: Coded, key: str | bytes) -> None:
    """CodeError for a key that a map of these blocks cannot encrypt with."""
    if coded.source is not None and key != coded.key:
        how = "encrypted: leave key out" if coded.key else "as they are: encode(..., key=) encrypts them"
        raise CodeError(f"key= encrypts data from memory, and these lie in storage, {how}")


def with_key(payload: Payload, key: str | bytes) -> Payload:
    """The same map, all that is stored and sent of it encrypted by this key."""
    blocks = payload.blocks
    tasks = range(blocks.n if blocks.source is None else 0)
    largest = max((count_layout_bytes(blocks.layout(task)) for task in tasks), default=0)
    return replace(payload, encryption=new_encryption(key, largest, "a block", "use more blocks"))


def check_may_leave(payload: Payload, executor: str) -> None:
    """ExecutorError for a key that would have to travel by way of storage, or a network."""
    if payload.encryption is not None and isinstance(payload.encryption.key, bytes):
        raise ExecutorError(
            "key= is the key itself, which would have to be written to storage, or sent over a network, "
            f"for the workers of {executor}: give them its 64 hexadecimal digits, key.hex(), in an "
            "environment variable or a file, and pass key='env:NAME' or key='file:PATH'"
        )


def check_may_be_copied(data: Any, name: str, remedy: str = "") -> None:
    """CodeError for a coded array that is encrypted, where its numbers would be stored as they are."""
    if hasattr(data, "coded_blocks") and data.coded_blocks().key is not None:
        remedy = remedy or f"pass {name}[:] if it may, coded_map and CodedOperator keep it so"
        raise CodeError(f"{name} is an encrypted coded array, and would be stored as it is here: {remedy}")
