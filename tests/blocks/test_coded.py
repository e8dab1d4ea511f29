"""What most coded blocks have in common."""

from __future__ import annotations

from typing import Any

import pytest

from polarmap.executors.interface import TaskBlocks


def test_a_block_is_one_piece_in_memory() -> None:
    class Numbers(TaskBlocks):
        def block_leaves(self, task: int) -> list[Any]:
            return [task + 1]

    blocks = Numbers()
    assert blocks.location is None
    assert [blocks.component_leaves(piece) for piece in blocks.block_components(3)] == [[4]]
    blocks.release_memory()
    with pytest.raises(LookupError):
        blocks.block_segments(3)
