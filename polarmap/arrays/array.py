"""Coded arrays: encoded once, kept in storage, mapped many times."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from polarmap.arrays import audit, encode_remotely, fetch, manifest
from polarmap.arrays import encode as encoding
from polarmap.arrays.audit import Audit
from polarmap.arrays.keys import check_name
from polarmap.arrays.manifest import Manifest
from polarmap.arrays.nonfinite import NonFiniteRecord
from polarmap.arrays.sources import open_source
from polarmap.arrays.stores import open_store, place_of
from polarmap.arrays.stripes import plan_stripes
from polarmap.blocks.choose_code import choose_polar_code
from polarmap.blocks.equal import check_array, checked_count
from polarmap.blocks.stored import StoredBlocks
from polarmap.code.polar import PolarCode
from polarmap.errors import CodeError
from polarmap.run.progress import is_wanted, open_count
from polarmap.storage.base import Store
from polarmap.worker.parts import DamagedError, Part

Array = npt.NDArray[Any]

MEMORY = 256 << 20
LEAST_MEMORY = 1 << 20


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
        Of each block. The last data block ends with `padding` rows of zeros.
    code : PolarCode
    nbytes : int
        Of the data.
    stored_bytes : int
        In storage, parity included; without what already lay there when it was encoded.
    store : Store
    """

    def __init__(self, store: Store, made: Manifest) -> None:
        self.store = store
        self._adopt(made)

    def _adopt(self, made: Manifest) -> None:
        self._manifest = made
        self.name, self.shape, self.code, self.rows = made.name, made.shape, made.code, made.rows
        self.dtype = made.dtype.newbyteorder("=")
        self.n, self.k = made.code.n, made.code.k

    @property
    def padding(self) -> int:
        """Rows of zeros at the end of the last data block."""
        return self.k * self.rows - self.shape[0]

    @property
    def executor(self) -> Any:
        """What `coded_map` runs on by default: the Lithops configuration of the storage, if it is one."""
        return getattr(self.store, "executor", None)

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def stored_bytes(self) -> int:
        """Bytes in storage that exist for this array."""
        return audit.owned_bytes(self._manifest)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return (
            f"<CodedArray {self.name!r}: {' x '.join(map(str, self.shape))} {self.dtype}, "
            f"{self.k} of {self.n} blocks are data, "
            f"{self.stored_bytes / 2**20:,.1f} MiB in {self.store.name}>"
        )

    def stored(self, index: int) -> tuple[Part, ...]:
        """Where block `index` lies: joined in order, its parts are its bytes."""
        return self._manifest.parts[index]

    def coded_blocks(self) -> StoredBlocks:
        """As `coded_map` takes data that is encoded already: its workers read the parts themselves."""
        made, source = self._manifest, place_of(self.store)
        readers = (self._read_block, self._read_as_stored)
        return StoredBlocks(
            made.code, source, made.parts, made.dtype, made.block_shape, self.padding, *readers
        )

    def _read_block(self, index: int) -> Array:
        """Data block `index`; what is damaged of it is decoded."""
        if index >= self.k:
            return self._read_as_stored(index)
        return self._read(index * self.rows, (index + 1) * self.rows).reshape(self._manifest.block_shape)

    def _read_as_stored(self, index: int) -> Array:
        """Block `index`; DamagedError if it is not what was stored."""
        stripes = []
        with ThreadPoolExecutor(fetch.TRANSFERS) as pool:
            for stripe in range(len(self._manifest.parts[index])):
                good, damaged = fetch.fetch_blocks(self.store, self._manifest, stripe, [index], pool)
                for damage in damaged:
                    raise DamagedError(f"{damage.key} is {damage.kind}")
                stripes.append(good[index])
        dtype = self._manifest.dtype_of(index).newbyteorder("=")
        return np.concatenate([np.empty(0, dtype), *stripes]).reshape(self._manifest.block_shape)

    def layout(self, index: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Dtype and shape of block `index`."""
        return ((self._manifest.dtype_of(index).str, self._manifest.block_shape),)

    def __getitem__(self, index: Any) -> Array:
        """All rows, or some by number or slice; what follows in the index is for the inner axes."""
        rows, *inner = (index if isinstance(index, tuple) else (index,)) or (...,)
        start, stop, first = self._rows(rows)
        found = self._read(start, stop)
        try:
            return np.asarray(found[(first, *inner)])
        except (TypeError, ValueError) as error:
            raise CodeError(f"{index!r} is no index of an array of shape {self.shape}: {error}") from error

    def _rows(self, rows: Any) -> tuple[int, int, Any]:
        """The rows that an index of the first axis asks for, and what it is once these are read."""
        if rows is Ellipsis:
            return 0, len(self), rows
        if isinstance(rows, slice):
            return self._run(rows)
        try:
            if isinstance(rows, (bool, np.bool_)):
                raise TypeError
            number = operator.index(rows)
        except TypeError:
            raise CodeError(
                f"rows of a coded array are read by number or slice, not {rows!r}: read the rows from the "
                "first to the last, coded[i:j], and index these"
            ) from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} is out of range: the coded array has {len(self)} rows")
        number %= len(self)
        return number, number + 1, 0

    def _run(self, rows: slice) -> tuple[int, int, slice]:
        """The same, for a slice."""
        try:
            start, stop, step = rows.indices(len(self))
        except (TypeError, ValueError) as error:
            raise CodeError(f"rows of a coded array cannot be read by {rows}: {error}") from error
        if step < 1:
            raise CodeError(f"rows of a coded array are read forwards, not with step {step}")
        return start, max(start, stop), slice(None, None, step)

    def __iter__(self) -> Iterator[Array]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a coded array lies in storage: reading it makes a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def _read(self, start: int, stop: int) -> Array:
        """Rows start..stop; no more is held than these and one stripe of each block."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        flat, width = out.reshape(-1), prod(self.shape[1:])
        with ThreadPoolExecutor(fetch.TRANSFERS) as pool:
            for block in range(start // self.rows, -(-stop // self.rows)):
                base = block * self.rows * width  # of this block, in elements of the whole
                first, last = max(start * width, base), min(stop * width, base + self.rows * width)
                for stripe, (low, high) in enumerate(zip(self._manifest.bounds, self._manifest.bounds[1:])):
                    low, high = max(first, base + low), min(last, base + high)
                    if low < high:
                        offset = base + self._manifest.bounds[stripe]
                        columns = slice(low - offset, high - offset)
                        part = fetch.read_stripe(self.store, self._manifest, stripe, block, columns, pool)
                        flat[low - start * width : high - start * width] = part
        return out

    def check(self) -> Audit:
        """Read every part and compare it with its checksum.

        Returns
        -------
        Audit
            The parts that are missing, truncated or corrupt; prints well.
        """
        return audit.audit(self.store, self._manifest)

    def repair(self) -> Audit:
        """Rebuild damaged parts from the good ones, of which nothing is touched.

        Integers come back bit for bit, floating numbers to rounding (with new checksums). Memory:
        one stripe of all blocks, data and parity, as for `encode`.

        Returns
        -------
        Audit
            What had been damaged and is whole again.

        Raises
        ------
        NotDecodableError
            If too much is lost, or NaN or inf in good parts keep lost entries from being decoded; names
            these, and nothing is changed then.
        """
        standing, before = manifest.load_as_stored(self.store, self.name)
        repaired, found = audit.repair(self.store, standing, before)
        self._adopt(repaired)
        return found

    def delete(self) -> None:
        """Remove the array from storage, but not what already lay there when it was encoded."""
        audit.delete(self.store, self.name)


def encode(
    A: Any,
    *,
    blocks: int | None = None,
    workers: int | None = None,
    code: str | PolarCode = "auto",
    name: str,
    storage: Any = None,
    overwrite: bool = False,
    memory: int = MEMORY,
    executor: Any = None,
    progress: bool | None = None,
) -> CodedArray:
    """Encode an array once and keep it in storage.

    The rows are cut into k equal blocks, which are stored as they are, and n - k parity blocks are
    added. A matrix is never loaded whole: the blocks are read and encoded in stripes. If encoding
    is cut short, nothing can be opened, and the next call with the same arguments goes on where it
    stopped (it reads the finished part of the data again, and encodes anew what has changed).

    Parameters
    ----------
    A : array-like or path
        Anything with shape, dtype and slicing: numpy, memmap, Zarr, HDF5, dask; the path of a .npy
        file; `RawObjects` or `ZarrObjects` that lie in the storage already and are not copied then.
        Float16/32/64, complex64/128 and integers.
    blocks, workers, code : optional
        k, n and the code, as for `coded_map`.
    name : str
        What to call it: letters, digits, '.', '_' and '-'.
    storage : optional
        None: a folder of the user ($POLARMAP_STORE, or polarmap/ in the XDG data folder). The path
        of a folder. The path of a Lithops YAML configuration or a `lithops.FunctionExecutor`: its
        storage. A store (see polarmap.storage.base).
    overwrite : bool
        Replace an array of that name; it stays until the new one is complete.
    memory : int
        Bytes that all stripes in memory may take together, at least 1 MiB. The larger, the fewer
        and larger the stored objects; Zarr and HDF5 chunks should fit, blocks times over.
    executor : optional
        As for `coded_map`: its workers encode, one stripe of all blocks each, and nothing passes
        through this process. They must reach the data (a .npy file or memory map on this machine,
        or raw blocks in the storage) and the storage. `memory` then is that of a worker.
    progress : bool, optional
        Show a bar; by default when standard error is a terminal.

    Returns
    -------
    CodedArray

    Warns
    -----
    RuntimeWarning
        NaN or inf are among the data, or the parity overflows: how many and where the first is. What is
        lost in the same places of other blocks cannot be decoded; all else can.

    Raises
    ------
    CodeError
        Data, sizes or dtypes that cannot be coded.
    StorageError
        The name is taken or bad, or the storage cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> coded = encode(np.arange(12).reshape(6, 2), blocks=3, name="small", storage=folder.name)
    >>> coded[2:4].tolist()
    [[4, 5], [6, 7]]
    >>> coded.check()
    <Audit of 'small': 4 blocks of 1 parts, all good>
    >>> folder.cleanup()
    """
    check_name(name)
    shown = is_wanted(progress)
    if not isinstance(overwrite, (bool, int, np.bool_)):
        raise CodeError(f"overwrite must be True or False, not {overwrite!r:.100}")
    if checked_count("memory", memory) < LEAST_MEMORY:
        raise CodeError(
            f"memory={memory} bytes is too little for a stripe: use at least {LEAST_MEMORY} (1 MiB)"
        )
    if hasattr(A, "shape") and hasattr(A, "dtype") and not hasattr(A, "open_in"):
        check_array(A, "A")
    if isinstance(A, np.matrix):
        raise CodeError("A is a matrix, and f would see arrays of a coded one: use numpy.asarray(A), and @")
    store = open_store(storage)
    source = open_source(A, store)
    check_array(source)
    chosen = choose_polar_code(source.shape[0], source.dtype, blocks, workers, code)
    cut = plan_stripes(chosen, source.shape, source.dtype, int(memory), source.chunk_rows, source.object_rows)
    seen = NonFiniteRecord(cut)
    if executor is not None:
        write = encode_remotely.writing(store, source, cut, seen, executor, progress)
        made = encoding.encode(store, name, cut, overwrite, write)
    else:
        with open_count(len(cut.hyperslabs), shown) as show:
            write = encoding.writing(store, source, cut, seen, show)
            made = encoding.encode(store, name, cut, overwrite, write)
    seen.warn()
    return CodedArray(store, made)


def open_coded(name: str, storage: Any = None) -> CodedArray:
    """The coded array of that name.

    Parameters
    ----------
    name : str
    storage : optional
        Where it lies, as for `encode`.

    Raises
    ------
    MissingObjectError
        If there is none; says which there are.
    StorageError
        If its manifest is damaged or of another version, or the storage cannot be used.
    """
    store = open_store(storage)
    return CodedArray(store, manifest.load(store, check_name(name)))


def list_coded(storage: Any = None) -> list[str]:
    """The names of the coded arrays in a storage, sorted.

    Parameters
    ----------
    storage : optional
        As for `encode`.
    """
    return manifest.names(open_store(storage))
