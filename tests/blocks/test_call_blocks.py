"""Calls as blocks that come one by one."""

from __future__ import annotations

import numpy as np
import pytest

from polarmap.blocks.call_blocks import CallBlocks
from polarmap.executors.base import Coded, block_of, check_folder, layout_bytes
from polarmap.executors.block_store import BlockStore, WithDriver


def test_a_block_is_there_from_add_to_forget() -> None:
    blocks: Coded = CallBlocks()
    assert isinstance(blocks, CallBlocks)
    for number in range(3):
        assert blocks.add(np.full(number + 1, number, np.uint8)) == number
    assert blocks.n == 3
    for number in range(3):
        assert block_of(blocks, number).tolist() == [number] * (number + 1)
        assert layout_bytes(blocks.layout(number)) == number + 1
    blocks.forget(1)
    assert blocks.add(np.zeros(0, np.uint8)) == 3
    assert block_of(blocks, 2).tolist() == [2, 2, 2]
    with pytest.raises(KeyError):
        blocks.leaves(1)


def test_its_bytes_travel_with_the_ticket() -> None:
    blocks = CallBlocks()
    task = blocks.add(np.arange(256, dtype=np.uint8))
    check_folder(blocks.source)
    assert blocks.source is not None
    stored = BlockStore(WithDriver("")).of(blocks)
    block = stored.block(blocks, task)
    assert np.frombuffer(block.data, np.uint8).tolist() == list(range(256))
    assert block.source == blocks.source
    blocks.forget(task)
    with pytest.raises(KeyError):  # nobody else holds it
        stored.block(blocks, task)
    assert stored.name(blocks, task) == (id(blocks), task)
