"""An array that lies coded in storage, as callers open and hold it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays import audits, generations, repairing
from polarmap.arrays.audits import Audit
from polarmap.arrays.manifest import Manifest, check_name, manifest_key
from polarmap.arrays.reading import StoredBlocks
from polarmap.arrays.stores import open_store
from polarmap.dtypes import Array
from polarmap.errors import CodeError, StorageError, without_our_frames
from polarmap.executors.keys import readable_key
from polarmap.storage import Store
from polarmap.worker.parts import Part


class CodedArray:
    """An array in storage: k blocks of its rows as they are, and n - k parity blocks.

    Made by `encode` and `open_coded`. Its rows are read by slicing, `coded[i:j]`; parts that are
    missing or damaged are decoded from the others on the way. `numpy.asarray(coded)` reads all.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : numpy.dtype
    n, k : int
        Coded blocks, data blocks.
    rows : int
        Of each block.
    code : PolarCode
    store : Store
    """

    def __init__(self, store: Store, made: Manifest) -> None:
        self.store = store
        self._adopt(made)

    def _adopt(self, made: Manifest) -> None:
        self._blocks = StoredBlocks(self.store, made)
        self.name, self.shape, self.code, self.rows = made.name, made.shape, made.code, made.rows
        self.dtype = made.dtype.newbyteorder("=")
        self.n, self.k = made.code.n, made.code.k

    def __reduce__(self) -> tuple[type, tuple[Store, Manifest]]:
        return CodedArray, (self.store, self._blocks.manifest)

    @property
    def key(self) -> str | bytes | None:
        """What it is encrypted with, as it was passed; None if it is not."""
        return self._blocks.key

    @property
    def padding(self) -> int:
        """Rows of zeros at the end of the last data block."""
        return self._blocks.manifest.padding

    @property
    def executor(self) -> Any:
        """What `coded_map` runs on by default: the Lithops configuration of the storage, if it is one."""
        return getattr(self.store, "executor", None)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes in storage, parity included; without what already lay there when it was encoded."""
        return self._blocks.manifest.owned_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        encrypted = "" if self.key is None else "encrypted, "
        return (
            f"<CodedArray {self.name!r}: {' x '.join(map(str, self.shape))} {self.dtype}, {encrypted}"
            f"{self.k} of {self.n} blocks are data, "
            f"{self.stored_bytes / 2**20:,.1f} MiB in {self.store.name}>"
        )

    @property
    def zarr(self) -> str | None:
        """The Zarr group whose array "data" this is: the path of a folder, else a key in the store.

        None if there is none (the page on the format says when).
        """
        made = self._blocks.manifest
        if made.zarr is None or not made.is_zarr:
            return None
        place, path = self._blocks.part_store.place, made.zarr.path
        return os.path.join(place.place, path) if place.kind == "folder" else path

    def stored(self, index: int) -> tuple[Part, ...]:
        """Where block `index` lies: joined in order, its parts are its bytes."""
        return self._blocks.parts(index)

    def coded_blocks(self) -> StoredBlocks:
        """As `coded_map` takes data that is encoded already: its workers read the parts themselves."""
        return self._blocks

    def layout(self, index: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Dtype and shape of block `index`."""
        return self._blocks.layout(index)

    def __getitem__(self, index: Any) -> Array:
        """All rows, or some by number or slice; what follows in the index is for the inner axes."""
        with without_our_frames:
            rows, *inner = (index if isinstance(index, tuple) else (index,)) or (...,)
            start, stop, first = _row_index(rows, len(self))
            found = self._blocks.read_rows(start, stop)
            try:
                return np.asarray(found[(first, *inner)])
            except (TypeError, ValueError) as error:
                raise CodeError(
                    f"{index!r} is no index of an array of shape {self.shape}: {error}"
                ) from error

    def __iter__(self) -> Iterator[Array]:
        size = self._blocks.manifest.bounds[1] if self.nbytes else 0  # of a stripe
        step = max(1, size // max(1, prod(self.shape[1:])))
        for start in range(0, len(self), step):
            yield from map(np.asarray, self[start : start + step])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a coded array lies in storage: reading it makes a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def check(self, *, executor: Any = None) -> Audit:
        """Read every part and compare it with its checksum; decrypt what is encrypted.

        Parameters
        ----------
        executor : optional
            As for `encode`: its workers read. What is encrypted is read here all the same.

        Returns
        -------
        Audit
            The parts that are missing, truncated, corrupt or forged; prints well.
        """
        with without_our_frames:
            while True:
                known, found = self._blocks.manifest, audits.audit(self._blocks, executor)
                if found.ok or not self._blocks.look_again(known):  # else somebody else has repaired it
                    return found

    def repair(self, *, executor: Any = None) -> Audit:
        """Rebuild damaged parts from the good ones, which stay as they are.

        Integers come back bit for bit, floating numbers to rounding (with new checksums).

        Parameters
        ----------
        executor : optional
            As for `encode`: its workers check and decode, one stripe of all blocks each. Only stripes with
            NaN or inf pass through this process then.

        Returns
        -------
        Audit
            What had been damaged and is whole again; its text names what was rebuilt.

        Raises
        ------
        NotDecodableError
            If too much is lost, or NaN or inf in good parts keep lost entries from being decoded; names
            these, and nothing is changed then. With `executor`, also if workers keep being lost.
        """
        with without_our_frames:
            current, before = _load(self.store, self.name, self.key)
            repaired, found = repairing.repair(StoredBlocks(self.store, current), before, executor)
            self._adopt(repaired)
            return found

    def delete(self) -> None:
        """Remove the array from storage, but not what already lay there when it was encoded."""
        with without_our_frames:
            self.store.delete([manifest_key(self.name)])
            generations.sweep(self.store, self.name)


def open_coded(name: str, storage: Any = None, *, key: str | bytes | None = None) -> CodedArray:
    """The coded array of that name.

    Parameters
    ----------
    name : str
    storage : optional
        Where it lies, as for `encode`.
    key : optional
        Of an encrypted array, as for `encode`; told here only, also for maps of it.

    Raises
    ------
    MissingObjectError
        If there is none; says which there are.
    StorageError
        If its manifest is damaged or of another version, the storage cannot be used, or the key is missing,
        another one, or given for an array that is not encrypted.
    CodeError
        For a key that is none, or is not where it says.
    """
    with without_our_frames:
        store = open_store(storage)
        found, _ = _load(store, check_name(name), None if key is None else readable_key(key))
        return CodedArray(store, found)


def _load(store: Store, name: str, key: str | bytes | None) -> tuple[Manifest, bytes]:
    """The manifest of an array that is to be read, and its bytes; StorageError also if it lacks its key."""
    found, data = generations.load(store, name, key)
    if found.encryption is not None and key is None:
        raise StorageError(
            f"the coded array {name!r} in {store.name} is encrypted: pass its key, "
            f"open_coded({name!r}, ..., key='env:NAME') or key='file:PATH' or the 32 bytes"
        )
    return found, data


def without_key(name: str, storage: Any = None) -> CodedArray:
    """The coded array of that name, also if it is encrypted, to tell of it without reading its data."""
    store = open_store(storage)
    return CodedArray(store, generations.load(store, check_name(name))[0])


def list_coded(storage: Any = None) -> list[str]:
    """The names of the coded arrays in a storage, sorted.

    Parameters
    ----------
    storage : optional
        As for `encode`.
    """
    with without_our_frames:
        return generations.names(open_store(storage))


def _row_index(rows: Any, count: int) -> tuple[int, int, Any]:
    """The first and last of the `count` rows to read for an index `rows`, and the index into those read.

    >>> _row_index(-1, 5), _row_index(slice(1, None, 2), 5)
    ((4, 5, 0), (1, 5, slice(None, None, 2)))
    """
    if rows is Ellipsis:
        return 0, count, rows
    try:
        if isinstance(rows, (bool, np.bool_)):
            raise TypeError
        found = range(count)[rows]
    except IndexError:
        raise IndexError(f"row {rows} is out of range: the coded array has {count} rows") from None
    except (TypeError, ValueError):
        raise CodeError(
            f"rows of a coded array are read by number or slice, not {rows!r}: read the rows from the "
            "first to the last, coded[i:j], and index these"
        ) from None
    if isinstance(found, int):
        return found, found + 1, 0
    if found.step < 1:
        raise CodeError(f"rows of a coded array are read forwards, not with step {found.step}")
    return found.start, max(found.start, found.stop), slice(None, None, found.step)
