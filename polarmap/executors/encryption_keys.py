"""What a caller passes as `key=`: checked, for a map or an array, its blocks and its executor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polarmap.errors import CodeError, ExecutorError
from polarmap.executors.interface import JobSpec, TaskBlocks
from polarmap.optional import format_extras_install_command
from polarmap.worker.encryption import (
    KEY_BYTES,
    KEYGEN_COMMAND,
    MAX_PLAINTEXT_BYTES,
    Encryption,
    KeyUnavailableError,
    load_ciphers,
    read_encryption_key,
)
from polarmap.worker.pytree import count_layout_bytes

KEY_REFERENCE_PREFIXES = ("env:", "file:")


def check_encryption_key(key: Any) -> str | bytes:
    """The key of the caller; CodeError for what is none, or is not where it says."""
    if isinstance(key, (bytes, bytearray, memoryview)):
        if len(key) != KEY_BYTES:
            raise CodeError(
                f"key has {len(key)} bytes, and AES-256 takes {KEY_BYTES} random ones, as "
                "secrets.token_bytes(32) makes them"
            )
        checked_key: str | bytes = bytes(key)
    elif isinstance(key, str) and key.startswith(KEY_REFERENCE_PREFIXES) and key.partition(":")[2]:
        checked_key = key
    else:  # which may be a key: it is not shown
        raise CodeError(
            f"key must be 'env:NAME' or 'file:PATH', where workers find the {2 * KEY_BYTES} hexadecimal "
            f"digits that this makes: {KEYGEN_COMMAND}; or {KEY_BYTES} bytes. "
            f"This {type(key).__name__} is neither"
        )
    try:
        load_ciphers()
    except KeyUnavailableError as error:
        raise CodeError(
            f"key= needs the package cryptography: {format_extras_install_command('crypto')}"
        ) from error
    try:
        read_encryption_key(checked_key)
    except KeyUnavailableError as error:
        raise CodeError(str(error)) from error
    return checked_key


def make_encryption(
    key: str | bytes, max_plaintext_bytes: int, plaintext_name: str, advice: str
) -> Encryption:
    """How to encrypt a new array or map; CodeError if the key is gone since then, or the data are too large.

    max_plaintext_bytes : bytes of what is encrypted at once, which is `plaintext_name`.
    """
    if max_plaintext_bytes > MAX_PLAINTEXT_BYTES:
        raise CodeError(
            f"{plaintext_name} has {max_plaintext_bytes} bytes, and at most {MAX_PLAINTEXT_BYTES} are "
            f"encrypted at once: {advice}"
        )
    try:
        return Encryption.create(key)
    except KeyUnavailableError as error:
        raise CodeError(str(error)) from error


def check_map_encryption_key(blocks: TaskBlocks, key: str | bytes) -> None:
    """CodeError for a key that a map of these blocks cannot encrypt with."""
    if blocks.location is not None and key != blocks.encryption_key:
        storage_state = (
            "encrypted: leave key out"
            if blocks.encryption_key
            else "as they are: encode(..., key=) encrypts them"
        )
        raise CodeError(f"key= encrypts data from memory, and these lie in storage, {storage_state}")


def encrypt_job(job_spec: JobSpec, key: str | bytes) -> JobSpec:
    """The same map, all that is stored and sent of it encrypted by this key."""
    blocks = job_spec.blocks
    tasks = range(blocks.n if blocks.location is None else 0)
    max_block_bytes = max((count_layout_bytes(blocks.block_layout(task)) for task in tasks), default=0)
    return replace(job_spec, encryption=make_encryption(key, max_block_bytes, "a block", "use more blocks"))


def check_key_is_portable(job_spec: JobSpec, executor_name: str) -> None:
    """ExecutorError for a key that would have to travel by way of storage, or a network."""
    if job_spec.encryption is not None and isinstance(job_spec.encryption.key, bytes):
        raise ExecutorError(
            "key= is the key itself, which would have to be written to storage, or sent over a network, "
            f"for the workers of {executor_name}: give them its 64 hexadecimal digits, key.hex(), in an "
            "environment variable or a file, and pass key='env:NAME' or key='file:PATH'"
        )


def check_not_encrypted(data: Any, argument_name: str, advice: str = "") -> None:
    """CodeError for a coded array that is encrypted, where its numbers would be stored as they are."""
    if hasattr(data, "coded_blocks") and data.coded_blocks().encryption_key is not None:
        advice = advice or f"pass {argument_name}[:] if it may, coded_map and CodedOperator keep it so"
        raise CodeError(
            f"{argument_name} is an encrypted coded array, and would be stored as it is here: {advice}"
        )
