"""Encrypt data so that the storage provider cannot read it, and map it although it was tampered with.

It needs the extra `crypto`."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import numpy as np

import polarmap
from polarmap.errors import StorageError


def main() -> None:
    salaries = np.random.default_rng(0).uniform(2e4, 9e4, (4_800, 50))
    raise_by = np.full(50, 1.03)
    with tempfile.TemporaryDirectory() as folder, polarmap.Pool(workers=4) as pool:
        key = f"file:{folder}/key"  # keep the key where readers of the storage cannot see it
        Path(folder, "key").write_text(secrets.token_hex(32))
        store = Path(folder, "store")
        coded_array = polarmap.encode(salaries, blocks=12, tasks=16, name="salaries", storage=store, key=key)
        data = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
        print(f"{len(data):,} bytes stored; they contain a plain salary: {salaries[0, 0].tobytes() in data}")

        first_path, second_path = (store / coded_array.block_segments(block)[0].key for block in (3, 7))
        first_bytes, second_bytes = first_path.read_bytes(), second_path.read_bytes()
        first_path.write_bytes(second_bytes)  # an attacker exchanges two blocks
        second_path.write_bytes(first_bytes)
        raised_salaries = polarmap.coded_map(
            lambda block: block @ raise_by, coded_array, executor=pool, retries=0
        )
        assert np.allclose(raised_salaries.concatenate(), salaries @ raise_by)
        print(f"result correct; damaged blocks {coded_array.check().damaged_blocks} detected, then repaired")
        coded_array.repair()
        assert coded_array.check().ok

        try:
            polarmap.open_coded("salaries", store, key=secrets.token_bytes(32))
        except StorageError as error:
            print(f"another key: {str(error).rpartition(': ')[2]}")


if __name__ == "__main__":
    main()
