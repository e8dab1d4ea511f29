"""Measure the cost of key=: encode, read and map an array of 64 MiB, plain and encrypted.

Arrays are stored in a folder, and persistent workers on this machine map them. Runs take turns.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import polarmap
from benchmarks import Row, parse_quick_flag, print_rows, time_in_turns, to_milliseconds

BLOCK_COUNTS = {"blocks": 24, "tasks": 32}
MIB = 1 << 20


def make_actions(
    A: Any, storage: str, pool: Any, n_turns: int, key: bytes | None
) -> dict[str, Callable[[], Any]]:
    """Return the named operations on the matrix, with the key or without."""
    f: Callable[[Any], Any] = partial(np.sum, axis=1)
    options: dict[str, Any] = {"executor": pool, "verify": False}
    name = str(bool(key))

    def encode(name: str = name) -> polarmap.arrays.CodedArray:
        return polarmap.encode(A, name=name, storage=storage, overwrite=True, key=key, **BLOCK_COUNTS)

    encode()
    open_stored = partial(polarmap.open_coded, name, storage, key=key)
    fresh_arrays: Iterator[Any] = iter([encode(f"{name}-{turn}") for turn in range(n_turns + 1)])
    return {
        "encode": encode,
        "read": lambda: open_stored()[:],
        "first map": lambda: polarmap.coded_map(
            f, next(fresh_arrays), **options
        ),  # The workers' caches do not hold this array yet.
        "later map": lambda: polarmap.coded_map(f, open_stored(), **options),
        "map from memory": lambda: polarmap.coded_map(f, A, key=key, **options, **BLOCK_COUNTS),
    }


def main() -> None:
    n_rows, n_turns = (1_536, 3) if parse_quick_flag(__doc__) else (8_192, 7)
    A = np.random.default_rng(0).standard_normal((n_rows, 1_024))
    print(f"{A.nbytes / MIB:.0f} MiB of float64: encrypted compared with plain")
    with tempfile.TemporaryDirectory() as folder, polarmap.Pool() as pool:
        variants = [make_actions(A, folder, pool, n_turns, key) for key in (None, secrets.token_bytes(32))]
        timings = (
            (name, time_in_turns([variant[name] for variant in variants], n_turns)) for name in variants[0]
        )
        print_rows(
            Row(name, to_milliseconds(encrypted_times), "plain", to_milliseconds(plain_times))
            for name, (plain_times, encrypted_times) in timings
        )


if __name__ == "__main__":
    main()
