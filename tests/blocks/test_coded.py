"""What most coded blocks have in common."""

from __future__ import annotations

from typing import Any

import pytest

from polarmap.executors.base import Coded


def test_a_block_is_one_piece_in_memory() -> None:
    class Numbers(Coded):
        def leaves(self, index: int) -> list[Any]:
            return [index + 1]

    blocks = Numbers()
    assert blocks.source is None
    assert [blocks.piece(piece) for piece in blocks.pieces(3)] == [[4]]
    blocks.release()
    with pytest.raises(LookupError):
        blocks.parts(3)
