"""`encode`, which encodes an array once and keeps it in storage for many coded maps.

    coded = encode(A, name="A", storage=folder)
    coded_map(f, coded)                          # as often as needed, without encoding A again

The function validates its arguments and plans the stripes. A `StripeEncoder` then encodes and stores the
array.
"""

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
from polarmap.driver.options import Progress
from polarmap.driver.prepared_map import PreparedMap, map_function
from polarmap.errors import CodeError
from polarmap.executors.encryption_keys import check_encryption_key
from polarmap.validation import check_positive_int

DEFAULT_MEMORY_BYTES = 256 << 20  # default memory budget for encoding, in bytes
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
    progress: Progress = None,
) -> PreparedMap[CodedArray]:
    """Encode an array once and store it, so that many coded maps can use it and lost parts can be rebuilt.

    The rows are split into k data blocks of ceil(rows / k) rows, and n - k parity blocks are added. If
    necessary, the last data block is padded with zero rows. The data blocks are stored unchanged, as a Zarr
    v3 array that other libraries can open (`CodedArray.zarr_path`). The data is read and encoded in pieces
    (stripes), so it need not fit into memory. If encoding is interrupted, no array is created, but the next
    call with the same arguments resumes where this one stopped.

    Parameters
    ----------
    A : array-like or path
        Floats, complex numbers or integers in any object with shape, dtype and slicing (numpy, memmap, Zarr,
        HDF5, dask), a table, a tensor, or the path of a .npy file. Data that is already in the storage can be
        passed as `RawObjects` or `ZarrObjects`, and is then not copied.
    blocks, tasks, code : optional
        The number of data blocks k, the total number of blocks n, and the code, as for `coded_map`.
    name : str
        The name of the array: letters, digits, '.', '_' and '-'.
    storage : optional
        Where to store the array: the path of a folder, a store object, the path of a Lithops YAML
        configuration, or a `lithops.FunctionExecutor`, whose storage is used. Defaults to $POLARMAP_STORE, or
        else to the folder polarmap/ in the XDG data directory.
    overwrite : bool
        Whether to replace an existing array of this name. The old array is kept until the new one is
        complete.
    memory : int
        The memory budget for encoding in bytes, per process; at least 1 MiB. With more memory, fewer and
        larger objects are written. Zarr and HDF5 data is read most efficiently if `memory` has room for one
        chunk per block.
    executor : optional
        The executor whose workers encode, as for `coded_map`. Workers must be able to access the storage and
        the data, which must be a .npy file or memory map on this machine, or raw blocks in the storage. By
        default, this process encodes.
    key : str or bytes, optional
        The key with which to encrypt the array (needs the extra `crypto`). "env:NAME" or "file:PATH" names an
        environment variable or file from which this process and the workers read the key, as 64 hexadecimal
        digits. If all workers run on this machine, you can also pass the key itself, as 32 bytes. By default,
        the array is not encrypted.
    progress : bool or "live", optional
        Whether to show a progress bar, or a live view of the tasks (as for `coded_map`). By default, a bar is
        shown if standard error is a terminal.

    Returns
    -------
    CodedArray
        The stored array.

    Warns
    -----
    RuntimeWarning
        If the data contains NaN or inf, or if the parity blocks overflow. The message says how many entries
        are affected, and where the first one is.

    Raises
    ------
    CodeError
        If an argument is invalid, or if the data cannot be coded.
    StorageError
        If the name is invalid or already in use, or if the storage cannot be used.

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
            raise CodeError(f"memory must be at least {MIN_MEMORY_BYTES} bytes (1 MiB), not {memory}")
        store = open_store(storage)
        source = open_data_source(A, store)
        polar_code = choose_polar_code(source.shape[0], source.dtype, blocks, tasks, code)
        stripe_plan = plan_stripes(
            polar_code, source.shape, source.dtype, int(memory), source.rows_per_chunk, source.rows_per_object
        )
        if key is not None:
            if source.rows_per_object:
                raise CodeError(
                    "key= cannot encrypt RawObjects or ZarrObjects, because encode does not rewrite these "
                    "objects: leave key out, or encode the array itself"
                )
            # Do not store the blocks as a Zarr array. Other libraries could not read it, because they cannot
            # decrypt its chunks.
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
