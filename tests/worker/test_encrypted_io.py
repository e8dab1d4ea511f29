"""What travels with tasks of maps with a key, and with no others."""

from __future__ import annotations

import subprocess
import sys

import cloudpickle
import numpy as np

from polarmap.executors.pickling import pickled_by_value
from polarmap.worker.encrypted_io import ENCRYPTED, encrypted_object
from polarmap.worker.encryption import Encryption, read_decrypted
from polarmap.worker.io_lithops import make_task
from polarmap.worker.parts import Part, Place

DATA = np.random.default_rng(0).bytes(1_000)


def test_each_part_of_an_object_can_be_read_by_itself() -> None:
    fields = tuple(Encryption.new(bytes(range(32))))
    place = Place("bucket", "b", encryption=fields)
    for size in (1, 7, 400, 999, 1_000, 1_001):
        parts, stored = encrypted_object(fields, "x", memoryview(DATA), size)

        def read(place: Place, part: Part, stored: bytes = stored) -> bytes:
            return stored[part.offset : part.offset + part.size]

        assert [part.size for part in parts[:-1]] == [size] * (len(parts) - 1)
        assert b"".join(read_decrypted(place, part, read) for part in parts) == DATA
        assert parts[-1].offset + parts[-1].size + 28 == len(stored)
    assert encrypted_object(fields, "x", b"", 8) == ([], b"")


def test_it_travels_with_a_key_only() -> None:
    with pickled_by_value():
        plain, encrypted = (cloudpickle.dumps(make_task(len, one)) for one in (None, ENCRYPTED))
    assert b"AESGCM" not in plain
    assert b"AESGCM" in encrypted
    # Elsewhere: cloudpickle would put the copies of our classes' methods into the classes of this process.
    load = "import pickle, sys; assert callable(pickle.load(sys.stdin.buffer))"
    subprocess.run([sys.executable, "-c", load], input=encrypted, check=True, timeout=60)
