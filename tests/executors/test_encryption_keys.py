"""Values of `key=` that callers pass: encryption keys, and names of environment variables that hold them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from polarmap.blocks.coded import CodedBlocks
from polarmap.blocks.equal import cut_array_into_blocks
from polarmap.codes.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.executors import encryption_keys
from polarmap.executors.encryption_keys import check_encryption_key, encrypt_job, make_encryption
from polarmap.executors.interface import JobSpec

KEY = bytes(range(32))


def test_key_must_be_32_bytes_and_errors_do_not_show_it() -> None:
    for key in (KEY, bytearray(KEY), memoryview(KEY)):
        assert check_encryption_key(key) == make_encryption(check_encryption_key(key), 0, "", "").key == KEY
    for key in (KEY[:16], b"", KEY + b"x"):
        with pytest.raises(CodeError, match=rf"key must have 32 bytes for AES-256, not {len(key)}"):
            check_encryption_key(key)
    for word in ("password", KEY.hex(), "env:", "file:", "s3:x", 3, ["env:X"], True):
        with pytest.raises(CodeError, match="key must be 'env:NAME' or 'file:PATH'") as caught:
            check_encryption_key(word)
        assert KEY.hex() not in str(caught.value)
        assert "password" not in str(caught.value)


def test_missing_package_raises_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(CodeError, match="key= needs the package cryptography: pip install"):
        check_encryption_key(KEY)


def test_blocks_too_large_for_the_cipher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption_keys, "MAX_PLAINTEXT_BYTES", 31)
    encrypt_job(JobSpec(len, CodedBlocks(cut_array_into_blocks(np.arange(6.0), 2), PolarCode(3, 2))), KEY)
    with pytest.raises(CodeError, match=r"a block has 32 bytes, and at most 31 .* use more blocks"):
        encrypt_job(JobSpec(len, CodedBlocks(cut_array_into_blocks(np.arange(8.0), 2), PolarCode(3, 2))), KEY)
