"""Provide arrays to encode, views of their stored objects, and ways to damage them."""

from __future__ import annotations

import itertools
import json
import warnings
import zlib
from pathlib import Path

import numpy as np

import polarmap
from polarmap.arrays import RawObjects
from polarmap.arrays.manifest import get_array_key_prefix, get_manifest_key

DTYPES = ("f2", "f4", "f8", "c8", "c16", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">f8", ">i4")


MIB = 1 << 20
DOCUMENTS = 3  # Objects of an array in addition to its parts: the manifest, and zarr.json of group and array.


def random_array(shape, dtype="f8", seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def damage(store, part, kind):
    """Make a stored part missing, truncated, corrupt or longer than it was."""
    data = store.get(part.key)
    if kind == "missing":
        store.delete([part.key])
    elif kind == "truncated":
        store.put(part.key, data[: part.offset + part.size - 1])
    elif kind == "appended":
        store.put(part.key, data + b"x")
    else:
        at = part.offset + 3
        store.put(part.key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def losses(code, count):
    """Return data and parity blocks that the remaining blocks determine."""
    for lost in itertools.combinations(range(code.n), count):
        mask = np.ones(code.n, bool)
        mask[list(lost)] = False
        if code.is_decodable(mask) and lost[0] < code.k <= lost[-1]:
            return lost
    raise AssertionError(code)


def objects(store):
    return {key: store.get(key) for key in store.keys("polarmap/")}


def write_manifest(store, change, name="a"):
    """Let `change` alter a manifest, and store it with a matching checksum."""
    document = json.loads(store.get(get_manifest_key(name)))
    change(document["array"])
    text = json.dumps(document["array"], sort_keys=True, separators=(",", ":"))
    document["crc32"] = zlib.crc32(text.encode())
    store.put(get_manifest_key(name), json.dumps(document).encode())


def files(folder):
    """Return the relative paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def encode_with_warnings(A, **options):
    """Encode data that may contain NaN or inf; return the coded array and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coded = polarmap.encode(A, name="a", **options)
    return coded, [str(one.message) for one in caught if one.category is RuntimeWarning]


def spoilt(shape, dtype, places, kinds):
    """Return an array with NaN and inf at flat `places`."""
    A = random_array(shape, dtype)
    with np.errstate(invalid="ignore"):
        A.reshape(-1)[places] = np.array([np.nan, np.inf, -np.inf])[kinds].astype(dtype)
    return A


def put_rows(store, A, rows=1, head=b""):
    """Store an array as raw objects with the given number of rows each."""
    keys = [f"mine/{number}" for number in range(-(-len(A) // rows))]
    for number, key in enumerate(keys):
        store.put(key, head + A[number * rows : (number + 1) * rows].tobytes())
    return RawObjects(keys, A.shape, A.dtype, rows, len(head))


def copied(coded):
    """Return the data parts that are stored below the array's own folder."""
    own = get_array_key_prefix(coded.name)
    return [
        part for index in range(coded.k) for part in coded.block_segments(index) if part.key.startswith(own)
    ]


def zarr_data(coded):
    """Open the data with zarr."""
    import zarr

    return zarr.open_array(f"{coded.zarr_path}/data", mode="r")
