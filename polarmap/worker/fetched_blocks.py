"""Blocks that a worker that stays has fetched from storage or from its driver, kept from map to map.

Runs on workers: imports numpy at most.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from polarmap.worker.kept_blocks import leaves_of
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import Part, Place, assemble
from polarmap.worker.pytree import unflatten


class FetchedBlocks:
    """Blocks as tasks get them: read-only, unless they are private.

    What is kept is known by its checksum, too, or is encrypted, as nothing else is under its key: other parts
    may change in their place, and are fetched for each task. The least recently used goes beyond the budget.

    fetch : the bytes of a part.
    budget : bytes that may be kept.
    """

    def __init__(self, fetch: Callable[[Place, Part], Any], budget: int) -> None:
        self._fetch, self._budget = fetch, budget
        self._kept: OrderedDict[tuple[Place, Part], memoryview] = OrderedDict()
        self._bytes = 0
        self.fetches = 0  # for tests

    def load(self, block: StoredBlock, is_private: bool = False) -> Any:
        """A block; `is_private`: one that may be written into.

        DamagedError if it is not as it was stored.
        """
        parts = [self._part(block.source, part) for part in block.parts if part.size]
        buffers = [bytearray(part) for part in parts] if is_private else parts
        return unflatten(block.structure, leaves_of(buffers, block.layout))

    def _part(self, source: Place, part: Part) -> memoryview:
        key = (source, part)
        data = self._kept.get(key)
        if data is None:
            self.fetches += source.kind != "message"  # which brings it along
            data = memoryview(assemble([part], lambda one: self._fetch(source, one))).toreadonly()
            is_known = part.crc32 is not None or source.encryption is not None
            if is_known and part.size <= self._budget:
                self._keep(key, data)
        else:
            self._kept.move_to_end(key)
        return data

    def _keep(self, key: tuple[Place, Part], data: memoryview) -> None:
        self._kept[key] = data
        self._bytes += len(data)
        while self._bytes > self._budget:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)
