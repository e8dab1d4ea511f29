"""Tests that data on a cluster are encoded there exactly as in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from polarmap.blocks.code_choice import CodeOptions, encode_blocks, encode_on_cluster
from polarmap.blocks.on_cluster import ClusterCodedBlocks
from polarmap.codes import SecretSharing
from polarmap.errors import CodeError
from polarmap.executors.engine import PartitionedData
from polarmap.worker.locations import ClusterLocation

A = np.random.default_rng(0).standard_normal((24, 5))
DEGREE = {"tasks": 11, "degree": 2}


class LocalCluster:
    """A cluster in this process whose references are the values. It counts the arrays that are fetched."""

    location = ClusterLocation(backend="dask")

    def __init__(self) -> None:
        self.n_fetched = 0

    def submit_call(self, function: Callable[..., Any], *arguments: Any, n_outputs: int = 1) -> list[Any]:
        outputs = function(*arguments)
        return [outputs] if n_outputs == 1 else list(outputs)

    def fetch_values(self, references: Sequence[Any]) -> list[Any]:
        self.n_fetched += sum(isinstance(reference, np.ndarray) for reference in references)
        return list(references)

    def make_worker_reference_names(self, references: Sequence[Any]) -> list[Any]:
        return [id(reference) for reference in references]

    def partition_data(self, data: Any, n_blocks: int | None) -> PartitionedData | None:
        raise NotImplementedError


def encode_on_test_cluster(pieces: Any, total: int | None = None, **options: Any) -> ClusterCodedBlocks:
    coded = encode_on_cluster(PartitionedData(LocalCluster(), pieces, total), CodeOptions(**options), None)
    assert isinstance(coded, ClusterCodedBlocks)
    return coded


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *((dtype, options) for dtype in (float, np.float32, complex) for options in ({}, DEGREE)),
        (np.int32, {}),
        (float, {"tasks": 7}),
    ],
)
def test_blocks_on_a_cluster_equal_local_blocks(dtype: Any, options: dict[str, Any]) -> None:
    data = (100 * A).astype(dtype)[:22]
    cut = [[data[:4], data[4:6]], [data[6:12]], [data[12:18]], [data[18:]]]
    coded, known = (
        encode_on_test_cluster(cut, 22, **options),
        encode_blocks(data, CodeOptions(blocks=4, **options), None),
    )
    assert (coded.n, coded.code.k, coded.data_blocks.n_padding_rows) == (known.n, 4, 2)
    for index in range(coded.n):
        assert coded.block_layout(index) == known.block_layout(index)
        np.testing.assert_allclose(coded.cluster_reference(index), known.block_leaves(index)[0], rtol=1e-6)
        assert coded.block_segments(index)[0].size == coded.cluster_reference(index).nbytes
    assert coded.data_blocks.cluster.n_fetched == 0  # type: ignore[attr-defined]
    np.testing.assert_array_equal(coded.block_leaves(1)[0], coded.cluster_reference(1))


def test_only_noncontiguous_or_swapped_blocks_on_a_cluster_are_converted() -> None:
    whole, turned, swapped = A[:6].copy(), A[6:12].T.copy().T, A[12:18].astype(">f8")
    coded = encode_on_test_cluster([[whole], [turned], [swapped]])
    assert coded.cluster_reference(0) is whole
    for index, block in enumerate((whole, turned, swapped)):
        np.testing.assert_array_equal(coded.cluster_reference(index), block)
        assert coded.cluster_reference(index).flags.c_contiguous
        assert coded.cluster_reference(index).dtype.isnative


def test_columns_of_a_table_are_stacked() -> None:
    table = {"a": np.arange(3.0), "b": np.ones(3)}
    np.testing.assert_array_equal(
        encode_on_test_cluster([[table], [table]], 6).cluster_reference(0), [[0, 1], [1, 1], [2, 1]]
    )


def test_blocks_that_cannot_be_encoded_are_refused() -> None:
    with pytest.raises(CodeError, match=r"block 1 is float64\[5, 5\] and block 0 is float64\[6, 5\]"):
        encode_on_test_cluster([[A[:6]], [A[:5]]])
    with pytest.raises(CodeError, match="dtype object"):
        encode_on_test_cluster([[np.array([None])]] * 2)
    with pytest.raises(CodeError, match="hides data from workers, but this data is on the cluster"):
        encode_on_test_cluster([[A[:6]], [A[:6]]], code=SecretSharing())


def test_nan_in_the_data_causes_a_warning() -> None:
    odd = A[:6].copy()
    odd[2, 1] = np.nan
    warning = encode_on_test_cluster([[A[:6]], [odd]]).parity_warning
    assert "NaN or inf at 1 position, the first in block 1, entry (2, 1)" in warning
    assert encode_on_test_cluster([[A[:6]], [A[6:12]]]).parity_warning == ""
