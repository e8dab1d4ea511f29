"""The verb that encodes an array once and keeps it in storage."""

from __future__ import annotations

from typing import Any

import numpy as np

from polarmap.arrays.array import CodedArray
from polarmap.arrays.array_jobs import ArrayJobRunner
from polarmap.arrays.manifest import check_array_name
from polarmap.arrays.sources import open_data_source
from polarmap.arrays.stores import SegmentStore, open_store
from polarmap.arrays.stripe_encoder import StripeEncoder
from polarmap.arrays.stripes import plan_stripes
from polarmap.blocks.code_choice import CodeName, choose_polar_code
from polarmap.codes.polar import PolarCode
from polarmap.driver.events import JobContext
from polarmap.driver.prepared_map import PreparedMap, map_function
from polarmap.errors import CodeError
from polarmap.executors.encryption_keys import check_encryption_key
from polarmap.validation import check_positive_int

DEFAULT_MEMORY_BYTES = 256 << 20
MIN_MEMORY_BYTES = 1 << 20


@map_function
def encode(
    A: Any,
    *,
    blocks: int | None = None,
    tasks: int | None = None,
    code: CodeName | PolarCode = "auto",
    name: str,
    storage: Any = None,
    overwrite: bool = False,
    memory: int = DEFAULT_MEMORY_BYTES,
    executor: Any = None,
    key: str | bytes | None = None,
    progress: bool | None = None,
) -> PreparedMap[CodedArray]:
    """Encode an array once and keep it in storage.

    The rows are cut into k blocks of ceil(rows / k) rows, none of which is empty, and n - k parity blocks
    are added. Data blocks are stored as they are, the last one filled up with rows of zeros if need be. They
    are a Zarr v3 array, which other libraries open too (`CodedArray.zarr_path`). They are read and encoded in
    stripes. If encoding is cut short, nothing can be opened, and the next call with the same arguments goes
    on where it stopped.

    Parameters
    ----------
    A : array-like or path
        Floats, complex numbers or integers in anything with shape, dtype and slicing (numpy, memmap, Zarr,
        HDF5, dask), a table, a tensor or a .npy file; `RawObjects` or `ZarrObjects` are not copied.
    blocks, tasks, code : optional
        k, n and the code, as for `coded_map`.
    name : str
        What to call it: letters, digits, '.', '_' and '-'.
    storage : optional
        The path of a folder, by default $POLARMAP_STORE or polarmap/ in the XDG data folder; that of a
        Lithops YAML configuration or a `lithops.FunctionExecutor`: its storage; a store.
    overwrite : bool
        Replace an array of that name; it stays until the new one is complete.
    memory : int
        Bytes that all stripes in memory may take together, here or of a worker, at least 1 MiB. The larger,
        the fewer and larger the stored objects; Zarr and HDF5 chunks should fit, blocks times over.
    executor : optional
        As for `coded_map`: its workers encode, one stripe of all blocks each. They must reach the storage and
        the data: a .npy file or memory map on this machine, or raw blocks in the storage.
    key : str or bytes, optional
        Encrypt what is stored (extra `crypto`): "env:NAME" or "file:PATH", where this process and workers
        find the key, as 64 hexadecimal digits; or its 32 bytes, for workers on this machine.
    progress : bool, optional
        Show a bar; by default when standard error is a terminal.

    Returns
    -------
    CodedArray

    Warns
    -----
    RuntimeWarning
        NaN or inf are among the data, or the parity overflows: how many and where the first is.

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

    def execute(context: JobContext) -> CodedArray:
        check_array_name(name)
        if not isinstance(overwrite, (bool, int, np.bool_)):
            raise CodeError(f"overwrite must be True or False, not {overwrite!r:.100}")
        if check_positive_int("memory", memory) < MIN_MEMORY_BYTES:
            raise CodeError(
                f"memory={memory} bytes is too little for a stripe: use at least {MIN_MEMORY_BYTES} (1 MiB)"
            )
        store = open_store(storage)
        source = open_data_source(A, store)
        polar_code = choose_polar_code(source.shape[0], source.dtype, blocks, tasks, code)
        stripe_plan = plan_stripes(
            polar_code, source.shape, source.dtype, int(memory), source.rows_per_chunk, source.rows_per_object
        )
        if key is not None:
            if source.rows_per_object:
                raise CodeError(
                    "key= encrypts what is stored, and these objects stay where and as they are: leave key "
                    "out, or encode the array that they were made of"
                )
            # no library but this one could read the chunks
            stripe_plan = stripe_plan._replace(chunk_shape=None)
        max_segment_bytes = stripe_plan.max_stripe_size * max(
            stripe_plan.dtype.itemsize, stripe_plan.parity_dtype.itemsize
        )
        segment_store = SegmentStore.create(
            store, None if key is None else check_encryption_key(key), max_segment_bytes
        )
        runner = ArrayJobRunner(segment_store, executor, context)
        return CodedArray(
            store, StripeEncoder(runner, source, stripe_plan).encode_and_store_array(name, overwrite)
        )

    return PreparedMap(execute, is_stored=True)
