"""What key= costs: encode, read and map an array of 64 MiB, plain and encrypted.

python -m benchmarks.encryption [--quick]

Arrays lie in a folder; workers are processes of this machine that stay. Runs in turns, medians.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import polarmap
from benchmarks import interleaved, is_quick, show

K, N, COLUMNS = 24, 32, 1_024
MIB = 1 << 20


def main() -> None:
    quick = is_quick(__doc__)
    A = np.random.default_rng(0).standard_normal((1_536 if quick else 8_192, COLUMNS))
    with tempfile.TemporaryDirectory() as folder, polarmap.Pool() as pool:
        repeats = 3 if quick else 7
        measured = Measured(A, folder, pool, repeats)
        pairs = {
            "encode": measured.encode,
            "read": measured.read,
            "first map": measured.map_first,
            "later map": measured.map_again,
            "map from memory": measured.map_from_memory,
        }
        print(f"{A.nbytes / MIB:.0f} MiB of float64, ({N}, {K}), medians")
        rows = []
        for name, action in pairs.items():
            keys = (None, measured.key)
            plain, encrypted = interleaved([partial(action, key) for key in keys], repeats)
            rows.append((name, plain, encrypted, f"{encrypted / plain:.2f} x"))
        show(("", "plain, s", "encrypted, s", "ratio"), rows)


class Measured:
    """What is done with the matrix, with the key or without."""

    def __init__(self, A: Any, folder: str, pool: polarmap.Pool, repeats: int) -> None:
        self.A, self.folder, self.pool = A, folder, pool
        self.key, self.sizes = secrets.token_bytes(32), {"blocks": K, "workers": N}
        self.f: Callable[[Any], Any] = partial(np.sum, axis=1)
        self.fresh = {
            key: iter([self.encode(key, f"fresh-{bool(key)}-{turn}") for turn in range(repeats + 1)])
            for key in (None, self.key)
        }

    def encode(self, key: bytes | None, name: str = "") -> polarmap.CodedArray:
        name = name or str(bool(key))
        return polarmap.encode(self.A, name=name, storage=self.folder, overwrite=True, key=key, **self.sizes)

    def stored(self, key: bytes | None) -> polarmap.CodedArray:
        return polarmap.open_coded(str(bool(key)), self.folder, key=key)

    def read(self, key: bytes | None) -> None:
        assert self.stored(key)[:].shape == self.A.shape

    def map_first(self, key: bytes | None) -> None:
        """By workers that are there and keep nothing of this array."""
        self.map_stored(next(self.fresh[key]))

    def map_again(self, key: bytes | None) -> None:
        self.map_stored(self.stored(key))

    def map_stored(self, coded: polarmap.CodedArray) -> None:
        polarmap.coded_map(self.f, coded, executor=self.pool, verify=False)

    def map_from_memory(self, key: bytes | None) -> None:
        polarmap.coded_map(self.f, self.A, key=key, executor=self.pool, verify=False, **self.sizes)


if __name__ == "__main__":
    main()
