"""`CodedArray`, an array in storage that can be repaired, and functions to open and list such arrays.

    coded = open_coded("A", storage=folder)  # does not read the data yet
    coded[10:20]                             # reads rows, and decodes damaged parts
    coded.check()                            # compares all stored bytes with their checksums
    coded.repair()                           # rebuilds damaged parts from intact ones

`encoding.encode` writes such an array, and `coded_map` accepts it as data.
"""

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
    """An array that is kept in storage with redundancy, so that lost or damaged parts can be rebuilt.

    The rows are stored as k data blocks, together with n - k parity blocks. Create a coded array with
    `encode`, and open it again with `open_coded`. Slicing reads rows, as in `coded[i:j]`, and
    `numpy.asarray(coded)` reads the whole array. If stored bytes are missing or damaged, they are decoded
    from the other blocks on the fly. Coded maps accept coded arrays as data.

    Attributes
    ----------
    name : str
        The name of the array in its storage.
    shape : tuple of int
        The shape of the whole array, without padding.
    dtype : numpy.dtype
        The dtype of the data, in native byte order.
    n, k : int
        The total number of blocks, and the number of data blocks among them.
    rows_per_block : int
        The number of rows in each block, ceil(rows / k).
    code : PolarCode
        The code that was used to compute the parity blocks.
    store : Store
        The storage that holds the array.
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
        """The encryption key, as the user passed it, or None if the array is not encrypted."""
        return self._coded_blocks.encryption_key

    @property
    def padding(self) -> int:
        """The number of rows that were added to fill the last data block, and are not part of the array."""
        return self._coded_blocks.manifest.n_padding_rows

    @property
    def executor(self) -> Any:
        """The executor that `coded_map` uses for this array by default, or None.

        If a Lithops executor or configuration path was passed as `storage`, it is also the default executor.
        """
        return getattr(self.store, "executor", None)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the array in memory, in bytes, without parity blocks and padding."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """The number of bytes that the array occupies in storage, including its parity blocks.

        Objects that were already in the storage, and that `encode` did not copy, do not count.
        """
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
        """The place where other libraries can open the rows as a Zarr array, without polarmap.

        This is the path of a Zarr group, or its key in the store. The rows are its array "data". The value is
        None if there is no Zarr array, for example because the coded array is encrypted. The page on the
        storage format lists all such cases.
        """
        manifest = self._coded_blocks.manifest
        if manifest.zarr_view is None or not manifest.has_zarr_array:
            return None
        location, path = self._coded_blocks.segment_store.location, manifest.zarr_view.path
        return location.get_path(path) or path

    def block_segments(self, block_index: int) -> tuple[Segment, ...]:
        """Return where a block is stored, as a tuple of segments (byte ranges of stored objects).

        Concatenating the bytes of the segments gives the bytes of the block.
        """
        return self._coded_blocks.block_segments(block_index)

    def coded_blocks(self) -> StoredCodedBlocks:
        """Return the stored blocks as task inputs for `coded_map`. Workers read the blocks from storage."""
        return self._coded_blocks

    def block_layout(self, block_index: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the dtype and shape of a block, as a tuple that contains one (dtype, shape) pair."""
        return self._coded_blocks.block_layout(block_index)

    def __getitem__(self, index: Any) -> Array:
        """Read rows from storage into a numpy array.

        The first index selects one row (an integer), several rows (a slice with a positive step) or all rows
        (`...`). Further indices are applied to the other axes of these rows.
        """
        with trimmed_tracebacks:
            row_selection, *inner_index = (index if isinstance(index, tuple) else (index,)) or (...,)
            start, stop, row_index = _resolve_row_index(row_selection, len(self))
            rows_read = self._coded_blocks.read_rows(start, stop)
            try:
                return np.asarray(rows_read[(row_index, *inner_index)])
            except (TypeError, ValueError) as error:
                raise CodeError(
                    f"{index!r} is not a valid index of an array of shape {self.shape}: {error}"
                ) from error

    def __iter__(self) -> Iterator[Array]:
        # Reading rows in batches avoids a request per row. A batch has the size of a stored piece of a block
        # (one stripe), so that it fits into memory.
        stripe_size = self._coded_blocks.manifest.stripe_bounds[1] if self.nbytes else 0
        n_rows = max(1, stripe_size // max(1, prod(self.shape[1:])))
        for start in range(0, len(self), n_rows):
            yield from map(np.asarray, self[start : start + n_rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(
                "a coded array is read from storage, which always makes a copy: leave copy=False out"
            )
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def check(self, *, executor: Any = None) -> Audit:
        """Check the stored array for missing and damaged parts.

        All stored bytes are read and verified against their checksums. Encrypted parts are also decrypted.

        Parameters
        ----------
        executor : optional
            The executor whose workers read the array, as for `encode`. By default, this process reads it. An
            encrypted array is always read by this process.

        Returns
        -------
        Audit
            The parts that are missing, truncated, corrupt or forged. Print it to see a list.
        """
        with trimmed_tracebacks:
            while True:
                manifest = self._coded_blocks.manifest
                audit = audits.audit_array(self._coded_blocks, executor)
                # If another process has repaired the array in the meantime, check it again.
                if audit.ok or not self._coded_blocks.refresh_manifest(manifest):
                    return audit

    def repair(self, *, executor: Any = None) -> Audit:
        """Find missing and damaged parts of the stored array, and rebuild them from the intact parts.

        Integers are restored bit for bit. Floating-point numbers are restored up to rounding, so their parts
        get new checksums.

        Parameters
        ----------
        executor : optional
            The executor whose workers check and decode the array, as for `encode`. Each task handles one
            stripe (the same slice of every block). Stripes that contain NaN or inf are decoded in this
            process.

        Returns
        -------
        Audit
            The damage that was found and repaired. Print it to see a list.

        Raises
        ------
        NotDecodableError
            If too many parts are lost, or if lost entries cannot be decoded because intact parts contain NaN
            or inf at the same position. The message names these entries, and the array is not changed. With
            `executor`, also if workers are lost repeatedly.
        """
        with trimmed_tracebacks:
            manifest, manifest_bytes = _load_manifest(self.store, self.name, self.key)
            coded_blocks = StoredCodedBlocks(self.store, manifest)
            repaired_manifest, audit = repairing.repair_array(coded_blocks, manifest_bytes, executor)
            self._set_manifest(repaired_manifest)
            return audit

    def delete(self) -> None:
        """Delete the array from storage.

        Objects that were already in the storage, and that `encode` did not copy, are not deleted.
        """
        with trimmed_tracebacks:
            self.store.delete([get_manifest_key(self.name)])
            write_transaction.collect_garbage(self.store, self.name)


def open_coded(name: str, storage: Any = None, *, key: str | bytes | None = None) -> CodedArray:
    """Open a coded array that `encode` or a coded map has stored.

    Parameters
    ----------
    name : str
        The name of the array.
    storage : optional
        The storage that holds the array, as for `encode`.
    key : str or bytes, optional
        The key of an encrypted array, as for `encode`. Coded maps of the array then need no `key` argument.

    Returns
    -------
    CodedArray
        The array. Only its manifest (the document that describes it) has been read so far.

    Raises
    ------
    MissingObjectError
        If the array does not exist. The message lists the existing ones.
    StorageError
        If the manifest is damaged or has an unknown version, if the storage cannot be used, if the key is
        missing or wrong, or if a key is passed for an array that is not encrypted.
    CodeError
        If the key is invalid, or if it cannot be read from its environment variable or file.
    """
    with trimmed_tracebacks:
        store = open_store(storage)
        checked_key = None if key is None else check_encryption_key(key)
        manifest, _ = _load_manifest(store, check_array_name(name), checked_key)
        return CodedArray(store, manifest)


def _load_manifest(store: Store, array_name: str, key: str | bytes | None) -> tuple[Manifest, bytes]:
    """Load the manifest, which describes a coded array, and return it together with its bytes.

    Raises StorageError if the array is encrypted but `key` is None.
    """
    manifest, manifest_bytes = write_transaction.load_manifest(store, array_name, key)
    if manifest.encryption is not None and key is None:
        raise StorageError(
            f"the coded array {array_name!r} in {store.name} is encrypted: pass its key, "
            f"open_coded({array_name!r}, ..., key='env:NAME') or key='file:PATH' or the 32 bytes"
        )
    return manifest, manifest_bytes


def open_without_key(array_name: str, storage: Any = None) -> CodedArray:
    """Open a coded array without its encryption key, to show its properties.

    If the array is encrypted, its data cannot be read.
    """
    store = open_store(storage)
    return CodedArray(store, write_transaction.load_manifest(store, check_array_name(array_name))[0])


def list_coded(storage: Any = None) -> list[str]:
    """List the names of all coded arrays in storage.

    Parameters
    ----------
    storage : optional
        The storage to look in, as for `encode`.

    Returns
    -------
    list of str
        The names in alphabetical order. Pass one of them to `open_coded`.
    """
    with trimmed_tracebacks:
        return write_transaction.list_array_names(open_store(storage))


def _resolve_row_index(row_selection: Any, n_rows: int) -> tuple[int, int, Any]:
    """Return the row range (start, stop) to read for an index, and the index to apply to these rows.

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
            f"the row index of a coded array must be an integer or a slice, not {row_selection!r}: read a "
            "range of rows with coded[i:j], and index the result"
        ) from None
    if isinstance(selected, int):
        return selected, selected + 1, 0
    if selected.step < 1:
        raise CodeError(f"the step of a row slice of a coded array must be positive, not {selected.step}")
    return selected.start, max(selected.start, selected.stop), slice(None, None, selected.step)
