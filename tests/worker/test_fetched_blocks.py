"""Blocks are fetched once, within a budget, and are what was stored."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polarmap.worker.encryption import Encryption, decrypt_part, encrypt_part
from polarmap.worker.fetched_blocks import FetchedBlocks
from polarmap.worker.messages import StoredBlock
from polarmap.worker.parts import DamagedError, Part, Place
from polarmap.worker.pytree import flatten

PLACE = Place("bucket", "b", "memory")
BYTES = 800


class Blocks:
    """Some of 100 numbers, by key."""

    def __init__(self) -> None:
        self.arrays = {key: np.full(100, float(number)) for number, key in enumerate("abcde")}
        self.fetches = Counter[str]()

    def fetch(self, source: Place, part: Part) -> bytes:
        assert source == PLACE
        self.fetches[part.key] += 1
        return self.arrays[part.key].tobytes()

    def of(self, key: str, has_checksum: bool = True) -> StoredBlock:
        data = self.arrays[key].tobytes()
        part = Part(key, BYTES, zlib.crc32(data) if has_checksum else None)
        leaves, structure = flatten(self.arrays[key])
        return StoredBlock(PLACE, (part,), structure, ((leaves[0].dtype.str, leaves[0].shape),))


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
def kept(blocks: Blocks) -> Callable[[int], FetchedBlocks]:
    return lambda budget: FetchedBlocks(blocks.fetch, budget)


def test_a_block_is_fetched_once(blocks: Blocks, kept: Any) -> None:
    found = kept(10 * BYTES)
    for _ in range(3):
        for key in "abc":
            np.testing.assert_array_equal(found.load(blocks.of(key)), blocks.arrays[key])
    assert blocks.fetches == Counter("abc")
    assert found.fetches == 3


def test_the_least_recently_used_goes_beyond_the_budget(blocks: Blocks, kept: Any) -> None:
    found = kept(2 * BYTES)
    for key in "abacab":
        found.load(blocks.of(key))
    # a and b are kept, a is used, c takes the place of b, a is used, b takes the place of c.
    assert blocks.fetches == Counter({"a": 1, "b": 2, "c": 1})
    assert found._bytes == 2 * BYTES == sum(map(len, found._kept.values()))


def test_a_block_larger_than_the_budget_is_not_kept_and_pushes_nothing_out(blocks: Blocks) -> None:
    blocks.arrays["a"] = np.zeros(10)
    small = blocks.of("a")
    small = small._replace(parts=(small.parts[0]._replace(size=80),))
    found = FetchedBlocks(blocks.fetch, BYTES // 2)
    for block in (small, blocks.of("b"), small, blocks.of("b")):
        found.load(block)
    assert blocks.fetches == Counter({"a": 1, "b": 2})


def test_what_has_no_checksum_is_fetched_each_time(blocks: Blocks, kept: Any) -> None:
    found = kept(10 * BYTES)
    for value in (1.0, 2.0):
        blocks.arrays["a"][:] = value
        np.testing.assert_array_equal(found.load(blocks.of("a", has_checksum=False)), np.full(100, value))


def test_other_bytes_under_the_same_name_are_fetched(blocks: Blocks, kept: Any) -> None:
    found = kept(10 * BYTES)
    found.load(blocks.of("a"))
    blocks.arrays["a"] = np.ones(100)
    np.testing.assert_array_equal(found.load(blocks.of("a")), np.ones(100))


def test_a_block_that_is_kept_is_read_only_and_a_private_one_is_a_copy(blocks: Blocks, kept: Any) -> None:
    found = kept(10 * BYTES)
    block = found.load(blocks.of("a"))
    with pytest.raises(ValueError, match="read-only"):
        block[0] = 5.0
    private = found.load(blocks.of("a"), is_private=True)
    private[:] = 5.0
    np.testing.assert_array_equal(found.load(blocks.of("a")), blocks.arrays["a"])
    assert blocks.fetches == Counter("a")


def test_damage_is_found_and_not_kept(blocks: Blocks, kept: Any) -> None:
    found, block, right = kept(10 * BYTES), blocks.of("a"), blocks.arrays["a"]
    blocks.arrays["a"] = right + 1.0
    with pytest.raises(DamagedError):
        found.load(block)
    blocks.arrays["a"] = right
    np.testing.assert_array_equal(found.load(block), right)


def test_encrypted_blocks_are_kept_too(blocks: Blocks) -> None:
    encryption = Encryption.new(bytes(range(32)))
    part = Part("a", BYTES)
    stored = encrypt_part(encryption, part, blocks.arrays["a"].tobytes())
    place = PLACE._replace(encryption=tuple(encryption))
    found = FetchedBlocks(lambda source, one: decrypt_part(encryption, one, stored), 10 * BYTES)
    block = StoredBlock(place, (part,), ("array",), (("<f8", (100,)),))
    for _ in range(3):
        np.testing.assert_array_equal(found.load(block), blocks.arrays["a"])
    assert found.fetches == 1
