"""Zarr arrays that lie in the store already: their chunks are left where they are."""

from __future__ import annotations

import numpy as np
import pytest
from array_data import MIB, copied, random_array

import polarmap
from polarmap import ZarrObjects
from polarmap.errors import CodeError, MissingObjectError

OPTIONS = {"blocks": 4, "workers": 6, "name": "a", "memory": MIB}


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
    assert len(copied(coded)) < 4 * len(coded.stored(0)) / 2
    assert coded.check().ok


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_that_are_not_raw_rows(store, version):
    import zarr

    with pytest.raises(MissingObjectError, match="no Zarr array 'my/zarr'"):
        polarmap.encode(ZarrObjects("my/zarr/"), storage=store, **OPTIONS)
    options = {"shape": (8, 8), "dtype": "f8", "zarr_format": version}
    zarr.create_array(store.root / "my/zarr", chunks=(2, 8), **options)
    zarr.create_array(store.root / "my/tiles", chunks=(2, 2), compressors=None, **options)
    with pytest.raises(CodeError, match="not raw rows"):
        polarmap.encode(ZarrObjects("my/zarr"), storage=store, **OPTIONS)
    with pytest.raises(CodeError, match=r"\(2, 2\).* are not whole rows"):
        polarmap.encode(ZarrObjects("my/tiles"), storage=store, **OPTIONS)
    assert store.keys("polarmap/") == []
