"""Coded arrays from encoding to deletion: read, damaged, checked, mapped and repaired."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import polarmap
from polarmap.arrays import CodedArray, RawObjects
from polarmap.codes import PolarCode
from polarmap.errors import CodeError, MissingObjectError, NotDecodableError, PolarmapError
from polarmap.storage.folder import FolderStore
from polarmap.testing import ReplayExecutor
from soak import oracle
from soak.draws import Draw
from soak.faults import Faults, Pools
from soak.oracle import SLACK, Finding

NAME = "soaked"
# Bytes of a real number -> error beyond which reading asks for more blocks.
RTOL = {2: 0.1, 4: 1e-4, 8: 1e-10}


@dataclass
class ArrayCase:
    """An array, the code it is encoded with, and the blocks whose parts are damaged."""

    seed: int
    A: np.ndarray
    code: PolarCode
    source: str
    by_workers: bool
    damaged: list[int]
    about: str

    def __str__(self) -> str:
        how = " by workers" if self.by_workers else ""
        return f"array of {self.about}, {self.code!r}, encoded from {self.source}{how}; damage {self.damaged}"

    @property
    def wanted(self) -> np.ndarray:
        return self.A.astype(self.A.dtype.newbyteorder("="))

    @property
    def is_finite(self) -> bool:
        return oracle.is_finite(self.A)

    def run(self, pools: Pools) -> str:
        with tempfile.TemporaryDirectory(prefix="soak-array-") as folder:
            return self._run(Path(folder), pools, Draw(self.seed + 1))

    def _run(self, folder: Path, pools: Pools, draw: Draw) -> str:
        store = FolderStore(folder / "store")
        before = _files(folder)
        try:
            coded = self._encode(folder, store, pools)
        except CodeError as error:
            if self.by_workers and "with executor=" in str(error):
                return "CodeError: not where workers can read it"
            if self.is_finite:
                raise Finding("innocent failure", f"CodeError: {error}") from error
            return "CodeError: NaN"
        self._check_read(coded, draw, set())
        harmed = self._damage(coded, store, draw)
        verdict = self._read_damaged(coded, draw, harmed)
        polarmap.open_coded(NAME, store).delete()
        self._check_gone(folder, store, before)
        return verdict

    def _encode(self, folder: Path, store: FolderStore, pools: Pools) -> CodedArray:
        options: dict[str, Any] = {}
        if self.by_workers:
            options["executor"] = pools.executor("threads", Faults(), self.seed)
        source: Any = self.A
        if self.source == "npy":
            np.save(folder / "A.npy", self.A)
            source = folder / "A.npy"
        elif self.source == "raw objects":
            each = -(-len(self.A) // self.code.k)
            keys = [f"mine/{i}" for i in range(-(-len(self.A) // each))]
            for i, key in enumerate(keys):
                store.put(key, self.A[i * each : (i + 1) * each].tobytes())
            source = RawObjects(keys, self.A.shape, self.A.dtype, rows=each)
        options |= {"memory": 1 << 20, "name": NAME, "storage": store, "progress": False}
        return polarmap.encode(source, code=self.code, **options)

    def _damage(self, coded: CodedArray, store: FolderStore, draw: Draw) -> set[tuple[int, int]]:
        """Damage one part, or all parts, of the chosen blocks; return the damaged (block, stripe) pairs."""
        harmed: set[tuple[int, int]] = set()
        for block in self.damaged:
            parts = {stripe: part for stripe, part in enumerate(coded.block_segments(block)) if part.size}
            # All parts are in one object of the caller.
            shared = len({part.key for part in parts.values()}) < len(parts)
            chosen = draw.some(list(parts), 1 if shared or draw.chance(0.5) else len(parts))
            for part in map(parts.__getitem__, chosen):
                spoilt = _harm(store.root / part.key, part.offset, part.size, draw)
                harmed |= {
                    (block, stripe)
                    for stripe, other_part in parts.items()
                    if other_part.key == part.key
                    and other_part.offset < spoilt.stop
                    and other_part.offset + other_part.size > spoilt.start
                }
        return harmed

    # -- checks --------------------------------------------------------------------------------

    def _check_read(self, coded: CodedArray, draw: Draw, lost: set[int]) -> None:
        if (coded.shape, coded.dtype) != (self.A.shape, self.wanted.dtype):
            raise Finding("wrong structure", f"{coded!r} of {self.about}")
        start = draw.number(0, len(self.A) - 1)
        for rows in (slice(None), slice(start, draw.number(start, len(self.A))), slice(start, None, 2)):
            self._compare(coded[rows], self.wanted[rows], self._bound(lost), f"rows {rows} of {coded!r}")

    def _compare(self, actual: np.ndarray, expected: np.ndarray, allowed: float, subject: str) -> None:
        if not self.is_finite:
            oracle.check_structure(actual, expected, subject)
            fine = np.isfinite(expected)
            actual, expected = actual[fine], expected[fine]
        if allowed == 0:
            oracle.check_equal(actual, expected, subject)
        else:
            oracle.check_close(actual, expected, [allowed], subject)

    def _bound(self, lost: set[int]) -> float:
        """Return the tolerance for numbers when these blocks have to be decoded."""
        if not lost or self.A.dtype.kind in "iu":
            return 0.0
        check = np.asarray(self.code.parity_check_matrix, float)
        arrived = [block for block in range(self.code.n) if block not in lost]
        weights = np.linalg.pinv(check[:, sorted(lost)]) @ check[:, arrived]
        max_value = oracle.largest(self.wanted[np.isfinite(self.wanted)])
        amplification = 1 + float(np.linalg.norm(weights, axis=1).max())
        rtol = RTOL[self.wanted.real.dtype.itemsize]
        return max(rtol, SLACK * oracle.epsilon(self.A.dtype) * amplification) * max_value

    def _read_damaged(self, coded: CodedArray, draw: Draw, harmed: set[tuple[int, int]]) -> str:
        executor = ReplayExecutor() if draw.chance(0.5) else None
        audit = coded.check(executor=executor)
        if {(one.block, one.stripe) for one in audit.damaged} != harmed:
            raise Finding("wrong audit", f"{audit!r}, but harmed were {sorted(harmed)}")
        stripes = {stripe: {block for block, at in harmed if at == stripe} for _, stripe in harmed}
        dead = sorted(stripe for stripe, lost in stripes.items() if not self._is_decodable(lost))
        if sorted(audit.undecodable_stripes) != dead:
            raise Finding("wrong audit", f"{audit!r}, but lost are {dead}")
        lost = {block for block, _ in harmed}
        try:
            self._check_read(coded, draw, lost)
            self._check_map(coded, lost)
            opened = polarmap.open_coded(NAME, coded.store) if draw.chance(0.5) else coded
            repaired = opened.repair(executor=executor)
        except NotDecodableError as error:
            if dead or not self.is_finite:
                return "NotDecodableError: too many lost"
            raise Finding("innocent failure", str(error)) from error
        except PolarmapError as error:
            if self.is_finite:
                raise Finding("innocent failure", f"{type(error).__name__}: {error}") from error
            return f"{type(error).__name__}: NaN"
        if dead:
            raise Finding("no error", f"stripes {dead} were lost, and repair() returned {repaired!r}")
        self._check_repaired(coded, draw, lost)
        return "right (repaired)" if harmed else "right"

    def _is_decodable(self, lost: set[int]) -> bool:
        return oracle.is_determined(self.code, lost, exact=self.A.dtype.kind in "iu")

    def _check_map(self, coded: CodedArray, lost: set[int]) -> None:
        """Check that a map of the array is right despite the damage, if it can be decoded."""
        if coded.n - coded.k < len(lost) or not self._is_decodable(lost) or not self.is_finite:
            return
        result = polarmap.coded_map(
            np.negative, coded, executor=ReplayExecutor(), timeout=100.0, progress=False
        )
        wanted = np.negative(self.wanted)
        self._compare(result.concatenate(), wanted, 10 * self._bound(lost or {0}), "the map of an array")

    def _check_repaired(self, coded: CodedArray, draw: Draw, lost: set[int]) -> None:
        for opened in (coded, polarmap.open_coded(NAME, coded.store)):
            if not opened.check().ok:
                raise Finding("wrong repair", repr(opened.check()))
            self._check_read(opened, draw, lost)

    def _check_gone(self, folder: Path, store: FolderStore, before: set[Path]) -> None:
        kept = {folder / "A.npy"} | {store.root / key for key in store.keys("mine/")}
        left = _files(folder) - before - kept
        if left:
            raise Finding("leftovers", f"after delete(): {sorted(map(str, left))}")
        try:
            polarmap.open_coded(NAME, store)
        except MissingObjectError:
            return
        raise Finding("leftovers", "a deleted array can be opened")


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def _harm(path: Path, offset: int, size: int, draw: Draw) -> range:
    """Damage a part of a file; return the range of bytes that differ from before."""
    kind = draw.pick(["missing", "truncated", "corrupt"])
    if kind == "missing":
        path.unlink()
        return range(sys.maxsize)
    if kind == "truncated":
        os.truncate(path, offset + size - 1)
        return range(offset + size - 1, sys.maxsize)
    place, data = offset + draw.number(0, size - 1), bytearray(path.read_bytes())
    data[place] ^= 1 << draw.number(0, 7)
    path.write_bytes(data)
    return range(place, place + 1)


def draw_array(draw: Draw, executor: str) -> ArrayCase:
    """Draw an array, which is stored in a folder for every executor."""
    dtype = draw.dtype()
    k, spare = draw.number(1, 9), draw.number(1, 5)
    rows = k * draw.number(1, 4) + draw.number(0, k - 1)
    k = -(-rows // -(-rows // k))  # Use as many blocks as hold rows.
    wide = 700 if draw.chance(0.1) else draw.number(1, 5)
    A, layout = draw.laid_out(draw.values((rows, wide), dtype))
    if dtype.kind in "fc" and layout != "read-only" and draw.chance(0.05):
        A[draw.number(0, rows - 1), 0] = np.nan
        layout += ", NaN in it"
    kernel = "arikan" if dtype.kind in "iu" else draw.pick(["rotation", "rotation", "arikan"])
    code = PolarCode(k + spare, k, kernel=kernel)
    source = draw.pick({"memory": 5, "npy": 2, "raw objects": 2})
    by_workers = source != "memory" and draw.chance(0.5)
    if source == "raw objects":
        A = np.ascontiguousarray(A, dtype=A.dtype.newbyteorder("="))
    data = range(k, k + spare) if source == "raw objects" and draw.chance(0.3) else range(k + spare)
    damaged = draw.some(data, draw.number(0, spare + draw.chance(0.1)))
    about = f"{A.dtype.str} {list(A.shape)}, {layout}"
    return ArrayCase(draw.seed, A, code, source, by_workers, damaged, about)
