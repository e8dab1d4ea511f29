"""An array that lies coded in storage, as callers open and hold it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from polarmap.arrays import audits, repairing, write_transaction
from polarmap.arrays.audits import Audit
from polarmap.arrays.manifest import Manifest, check_array_name, get_manifest_key
from polarmap.arrays.reading import StoredCodedBlocks
from polarmap.arrays.stores import open_store
from polarmap.dtypes import Array
from polarmap.errors import CodeError, StorageError, trimmed_tracebacks
from polarmap.executors.encryption_keys import check_encryption_key
from polarmap.storage import Store
from polarmap.worker.segments import Segment


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
    rows_per_block : int
        Of each block.
    code : PolarCode
    store : Store
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self._set_manifest(manifest)

    def _set_manifest(self, manifest: Manifest) -> None:
        self._coded_blocks = StoredCodedBlocks(self.store, manifest)
        self.name, self.shape, self.code = manifest.name, manifest.shape, manifest.code
        self.rows_per_block = manifest.rows_per_block
        self.dtype = manifest.dtype.newbyteorder("=")
        self.n, self.k = manifest.code.n, manifest.code.k

    def __reduce__(self) -> tuple[type, tuple[Store, Manifest]]:
        return CodedArray, (self.store, self._coded_blocks.manifest)

    @property
    def key(self) -> str | bytes | None:
        """What it is encrypted with, as it was passed; None if it is not."""
        return self._coded_blocks.encryption_key

    @property
    def padding(self) -> int:
        """Rows of zeros at the end of the last data block."""
        return self._coded_blocks.manifest.n_padding_rows

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
        return self._coded_blocks.manifest.owned_bytes

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
    def zarr_path(self) -> str | None:
        """The Zarr group whose array "data" this is: the path of a folder, else a key in the store.

        None if there is none (the page on the format says when).
        """
        manifest = self._coded_blocks.manifest
        if manifest.zarr_view is None or not manifest.has_zarr_array:
            return None
        location, path = self._coded_blocks.segment_store.location, manifest.zarr_view.path
        return location.get_path(path) or path

    def block_segments(self, block_index: int) -> tuple[Segment, ...]:
        """Where block `block_index` lies: joined in order, its parts are its bytes."""
        return self._coded_blocks.block_segments(block_index)

    def coded_blocks(self) -> StoredCodedBlocks:
        """As `coded_map` takes data that is encoded already: its workers read the parts themselves."""
        return self._coded_blocks

    def block_layout(self, block_index: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Dtype and shape of block `block_index`."""
        return self._coded_blocks.block_layout(block_index)

    def __getitem__(self, index: Any) -> Array:
        """All rows, or some by number or slice; what follows in the index is for the inner axes."""
        with trimmed_tracebacks:
            row_selection, *inner_index = (index if isinstance(index, tuple) else (index,)) or (...,)
            start, stop, row_index = _resolve_row_index(row_selection, len(self))
            rows_read = self._coded_blocks.read_rows(start, stop)
            try:
                return np.asarray(rows_read[(row_index, *inner_index)])
            except (TypeError, ValueError) as error:
                raise CodeError(
                    f"{index!r} is no index of an array of shape {self.shape}: {error}"
                ) from error

    def __iter__(self) -> Iterator[Array]:
        stripe_size = self._coded_blocks.manifest.stripe_bounds[1] if self.nbytes else 0  # of a stripe
        n_rows = max(1, stripe_size // max(1, prod(self.shape[1:])))
        for start in range(0, len(self), n_rows):
            yield from map(np.asarray, self[start : start + n_rows])

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
        with trimmed_tracebacks:
            while True:
                manifest = self._coded_blocks.manifest
                audit = audits.audit_array(self._coded_blocks, executor)
                # else somebody else has repaired it
                if audit.ok or not self._coded_blocks.refresh_manifest(manifest):
                    return audit

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
        with trimmed_tracebacks:
            manifest, manifest_bytes = _load_manifest(self.store, self.name, self.key)
            coded_blocks = StoredCodedBlocks(self.store, manifest)
            repaired_manifest, audit = repairing.repair_array(coded_blocks, manifest_bytes, executor)
            self._set_manifest(repaired_manifest)
            return audit

    def delete(self) -> None:
        """Remove the array from storage, but not what already lay there when it was encoded."""
        with trimmed_tracebacks:
            self.store.delete([get_manifest_key(self.name)])
            write_transaction.collect_garbage(self.store, self.name)


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
    with trimmed_tracebacks:
        store = open_store(storage)
        checked_key = None if key is None else check_encryption_key(key)
        manifest, _ = _load_manifest(store, check_array_name(name), checked_key)
        return CodedArray(store, manifest)


def _load_manifest(store: Store, array_name: str, key: str | bytes | None) -> tuple[Manifest, bytes]:
    """The manifest of an array that is to be read, and its bytes; StorageError also if it lacks its key."""
    manifest, manifest_bytes = write_transaction.load_manifest(store, array_name, key)
    if manifest.encryption is not None and key is None:
        raise StorageError(
            f"the coded array {array_name!r} in {store.name} is encrypted: pass its key, "
            f"open_coded({array_name!r}, ..., key='env:NAME') or key='file:PATH' or the 32 bytes"
        )
    return manifest, manifest_bytes


def open_without_key(array_name: str, storage: Any = None) -> CodedArray:
    """The coded array of that name, also if it is encrypted, to tell of it without reading its data."""
    store = open_store(storage)
    return CodedArray(store, write_transaction.load_manifest(store, check_array_name(array_name))[0])


def list_coded(storage: Any = None) -> list[str]:
    """The names of the coded arrays in a storage, sorted.

    Parameters
    ----------
    storage : optional
        As for `encode`.
    """
    with trimmed_tracebacks:
        return write_transaction.list_array_names(open_store(storage))


def _resolve_row_index(row_selection: Any, n_rows: int) -> tuple[int, int, Any]:
    """The first and last of the `n_rows` rows to read for an index `row_selection`, and the index into those
    read.

    >>> _resolve_row_index(-1, 5), _resolve_row_index(slice(1, None, 2), 5)
    ((4, 5, 0), (1, 5, slice(None, None, 2)))
    """
    if row_selection is Ellipsis:
        return 0, n_rows, row_selection
    try:
        if isinstance(row_selection, (bool, np.bool_)):
            raise TypeError
        selected = range(n_rows)[row_selection]
    except IndexError:
        raise IndexError(f"row {row_selection} is out of range: the coded array has {n_rows} rows") from None
    except (TypeError, ValueError):
        raise CodeError(
            f"rows of a coded array are read by number or slice, not {row_selection!r}: read the rows from "
            "the first to the last, coded[i:j], and index these"
        ) from None
    if isinstance(selected, int):
        return selected, selected + 1, 0
    if selected.step < 1:
        raise CodeError(f"rows of a coded array are read forwards, not with step {selected.step}")
    return selected.start, max(selected.start, selected.stop), slice(None, None, selected.step)
