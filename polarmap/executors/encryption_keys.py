"""Validates the `key=` argument, with which maps and arrays encrypt their data."""

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
    """Validate an encryption key and return it. Raises CodeError if it is invalid or cannot be read.

    A string names the environment variable or file that contains the key, as 'env:NAME' or 'file:PATH'. Bytes
    are the key itself.
    """
    if isinstance(key, (bytes, bytearray, memoryview)):
        if len(key) != KEY_BYTES:
            raise CodeError(
                f"key must have {KEY_BYTES} bytes for AES-256, not {len(key)}: secrets.token_bytes(32) "
                "makes a random key"
            )
        checked_key: str | bytes = bytes(key)
    elif isinstance(key, str) and key.startswith(KEY_REFERENCE_PREFIXES) and key.partition(":")[2]:
        checked_key = key
    else:  # Leave the value out of the message, as it may be a secret.
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
    """Return the encryption settings for a new array or for the data of a map.

    Parameters
    ----------
    key : str or bytes
        The key, as `check_encryption_key` returns it.
    max_plaintext_bytes : int
        The size in bytes of the largest unit: a piece of data that is encrypted as a whole.
    plaintext_name : str
        What to call a unit in the error message, for example "a block".
    advice : str
        Advice in the error message on how to make the units smaller.

    Raises
    ------
    CodeError
        If a unit is too large, or the key can no longer be read.
    """
    if max_plaintext_bytes > MAX_PLAINTEXT_BYTES:
        raise CodeError(
            f"{plaintext_name} has {max_plaintext_bytes} bytes, and at most {MAX_PLAINTEXT_BYTES} can "
            f"be encrypted at once: {advice}"
        )
    try:
        return Encryption.create(key)
    except KeyUnavailableError as error:
        raise CodeError(str(error)) from error


def check_map_encryption_key(blocks: TaskBlocks, key: str | bytes) -> None:
    """Raise CodeError if a map's blocks are already stored, but not encrypted with this key."""
    if blocks.location is not None and key != blocks.encryption_key:
        storage_state = (
            "encrypted: leave key out"
            if blocks.encryption_key
            else "as they are: encode(..., key=) encrypts them"
        )
        raise CodeError(f"key= encrypts data from memory, and these lie in storage, {storage_state}")


def encrypt_job(job_spec: JobSpec, key: str | bytes) -> JobSpec:
    """Return a copy of a job whose blocks and replies are encrypted with a key."""
    blocks = job_spec.blocks
    tasks = range(blocks.n if blocks.location is None else 0)
    max_block_bytes = max((count_layout_bytes(blocks.block_layout(task)) for task in tasks), default=0)
    return replace(job_spec, encryption=make_encryption(key, max_block_bytes, "a block", "use more blocks"))


def check_key_is_portable(job_spec: JobSpec, executor_name: str) -> None:
    """Raise ExecutorError if the key would have to be stored or sent over a network.

    This is the case if the key was passed as bytes and not as the name of a variable or file.
    """
    if job_spec.encryption is not None and isinstance(job_spec.encryption.key, bytes):
        raise ExecutorError(
            "key= is the key itself, which would have to be written to storage, or sent over a network, "
            f"for the workers of {executor_name}: give them its 64 hexadecimal digits, key.hex(), in an "
            "environment variable or a file, and pass key='env:NAME' or key='file:PATH'"
        )


def check_not_encrypted(data: Any, argument_name: str, advice: str = "") -> None:
    """Raise CodeError if `data` is an encrypted array, because its values would be stored unencrypted."""
    if hasattr(data, "coded_blocks") and data.coded_blocks().encryption_key is not None:
        advice = advice or f"pass {argument_name}[:] if it may, coded_map and CodedOperator keep it so"
        raise CodeError(
            f"{argument_name} is an encrypted coded array, and would be stored as it is here: {advice}"
        )
