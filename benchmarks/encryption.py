"""What key= costs: encode, read and map an array of 64 MiB, plain and encrypted.

Arrays lie in a folder; workers are processes of this machine that stay. Runs in turns, medians.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import polarmap
from benchmarks import Row, in_turns, is_quick, milliseconds, show_rows

SIZES = {"blocks": 24, "tasks": 32}
MIB = 1 << 20


def actions(A: Any, storage: str, pool: Any, repeats: int, key: bytes | None) -> dict[str, Callable[[], Any]]:
    """What is done with the matrix, with the key or without."""
    f: Callable[[Any], Any] = partial(np.sum, axis=1)
    options: dict[str, Any] = {"executor": pool, "verify": False}
    name = str(bool(key))

    def encode(name: str = name) -> polarmap.arrays.CodedArray:
        return polarmap.encode(A, name=name, storage=storage, overwrite=True, key=key, **SIZES)

    encode()
    stored = partial(polarmap.open_coded, name, storage, key=key)
    fresh: Iterator[Any] = iter([encode(f"{name}-{turn}") for turn in range(repeats + 1)])
    return {
        "encode": encode,
        "read": lambda: stored()[:],
        "first map": lambda: polarmap.coded_map(f, next(fresh), **options),  # workers keep nothing of it
        "later map": lambda: polarmap.coded_map(f, stored(), **options),
        "map from memory": lambda: polarmap.coded_map(f, A, key=key, **options, **SIZES),
    }


def main() -> None:
    rows, repeats = (1_536, 3) if is_quick(__doc__) else (8_192, 7)
    A = np.random.default_rng(0).standard_normal((rows, 1_024))
    print(f"{A.nbytes / MIB:.0f} MiB of float64, encrypted beside plain")
    with tempfile.TemporaryDirectory() as folder, polarmap.Pool() as pool:
        ways = [actions(A, folder, pool, repeats, key) for key in (None, secrets.token_bytes(32))]
        taken = ((name, in_turns([way[name] for way in ways], repeats)) for name in ways[0])
        show_rows(
            Row(name, milliseconds(ours), "plain", milliseconds(plain)) for name, (plain, ours) in taken
        )


if __name__ == "__main__":
    main()
