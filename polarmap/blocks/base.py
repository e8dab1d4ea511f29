"""Coded blocks together with their code: what the collector needs beyond what executors see."""

from __future__ import annotations

from typing import Protocol

from polarmap.blocks.equal import Blocks
from polarmap.code.base import Code
from polarmap.executors.base import Coded


class CodedData(Coded, Protocol):
    """n coded blocks, in memory or in storage.

    `coded_map` takes data with a method `coded_blocks() -> CodedData` as it is.
    """

    encode_seconds: float
    unprotected_warning: str  # what is to be said of data that parity cannot carry; empty if there is none

    @property
    def code(self) -> Code:
        """That carries them."""
        ...

    @property
    def blocks(self) -> Blocks:
        """The data blocks."""
        ...
