"""Tests of the keys of the chunks of the Zarr array, and that each chunk holds numbers of one block."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polarmap.arrays.stripes import count_elements, plan_stripes
from polarmap.arrays.zarr_view import ZarrView
from polarmap.codes import PolarCode


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 30), min_size=1, max_size=3), k=st.integers(1, 3),
    memory=st.integers(1, 8_000), chunk_rows=st.integers(1, 9),
)  # fmt: skip
def test_chunks_of_blocks_are_chunks_of_the_zarr_array(shape, k, memory, chunk_rows):
    shape[0] = max(shape[0], k)
    plan = plan_stripes(PolarCode(k + 2, k), shape, np.dtype("f8"), memory, chunk_rows)
    assert plan.max_stripe_size <= max(1, memory // (3 * 8 * (k + 2)))
    whole = np.arange(k * plan.rows_per_block * int(np.prod(shape[1:], dtype=int)))
    blocks = whole.reshape(k, plan.rows_per_block, *shape[1:])
    if plan.has_chunk_per_stripe:
        assert plan.rows_per_block % plan.chunk_shape[0] == 0
        view, sizes = ZarrView("a", plan.chunk_shape), map(count_elements, plan.hyperslabs)
        chunks = {
            chunk.key: chunk
            for chunk in view.list_chunks(shape, plan.rows_per_block, [0, *accumulate(sizes)])
        }
        grid, keys = whole.reshape(-1, *shape[1:]), set()
        for block in range(k):
            for stripe, inside in enumerate(plan.hyperslabs):
                slab = plan.get_data_slab(block, stripe)
                assert np.array_equal(grid[slab], blocks[block][inside])
                if slab[0].start < shape[0]:
                    steps = [rows.start // step for rows, step in zip(slab, plan.chunk_shape)]
                    key = f"a/data/c/{'/'.join(map(str, steps))}"
                    assert chunks[key] == (view.get_chunk_key(slab), block, range(stripe, stripe + 1))
                    keys.add(key)
        assert keys == chunks.keys()
        assert len(keys) == int(np.prod([-(-size // step) for size, step in zip(shape, plan.chunk_shape)]))
    else:
        assert plan.chunk_shape == (plan.rows_per_block, *shape[1:])
