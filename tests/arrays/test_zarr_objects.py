"""Tests of encoding Zarr arrays that are already in the store, whose chunks are not copied."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from array_data import MIB, copied, random_array

import polarmap
from polarmap.arrays import ZarrObjects
from polarmap.errors import CodeError, MissingObjectError, StorageError

OPTIONS = {"blocks": 4, "tasks": 6, "name": "a", "memory": MIB}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("total", "rows"), [(24, 6), (24, 3), (22, 3)])
def test_zarr_chunks_are_not_copied(store, version, total, rows):
    import zarr

    A = random_array((total, 5, 10), "f4")
    stored = zarr.create_array(
        store.root / "my/zarr", shape=A.shape, dtype=A.dtype, chunks=(rows, 5, 10), zarr_format=version,
        compressors=None, filters=None, fill_value=2.5,
    )  # fmt: skip
    stored[: total - rows] = A[: total - rows]
    coded = polarmap.encode(ZarrObjects("my/zarr"), storage=store, **OPTIONS)
    np.testing.assert_array_equal(coded[:], stored[:])
    assert (coded[-1] == 2.5).all()
    assert len(copied(coded)) < 4 * len(coded.block_segments(0)) / 2
    assert coded.check().ok


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_that_are_not_raw_rows_are_refused(store, version):
    import zarr

    with pytest.raises(MissingObjectError, match="the Zarr array 'my/zarr' does not exist"):
        polarmap.encode(ZarrObjects("my/zarr/"), storage=store, **OPTIONS)
    options = {"shape": (8, 8), "dtype": "f8", "zarr_format": version}
    zarr.create_array(store.root / "my/zarr", chunks=(2, 8), **options)
    zarr.create_array(store.root / "my/tiles", chunks=(2, 2), compressors=None, **options)
    with pytest.raises(CodeError, match="not raw rows"):
        polarmap.encode(ZarrObjects("my/zarr"), storage=store, **OPTIONS)
    with pytest.raises(CodeError, match=r"are not whole rows \(chunk shape \(2, 2\)"):
        polarmap.encode(ZarrObjects("my/tiles"), storage=store, **OPTIONS)
    assert store.keys("polarmap/") == []


SECOND = {
    "zarr_format": 2, "shape": [24, 5], "chunks": [6, 5], "dtype": "<i4", "compressor": None, "filters": None,
    "order": "C", "fill_value": 0, "dimension_separator": ".",
}  # fmt: skip
THIRD = {
    "zarr_format": 3, "node_type": "array", "shape": [24, 5], "data_type": "int32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [6, 5]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
}  # fmt: skip
ODD = [
    *(None, [], {}, "", "x", "{}", "../x", -1, 0, 1.5, True, 2**70, float("nan"), float("inf"), "nan", "|O"),
    *([None], [[]], [{}], [24], [0, 5], [-6, 5], [6.0, 5], ["6", 5], [True, 5], [24, 5, 1], [2**70, 5]),
    *({"name": None}, [{"name": "bytes", "configuration": None}], "M8[s]", "<U3", [["a", "<i4"]], "0x1g"),
]


def iterate_paths(value, at=()):
    """Yield the path of every value in a JSON document, as a tuple of keys and indices."""
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield from iterate_paths(child, (*at, key))


def replace_value(document, at, value):
    """Return a copy of a JSON document with `value` at the path `at`."""
    if not at:
        return value
    copied = inner = copy.deepcopy(document)
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return copied


@pytest.mark.parametrize(("file", "document"), [(".zarray", SECOND), ("zarr.json", THIRD)])
def test_errors_for_invalid_metadata_name_the_array(store, file, document):
    # Some altered metadata are still valid and describe the same array.
    A = np.arange(24 * 5, dtype="<i4").reshape(24, 5)
    for number in range(4):
        for key in (f"{number}.0", f"c/{number}/0"):
            store.put(f"mine/{key}", A[6 * number : 6 * number + 6].tobytes())
    documents = [replace_value(document, at, odd) for at in iterate_paths(document) for odd in ODD]
    refused = []
    for text in [*map(json.dumps, documents), "", "{", "[" * 100_000, json.dumps(document)]:
        store.put(f"mine/{file}", text.encode())
        try:
            source = ZarrObjects("mine").open_in(store)
        except (CodeError, StorageError) as error:
            refused.append(str(error))
        else:
            assert (source.dtype, source.shape[1:]) == (A.dtype, (5,))
    assert len(refused) > len(documents) / 2
    assert all(f"mine/{file}" in text or "Zarr array 'mine'" in text for text in refused)


@pytest.mark.parametrize(
    ("dtype", "fill", "expected"),
    [("<f8", "NaN", np.nan), (">f4", "-Infinity", -np.inf), ("<c8", [1.5, "NaN"], complex(1.5, np.nan)),
     (">f4", "0x3fc00000", 1.5), ("<i8", -3, -3), ("<f8", None, 0)],
)  # fmt: skip
def test_fill_values_that_json_cannot_write(store, dtype, fill, expected):
    document = SECOND | {"dtype": dtype, "fill_value": fill}
    store.put("mine/.zarray", json.dumps(document).encode())
    source, out = ZarrObjects("mine").open_in(store), np.empty((6, 5), np.dtype(dtype).newbyteorder("="))
    source.read_slab((slice(6, 12), slice(0, 5)), out)
    np.testing.assert_array_equal(out, expected)
