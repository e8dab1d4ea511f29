"""Blocks in storage: nothing is read before it is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap import PolarCode
from polarmap.blocks.stored import StoredBlocks
from polarmap.worker.parts import DamagedError, Part, Place


class Reader:
    """Reads rows of a coded matrix; block 1 is damaged, and decoded from others."""

    def __init__(self) -> None:
        self.coded = PolarCode(4, 3).encode(np.arange(12.0).reshape(3, 2, 2))
        self.read_so_far: list[int] = []

    def read(self, index: int) -> np.ndarray:
        self.read_so_far.append(index)
        return self.coded[index]

    def read_as_stored(self, index: int) -> np.ndarray:
        if index == 1:
            raise DamagedError("block 1")
        return self.read(index)


def stored(reader: Reader, shape: tuple[int, ...] = (2, 2)) -> StoredBlocks:
    parts = [(Part(f"block-{index}", 32, 0),) for index in range(4)]
    return StoredBlocks(PolarCode(4, 3), Place("folder", "/"), parts, np.dtype("<f8"), shape, 1, reader)


def test_sizes_are_known_without_reading() -> None:
    reader = Reader()
    blocks = stored(reader)
    assert [blocks.layout(index) for index in (0, 3)] == [(("<f8", (2, 2)),)] * 2
    assert blocks.parts(2) == (Part("block-2", 32, 0),) and blocks.source == Place("folder", "/")
    data = blocks.blocks
    assert (data.k, data.rows, data.padding, data.dtypes) == (3, 2, 1, [np.dtype(float)])
    assert reader.read_so_far == []


def test_a_block_is_decoded_here_and_an_erasure_for_a_worker() -> None:
    reader = Reader()
    blocks = stored(reader)
    np.testing.assert_array_equal(blocks.leaves(1)[0], reader.coded[1])
    np.testing.assert_array_equal(blocks.blocks.leaves(2)[0], reader.coded[2])
    np.testing.assert_array_equal(blocks.piece(3)[0], reader.coded[3])
    with pytest.raises(DamagedError):
        blocks.piece(1)
    assert reader.read_so_far == [1, 2, 3]


def test_blocks_may_be_single_numbers() -> None:
    assert stored(Reader(), ()).structure == ("numpy",) and stored(Reader(), (4,)).structure == ("array",)
